"""What upcall did, request by request: times, routes, reasons, tokens and money in a SQLite file, and never a word.

No hash of a prompt is kept either. Nothing needs one, and the salt would lie beside it on the same disk, where whoever
has both can try likely prompts one by one.
"""

import asyncio
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import platformdirs

from daemon import config

Job: TypeAlias = Callable[[sqlite3.Connection], None]
"""Something to write, inside a transaction; it may be tried more than once."""

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""A file that could not be written is tried again after so long."""
LOCKED_SECONDS = 2.0
"""What another process that writes to the file is waited for."""
MOST_WAITING = 10_000
"""Writes that are kept in memory while the file cannot be written; beyond, the oldest are lost."""
MOST_UNREAD = 1000
"""Records that a slow reader of the feed may be behind; beyond, it misses some."""

MIGRATIONS = (
    """
    CREATE TABLE requests (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        time REAL NOT NULL,
        wire TEXT NOT NULL,
        outcome TEXT NOT NULL,
        error TEXT,
        route TEXT,
        reason TEXT,
        degraded INTEGER NOT NULL,
        router TEXT,
        score REAL,
        threshold REAL,
        router_ms REAL,
        model TEXT,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        first_ms REAL,
        total_ms REAL,
        cost_usd REAL,
        saved_usd REAL,
        estimated INTEGER NOT NULL
    );
    CREATE INDEX requests_time ON requests (time);
    """,
    """
    CREATE TABLE spend (day TEXT PRIMARY KEY, nanos INTEGER NOT NULL);
    CREATE TABLE holds (
        id TEXT PRIMARY KEY,
        time REAL NOT NULL,
        wire TEXT NOT NULL,
        model TEXT NOT NULL,
        day TEXT NOT NULL,
        nanos INTEGER NOT NULL
    );
    INSERT INTO spend SELECT date(time, 'unixepoch', 'localtime') AS day, CAST(round(total(cost_usd) * 1e9) AS INTEGER)
        FROM requests WHERE cost_usd > 0 GROUP BY day;
    """,
    """
    ALTER TABLE requests ADD COLUMN confidence REAL;
    ALTER TABLE requests ADD COLUMN wasted_tokens INTEGER NOT NULL DEFAULT 0;
    """,
    """
    CREATE TABLE feedback (
        id TEXT PRIMARY KEY,
        time REAL NOT NULL,
        verdict TEXT NOT NULL,
        router TEXT,
        score REAL,
        route TEXT,
        embedding BLOB
    );
    """,
)
"""From each version of the file to the next; `PRAGMA user_version` counts those that were applied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One finished request. Money is in US dollars, `None` where the price is not known; durations in milliseconds."""

    id: str
    time: float
    """When it came, in seconds since the epoch."""
    wire: str
    outcome: str
    """`ok`, `cancelled` (the client left), `refused` (before any decision), `lost` (upcall was killed on the way to the
    cloud), or the code of what went wrong."""
    error: str | None = None
    """Code of what went wrong with the first model, also where the second one answered."""
    route: Literal["local", "cloud"] | None = None
    """Of the model that answered; `None` where nothing was decided."""
    reason: str | None = None
    degraded: bool = False
    router: str | None = None
    score: float | None = None
    threshold: float | None = None
    router_ms: float | None = None
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    first_ms: float | None = None
    """To the first word; `None` where none came."""
    total_ms: float | None = None
    cost_usd: float | None = None
    saved_usd: float | None = None
    """What the cloud would have charged for the same tokens, less what was paid."""
    estimated: bool = False
    """The cost is the most that it can have been: the provider did not say what it counted."""
    confidence: float | None = None
    """What the second look said of the local model's answer, 0 to 1; `None` where it did not look."""
    wasted_tokens: int = 0
    """Of a local answer that was thrown away for it."""
    verdict: str | None = None
    """Of whoever asked, `right` or `wrong`; in a table of its own, since it comes later and stays longer."""


COLUMNS = tuple(field.name for field in fields(Record) if field.name != "verdict")
_INSERT = f"INSERT OR IGNORE INTO requests ({', '.join(COLUMNS)}) VALUES ({', '.join(f':{name}' for name in COLUMNS)})"  # noqa: S608 - the names are the dataclass's own


class LedgerError(Exception):
    """The ledger cannot be read or written; the message is one line for people."""


def default_path() -> Path:
    return platformdirs.user_state_path("upcall") / "ledger.db"


class Ledger:
    """Writes in a thread of its own and never raises: a file that cannot be written shows in `trouble`."""

    def __init__(self, settings: config.Ledger, path: Path) -> None:
        self.path = path
        self.enabled = settings.enabled
        self.trouble = ""
        """Why nothing can be written at the moment: one line for people, or nothing."""
        self._days = settings.days
        self._loop = asyncio.get_running_loop()
        self._queue = queue.SimpleQueue[Job | asyncio.Future[None] | None]()
        self._readers: set[asyncio.Queue[Record | None]] = set()
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        if self.enabled:
            self._thread.start()

    def record(self, record: Record) -> None:
        """Keep `record`, and tell whoever follows the feed."""
        self._tell(record)
        self.write(lambda connection: insert(connection, record))

    def write(self, job: Job) -> None:
        """Have `job` done, after all that were given before."""
        if self.enabled:
            self._queue.put(job)

    async def written(self, seconds: float = LOCKED_SECONDS) -> bool:
        """Wait until everything given so far is in the file; whether it is."""
        if not self.enabled:
            return False
        done = self._loop.create_future()
        self._queue.put(done)
        with suppress(TimeoutError):
            await asyncio.wait_for(done, seconds)
            return not self.trouble
        return False

    @asynccontextmanager
    async def feed(self) -> "AsyncGenerator[asyncio.Queue[Record | None], None]":
        """Records from now on, as they are made; `None` is the end."""
        reader = asyncio.Queue[Record | None](MOST_UNREAD)
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    def end_feeds(self) -> None:
        self._tell(None)

    def close(self) -> None:
        """Write what is left."""
        if self.enabled:
            self._queue.put(None)
            self._thread.join(LOCKED_SECONDS)

    def _tell(self, record: Record | None) -> None:
        for reader in self._readers:
            if reader.full():
                reader.get_nowait()
            reader.put_nowait(record)

    def _work(self) -> None:
        connection: sqlite3.Connection | None = None
        waiting: list[Job] = []
        pruned = 0.0
        stopping = False
        while not stopping:
            jobs, waited_for, stopping = self._drained(RETRY_SECONDS if self.trouble else None)
            waiting = [*waiting, *jobs][-MOST_WAITING:]
            try:
                connection = connection or open_for_writing(self.path)
                if time.time() - pruned > 86400:
                    pruned = time.time()
                    waiting.append(self._prune)
                _transact(connection, waiting)
                waiting = []
                self._well()
            except (sqlite3.Error, LedgerError, OSError) as error:
                self._unwell(str(error))
                if connection:
                    connection.close()
                connection = None
            for future in waited_for:
                self._loop.call_soon_threadsafe(_resolve, future)
        if connection:
            connection.close()

    def _drained(self, seconds: float | None) -> tuple[list[Job], "list[asyncio.Future[None]]", bool]:
        """Everything given since the last time, after a wait for the first; whether that was all there will be."""
        jobs: list[Job] = []
        futures: list[asyncio.Future[None]] = []
        with suppress(queue.Empty):
            item = self._queue.get(timeout=seconds)
            while True:
                if item is None:
                    return jobs, futures, True
                if isinstance(item, asyncio.Future):
                    futures.append(item)
                else:
                    jobs.append(item)
                item = self._queue.get_nowait()
        return jobs, futures, False

    def _prune(self, connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM requests WHERE time < ?", (time.time() - self._days * 86400,))

    def _well(self) -> None:
        if self.trouble:
            log.info("the ledger is written again")
        self.trouble = ""

    def _unwell(self, why: str) -> None:
        trouble = f"the ledger {self.path} cannot be written ({why}); free disk space, or move the file away"
        if not self.trouble:
            log.error("%s; requests are answered all the same", trouble)
        self.trouble = trouble


def insert(connection: sqlite3.Connection, record: Record) -> None:
    connection.execute(_INSERT, values(record))


def values(record: Record) -> dict[str, Any]:
    """Of each of `COLUMNS`; `dataclasses.asdict` takes fifteen times as long, copying what cannot change."""
    return {name: getattr(record, name) for name in COLUMNS}


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The file, made where it is missing, readable by its owner alone, and of the current version.

    Raises `LedgerError`, `OSError` and `sqlite3.Error`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    connection = sqlite3.connect(path, timeout=LOCKED_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # With a write-ahead log a crash loses nothing by it, and a power cut the last moments at most.
        connection.execute("PRAGMA synchronous = NORMAL")
        # Rows are written once and read by other processes: SQLite's 2 MiB of pages would fill up and serve nobody.
        connection.execute("PRAGMA cache_size = -256")
        # What is deleted is overwritten.
        connection.execute("PRAGMA secure_delete = ON")
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise LedgerError(f"its version {version} is that of a newer upcall")
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")


def _transact(connection: sqlite3.Connection, jobs: list[Job]) -> None:
    if not jobs:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for job in jobs:
            # SQLite's integers end at 64 bits, and what a provider says it counted may not.
            with suppress(OverflowError):
                job(connection)
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
