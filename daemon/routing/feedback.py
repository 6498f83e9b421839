"""People's verdicts on decisions, in the ledger's file: with the prompt's embedding, never with its text."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from daemon.accounts.history import UnknownDecisionError
from daemon.accounts.ledger import LedgerError, Record, open_for_writing
from daemon.routing.recent import Sight

Verdict: TypeAlias = Literal["right", "wrong"]
"""On where a prompt was answered."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One verdict."""

    id: str
    """Of the request."""
    time: float
    """When it was given, in seconds since the epoch."""
    verdict: Verdict
    router: str | None
    """`name@version` as it shipped, where the prompt was scored."""
    score: float | None
    """By that router, before any correction."""
    route: Literal["local", "cloud"] | None
    vector: bytes | None
    """The prompt's embedding, little-endian float16, where it was kept."""

    @property
    def strong_was_due(self) -> bool:
        """What it says of the prompt: whether the cloud was, or would have been, the right choice."""
        return (self.route == "cloud") == (self.verdict == "right")


def keep(connection: sqlite3.Connection, record: Record, verdict: Verdict, sight: Sight | None) -> bool:
    """Write the verdict on `record`; whether there is an embedding with it.

    In the place of an earlier verdict it leaves all else as it was written with that one, or without.
    """
    router, score = (sight.router, sight.score) if sight else (record.router, record.score)
    if sight is None and router and "+" in router:
        router = score = None  # A corrected score says nothing about the router's own.
    connection.execute(
        "INSERT INTO feedback (id, time, verdict, router, score, route, embedding) VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET time = excluded.time, verdict = excluded.verdict",
        (record.id, time.time(), verdict, router, score, record.route, sight.vector if sight else None),
    )
    held = connection.execute("SELECT embedding IS NOT NULL FROM feedback WHERE id = ?", (record.id,))
    return bool(held.fetchone()[0])


def all_of(path: Path) -> list[Judged]:
    """Every verdict in the ledger file `path`, oldest first. Raises `LedgerError`."""
    with _open(path) as connection:
        rows = connection.execute(
            "SELECT id, time, verdict, router, score, route, embedding FROM feedback ORDER BY time"
        )
        return [Judged(*row) for row in rows]


def forget(path: Path, id: str | None) -> int:
    """Delete the verdict whose request's id begins with `id`, or all, so that their bytes are gone; how many.

    Raises `LedgerError`, `UnknownDecisionError`.
    """
    with _open(path) as connection:
        if id is None:
            deleted = connection.execute("DELETE FROM feedback").rowcount
        else:
            latest = "SELECT id FROM feedback ORDER BY time DESC LIMIT 1"
            begins = "SELECT id FROM feedback WHERE substr(id, 1, length(?1)) = ?1 LIMIT 2"
            found = (connection.execute(latest) if id == "last" else connection.execute(begins, (id,))).fetchall()
            if len(found) != 1:
                count = "more than one verdict is" if found else "no verdict is"
                raise UnknownDecisionError(f"{count} on a request {id[:40]}; `upcall feedback list` lists them")
            deleted = connection.execute("DELETE FROM feedback WHERE id = ?", found[0]).rowcount
        # The pages were overwritten; what is left of them are copies, in the log of what was written before.
        connection.execute("VACUUM")
        if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise LedgerError(
                "the verdicts are deleted, but someone reads the ledger, and its write-ahead log may still hold "
                "copies: run the same command again"
            )
        return deleted


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.exists():
        raise LedgerError(f"there is no ledger at {path} yet: it begins with the first request to `upcall serve`")
    try:
        with closing(open_for_writing(path)) as connection:
            yield connection
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(f"the ledger {path} cannot be used ({error}); try again") from None
