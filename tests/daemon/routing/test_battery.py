"""A low battery is spared by letting more prompts go up, and never against privacy mode."""

import asyncio
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from daemon.routing import battery
from daemon.routing.battery import Battery, Charge, charge
from tests.conftest import Require
from tests.daemon.harness import running_daemon
from tests.emulators.servers import KEY

SUPPLY = Path("/sys/class/power_supply")
HELLO: Any = {"messages": [{"role": "user", "content": "Prove that there are infinitely many primes."}]}
Sensed = namedtuple("Sensed", "percent power_plugged")


@pytest.mark.parametrize(
    ("sensed", "found"),
    [
        (None, None),
        (Sensed(12, False), Charge(0.12, True)),
        (Sensed(12, True), Charge(0.12, False)),
        (Sensed(12, None), Charge(0.12, False)),
    ],
)
def test_only_a_battery_known_to_discharge_counts_as_discharging(sensed: Any, found: Charge | None) -> None:
    assert charge(lambda: sensed) == found


def test_a_battery_that_cannot_be_read_is_none() -> None:
    def broken() -> None:
        raise OSError("no such device")

    assert charge(broken) is None


@pytest.mark.parametrize(
    ("now", "floor", "low"),
    [
        (Charge(0.1, True), 0.2, True),
        (Charge(0.2, True), 0.2, False),
        (Charge(0.1, False), 0.2, False),
        (Charge(0.1, True), None, False),
        (None, 0.2, False),
    ],
)
async def test_it_is_spared_below_the_floor_while_it_discharges(
    now: Charge | None, floor: float | None, low: bool
) -> None:
    assert await Battery(floor, lambda: now).is_low() is low


async def test_it_is_read_once_for_many_prompts_and_again_when_the_reading_is_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readings = iter([Charge(0.1, True), Charge(0.9, True)])
    spared = Battery(0.2, lambda: next(readings))
    assert [await spared.is_low() for _ in range(100)] == [True] * 100

    monkeypatch.setattr(battery, "READ_SECONDS", 0.0)
    spared = Battery(0.2, iter([Charge(0.1, True), *[Charge(0.9, True)] * 10_000]).__next__)
    assert await spared.is_low()
    for _ in range(10_000):
        if not await spared.is_low():
            return
        await asyncio.sleep(0.001)
    pytest.fail("the second reading never came")


@pytest.mark.parametrize(
    ("capacity", "status", "settings", "decided"),
    [
        (15, "Discharging", {}, ("cloud", "battery")),
        (15, "Discharging", {"PRIVACY__MODE": "true"}, ("local", "below_threshold")),
        (15, "Charging", {}, ("local", "below_threshold")),
        (80, "Discharging", {}, ("local", "below_threshold")),
    ],
)
def test_prompts_go_up_with_their_reason_while_this_machines_battery_is_low(
    capacity: int,
    status: str,
    settings: dict[str, str],
    decided: tuple[str, str],
    tmp_path: Path,
    models_ready: Path,
    require: Require,
) -> None:
    require(os.geteuid() == 0 and shutil.which("unshare"), "needs root to lay a battery over /sys")
    require(SUPPLY.is_dir(), "needs a kernel that knows power supplies")
    fake = f"mount -t tmpfs none {SUPPLY} && mkdir {SUPPLY}/BAT0 && cd {SUPPLY}/BAT0"
    fake += f' && echo {capacity} > capacity && echo {status} > status && cd / && exec "$@"'
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "openai").write_text(KEY)
    own = {"LOCAL__BATTERY_FLOOR": "0.2", "LOCAL__BATTERY_SHARE": "1", "ROUTING__CLOUD_SHARE": "0", **settings}
    wrapper = ["unshare", "--mount", "sh", "-c", fake, "sh"]
    with running_daemon(tmp_path, models_ready, own, tmp_path / "credentials", wrapper) as daemon:
        answer = daemon.call("POST", "/v1/route", HELLO)

    assert (answer["route"], answer["reason"]) == decided
