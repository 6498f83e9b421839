"""What the cloud may cost: every call's most is set aside before it, and settled with what it did cost after it.

Where that stays unknown (the stream was cut, the client left, the provider counted nothing, upcall was killed), the
most that the call can have cost is kept. Sums are in billionths of a dollar, so that they are exact.
"""

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from daemon import config
from daemon.accounts.ledger import Ledger, Record, insert
from daemon.accounts.prices import Price
from daemon.routing.policy import Reason
from models.interface import Usage

NANO = 10**9


@dataclass(slots=True, eq=False)
class Hold:
    """Money set aside for one call."""

    price: Price
    most: int
    """What the call can cost, as far as the provider keeps to the length that it was asked for."""
    beside: int = 0
    """Of that, what the provider's own tools may cost, of which no usage says how much they did."""
    spent: int = 0
    """What it did cost, or may have cost."""
    estimated: bool = False
    """The provider has not said what it counted."""
    day: str = field(default_factory=lambda: _today())

    def sent(self) -> None:
        """The request is on its way: unless more becomes known, it costs the most."""
        self.spent, self.estimated = self.most, True

    def used(self, usage: Usage) -> None:
        """The provider has counted."""
        self.spent = nano(self.price.of(usage)) + self.beside + usage.lost * self.most
        self.estimated = usage.lost > 0 or self.beside > 0

    def failed(self, lost: int) -> None:
        """No answer came, of `lost` tries that the provider may charge for."""
        self.spent, self.estimated = lost * self.most, lost > 0

    @property
    def usd(self) -> float:
        return self.spent / NANO


class Budget:
    """What was spent, on which days; survives restarts in the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._loop = asyncio.get_running_loop()
        self._before: Counter[str] | None = None
        """Nanodollars by day before this process; `None` until the ledger has been read."""
        self._since = Counter[str]()
        """Those of this process, with what is set aside."""
        self._holds: set[Hold] = set()
        ledger.write(self._load)

    @property
    def known(self) -> bool:
        """What was spent before has been read."""
        return self._before is not None

    async def learn(self) -> None:
        """Wait until it has been, or could not be."""
        if not self.known and await self.ledger.written():
            # The writer hands over what it read just before it says that all is written.
            await asyncio.sleep(0)

    def refusal(self, limits: config.Budget, most_usd: float | None, max_usd: float | None) -> Reason | None:
        """Why a call that costs at most `most_usd` (`None`: nobody knows) may not be made now; `None` where it may."""
        if not limits.limited and max_usd is None:
            return None
        if most_usd is None:
            return Reason.UNKNOWN_PRICE
        if max_usd is not None and nano(most_usd) > nano(max_usd):
            return Reason.MAX_COST
        if limits.limited and (self._before is None or self.ledger.trouble):
            return Reason.BUDGET_UNKNOWN
        today = _today()
        if limits.daily_usd is not None and self._spent(today) + nano(most_usd) > nano(limits.daily_usd):
            return Reason.BUDGET
        if limits.monthly_usd is not None and self._spent(today[:7]) + nano(most_usd) > nano(limits.monthly_usd):
            return Reason.BUDGET_MONTH
        return None

    @contextmanager
    def hold(
        self, price: Price, most_usd: float, id: str, wire: str, model: str, beside_usd: float = 0.0
    ) -> Iterator[Hold]:
        """Set `most_usd` aside for a call, `beside_usd` of it for the provider's tools; then what it cost counts."""
        hold = Hold(price, nano(most_usd), nano(beside_usd))
        self._holds.add(hold)
        self._since[hold.day] += hold.most
        self.ledger.write(lambda connection: _set_aside(connection, id, wire, model, hold))
        try:
            yield hold
        finally:
            self._holds.discard(hold)
            self._since[hold.day] += hold.spent - hold.most
            self.ledger.write(lambda connection: _settle(connection, id, hold))

    def shown(self, limits: config.Budget) -> dict[str, Any]:
        """Limits and what they have to hold, in US dollars, as a JSON object; what is in flight counts as spent."""
        today = _today()
        return {
            "daily_usd": limits.daily_usd,
            "monthly_usd": limits.monthly_usd,
            "spent_today_usd": self._spent(today) / NANO,
            "spent_month_usd": self._spent(today[:7]) / NANO,
            "in_flight_usd": sum(hold.most for hold in self._holds) / NANO,
            "trouble": self.ledger.trouble or None,
        }

    def _spent(self, period: str) -> int:
        """In nanodollars, on the days whose date begins with `period`."""
        counters = (self._before or Counter(), self._since)
        return sum(nanos for counter in counters for day, nanos in counter.items() if day.startswith(period))

    def _load(self, connection: sqlite3.Connection) -> None:
        held = connection.execute("SELECT id, time, wire, model, nanos FROM holds").fetchall()
        for id, at, wire, model, nanos in held:
            # The process that set this aside was killed: what became of its call nobody knows.
            cost = nanos / NANO
            lost = Record(
                id=id, time=at, wire=wire, outcome="lost", route="cloud", model=model, cost_usd=cost, estimated=True
            )
            insert(connection, lost)
        connection.execute("DELETE FROM holds")
        spent = Counter(dict(connection.execute("SELECT day, nanos FROM spend WHERE day >= date('now', '-40 days')")))
        self._loop.call_soon_threadsafe(self._know, spent)

    def _know(self, spent: "Counter[str]") -> None:
        self._before = spent


def nano(usd: float) -> int:
    return round(usd * NANO)


def _today() -> str:
    """By the clock of where the machine is now: it may have travelled since the start."""
    time.tzset()
    return time.strftime("%Y-%m-%d")


def _set_aside(connection: sqlite3.Connection, id: str, wire: str, model: str, hold: Hold) -> None:
    connection.execute(
        "INSERT INTO holds (id, time, wire, model, day, nanos) VALUES (?, ?, ?, ?, ?, ?)",
        (id, time.time(), wire, model, hold.day, hold.most),
    )
    _spend(connection, hold.day, hold.most)


def _settle(connection: sqlite3.Connection, id: str, hold: Hold) -> None:
    if connection.execute("DELETE FROM holds WHERE id = ?", (id,)).rowcount:
        _spend(connection, hold.day, hold.spent - hold.most)


def _spend(connection: sqlite3.Connection, day: str, nanos: int) -> None:
    connection.execute(
        "INSERT INTO spend (day, nanos) VALUES (?, ?) ON CONFLICT (day) DO UPDATE SET nanos = nanos + excluded.nanos",
        (day, nanos),
    )
