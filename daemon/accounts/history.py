"""The ledger read: single decisions, and what they come to. Opens the file read-only, beside whoever writes it."""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from daemon.accounts.ledger import COLUMNS, LOCKED_SECONDS, MIGRATIONS, LedgerError, Record, open_for_writing
from daemon.routing.policy import Reason

SCORES = 10_000
"""The latest scores that say how a router scores this user's prompts."""
DAYS = 31
"""As many as a month has, at most."""
ENOUGH_TOKENS = 32
"""Of an answer that tells how fast its model writes."""
QUANTILES = 51
NOTHING: Mapping[str, float] = {"local": 0, "cloud": 0, "failed": 0, "cost_usd": 0.0, "saved_usd": 0.0}
"""What an hour or a day without requests came to."""

_VERDICT = "(SELECT verdict FROM feedback WHERE feedback.id = requests.id) AS verdict"
_SELECTED = f"{', '.join(COLUMNS)}, {_VERDICT} FROM requests"
_SELECT = f"SELECT {_SELECTED}"
_ID_CHARACTERS = set("0123456789abcdef")


class UnknownDecisionError(LookupError):
    """No request, or more than one, has this id; the message is one line for people."""


def shown(record: Record) -> dict[str, Any]:
    """A record as a JSON object, with the reason in words."""
    explanation = None if record.reason is None else sentence(record.reason)
    return {"request_id": record.id, **asdict(record), "explanation": explanation}


def sentence(code: str) -> str:
    """What the reason with this code says to people."""
    # A ledger outlives versions, and with them reasons.
    return Reason[code.upper()].value if code.upper() in Reason.__members__ else code


class History:
    """Queries over one connection; each raises `LedgerError` where the file cannot be read."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def decisions(self, limit: int, after: str | None = None, before: str | None = None) -> list[Record]:
        """The latest `limit` records, newest first; of those newer than `after` and older than `before`, both ids."""
        where, values = ["1"], []
        for comparison, id in ((">", after), ("<", before)):
            if id is not None:
                where.append(f"seq {comparison} (SELECT seq FROM requests WHERE id = ?)")  # noqa: S608 - constants
                values.append(self.find(id).id)
        rows = self._rows(f"{_SELECT} WHERE {' AND '.join(where)} ORDER BY seq DESC LIMIT ?", *values, limit)
        return [_record(dict(row)) for row in rows]

    def latest(self) -> int:
        """The row that was written last; 0 where there is none."""
        return int(self._rows("SELECT coalesce(max(seq), 0) AS seq FROM requests")[0]["seq"])

    def newer(self, row: int, limit: int) -> list[tuple[int, Record]]:
        """At most `limit` records that were written after `row`, oldest first, each with its own row."""
        found = map(dict, self._rows(f"SELECT seq, {_SELECTED} WHERE seq > ? ORDER BY seq LIMIT ?", row, limit))
        return [(values.pop("seq"), _record(values)) for values in found]

    def find(self, id: str) -> Record:
        """The record whose id begins with `id`; `last` is the latest. Raises `UnknownDecisionError`."""
        if id == "last":
            rows = self._rows(f"{_SELECT} ORDER BY seq DESC LIMIT 1")
        elif id and set(id) <= _ID_CHARACTERS:
            rows = self._rows(f"{_SELECT} WHERE id >= ? AND id < ? LIMIT 2", id, f"{id}g")
        else:
            raise UnknownDecisionError(f"{id[:40]!r} is no request id: give its first characters, or last")
        if not rows:
            raise UnknownDecisionError(f"the ledger has no request {id[:40]}; `upcall decisions` lists the latest")
        if len(rows) > 1:
            raise UnknownDecisionError(f"more than one request begins with {id[:40]}; give more of its id")
        return _record(dict(rows[0]))

    def stats(self, now: float | None = None) -> dict[str, Any]:
        """What today, the last 7 days and this calendar month came to, and the last 24 hours and 31 days one by one."""
        time.tzset()  # the machine may have travelled since the start
        now = time.time() if now is None else now
        midnight = datetime.fromtimestamp(now).replace(hour=0, minute=0, second=0, microsecond=0)
        starts = {"today": midnight, "week": midnight - timedelta(days=6), "month": midnight.replace(day=1)}
        periods = {name: self._period(start.timestamp()) for name, start in starts.items()}
        return {**periods, "hours": self._hours(now), "days": self._days(midnight)}

    def scores(self, router: str) -> list[float]:
        """Latest scores by `router`, `name@version`, as they were compared with a threshold; in no order."""
        query = "SELECT score FROM requests WHERE router = ? AND score IS NOT NULL ORDER BY seq DESC LIMIT ?"
        return [row["score"] for row in self._rows(query, router, SCORES)]

    def score_quantiles(self) -> dict[str, Any] | None:
        """How the router of the latest scored request scores: the shares that any threshold would send up."""
        latest = self._rows("SELECT router FROM requests WHERE score IS NOT NULL ORDER BY seq DESC LIMIT 1")
        if not latest:
            return None
        scores = sorted(self.scores(latest[0]["router"]))
        quantiles = [round(scores[round(i * (len(scores) - 1) / (QUANTILES - 1))], 6) for i in range(QUANTILES)]
        return {"router": latest[0]["router"], "n": len(scores), "quantiles": quantiles}

    def _period(self, since: float) -> dict[str, Any]:
        [row] = self._rows(
            """
            SELECT count(*) AS requests,
                coalesce(sum(route = 'local' AND outcome IN ('ok', 'cancelled')), 0) AS local,
                coalesce(sum(route = 'cloud' AND outcome IN ('ok', 'cancelled')), 0) AS cloud,
                coalesce(sum(outcome = 'cancelled'), 0) AS cancelled,
                coalesce(sum(outcome NOT IN ('ok', 'cancelled')), 0) AS failed, coalesce(sum(degraded), 0) AS degraded,
                coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
                coalesce(sum(completion_tokens), 0) AS completion_tokens, total(cost_usd) AS cost_usd,
                total(saved_usd) AS saved_usd, total(cost_usd * estimated) AS estimated_usd,
                coalesce(sum(route = 'cloud' AND cost_usd IS NULL), 0) AS unpriced
            FROM requests WHERE time >= ?
            """,
            since,
        )
        answered = row["local"] + row["cloud"]
        reasons = self._rows(
            "SELECT reason, count(*) AS n FROM requests WHERE time >= ? AND reason IS NOT NULL GROUP BY reason "
            "ORDER BY n DESC, reason",
            since,
        )
        return {
            "since": since,
            **dict(row),
            "local_share": row["local"] / answered if answered else None,
            "by_reason": {reason["reason"]: reason["n"] for reason in reasons},
            "speed": {route: self._speed(route, since) for route in ("local", "cloud")},
        }

    def _speed(self, route: str, since: float) -> dict[str, float | None]:
        """Of whole answers: percentiles of the time to the first word, median of all, tokens per second after it.

        The rate is of answers long enough that it matters little what was held back before that word: of a call of a
        tool that is all up to its arguments.
        """
        where = "FROM requests WHERE time >= ? AND route = ? AND outcome = 'ok' AND first_ms IS NOT NULL"
        long = f"FILTER (WHERE completion_tokens >= {ENOUGH_TOKENS})"
        [row] = self._rows(
            "SELECT count(*) AS n, "
            f"1000 * total(completion_tokens - 1) {long} / nullif(total(total_ms - first_ms) {long}, 0) AS rate "
            f"{where}",
            since,
            route,
        )

        def at(column: str, share: float) -> float | None:
            query = f"SELECT {column} {where} ORDER BY {column} LIMIT 1 OFFSET ?"
            found = self._rows(query, since, route, int(share * max(row["n"] - 1, 0)))
            return found[0][0] if found else None

        return {
            "first_ms_p50": at("first_ms", 0.5),
            "first_ms_p95": at("first_ms", 0.95),
            "total_ms_p50": at("total_ms", 0.5),
            "tokens_per_second": row["rate"],
        }

    def _hours(self, now: float) -> list[dict[str, Any]]:
        starts = [(now // 3600 - back) * 3600 for back in range(23, -1, -1)]
        sums = self._sums("CAST(time / 3600 AS INTEGER)", starts[0])
        return [{"start": start, **sums.get(int(start // 3600), NOTHING)} for start in starts]

    def _days(self, midnight: datetime) -> list[dict[str, Any]]:
        # By the calendar: where clocks are changed a day has not always 24 hours.
        starts = [midnight - timedelta(days=back) for back in range(DAYS - 1, -1, -1)]
        sums = self._sums("date(time, 'unixepoch', 'localtime')", starts[0].timestamp())
        return [{"start": start.timestamp(), **sums.get(f"{start:%Y-%m-%d}", NOTHING)} for start in starts]

    def _sums(self, slot: str, since: float) -> dict[Any, dict[str, Any]]:
        """Of the requests from `since` on, by what the SQL expression `slot` makes of their time."""
        rows = self._rows(
            f"""
            SELECT {slot} AS slot,
                sum(route = 'local' AND outcome IN ('ok', 'cancelled')) AS local,
                sum(route = 'cloud' AND outcome IN ('ok', 'cancelled')) AS cloud,
                sum(outcome NOT IN ('ok', 'cancelled')) AS failed, total(cost_usd) AS cost_usd,
                total(saved_usd) AS saved_usd
            FROM requests WHERE time >= ? AND route IS NOT NULL GROUP BY slot
            """,  # noqa: S608 - constants
            since,
        )
        return {row["slot"]: {name: row[name] for name in NOTHING} for row in rows}

    def _rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"the ledger cannot be read ({error}); if that stays so, move it away") from None


@contextmanager
def opened(path: Path) -> Iterator[History]:
    """The history in the file `path`. Raises `LedgerError`."""
    if not path.exists():
        raise LedgerError(f"there is no ledger at {path} yet: it begins with the first request to `upcall serve`")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCKED_SECONDS)
    except sqlite3.Error as error:
        raise LedgerError(f"the ledger {path} cannot be opened: {error}") from None
    with suppress(sqlite3.Error):  # what cannot be read says so when it is asked
        if 0 < connection.execute("PRAGMA user_version").fetchone()[0] < len(MIGRATIONS):
            open_for_writing(path).close()
    connection.row_factory = sqlite3.Row
    try:
        yield History(connection)
    finally:
        connection.close()


def _record(values: Mapping[str, Any]) -> Record:
    return Record(**{**values, "degraded": bool(values["degraded"]), "estimated": bool(values["estimated"])})
