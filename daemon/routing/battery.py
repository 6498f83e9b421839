"""Whether this machine runs on a battery that is to be spared."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

READ_SECONDS = 30.0
"""A reading holds for so long; some batteries take a while to answer."""


@dataclass(frozen=True, slots=True)
class Charge:
    level: float
    """0 to 1."""
    discharging: bool

    def is_below(self, floor: float | None) -> bool:
        """Whether the battery is being used up and has less than `floor` left; never where no floor is set."""
        return floor is not None and self.discharging and self.level < floor


def charge(sensor: Callable[[], Any] = psutil.sensors_battery) -> Charge | None:
    """What the battery says; `None` where there is none, or none that can be read."""
    try:
        battery = sensor()
    except OSError:
        return None
    return Charge(battery.percent / 100, battery.power_plugged is False) if battery else None


class Battery:
    def __init__(self, floor: float | None, read: Callable[[], Charge | None] = charge) -> None:
        self._floor = floor
        self._read = read
        self._charge: Charge | None = None
        self._due = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def is_low(self) -> bool:
        """Whether prompts should spare it; waits for the first reading only."""
        if self._floor is None:
            return False
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + READ_SECONDS
            first, self._reading = self._reading is None, asyncio.create_task(self._look())
            if first:
                await asyncio.wait([self._reading])
        return self._charge is not None and self._charge.is_below(self._floor)

    async def _look(self) -> None:
        self._charge = await asyncio.to_thread(self._read)
