"""What the gateway knows of the workers, told over a real line by a supervisor that is slow, or overtaken."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from daemon.config import Cloud, Sensitive, Settings
from daemon.processes.link import (
    CheckKey,
    Link,
    Message,
    Priced,
    Reload,
    Reloaded,
    Retired,
    SetShare,
    ShareSet,
    Standing,
    Want,
    WorkerDown,
    WorkerUp,
)
from daemon.processes.workers import Workers

OPEN = Standing(privacy=False, pinned=False, has_key=False, key="none is stored")
HANG_SECONDS = 60.0


class Line:
    """The supervisor's end, which says what a test has it say."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.heard = asyncio.Queue[Message]()
        self.workers = Workers(ours, Cloud())
        self.link = Link(theirs, self._hear)
        self._far: list[socket.socket] = []

    def say(self, *messages: Message) -> None:
        for message in messages:
            self.link.send(message)

    def start_worker(self) -> socket.socket:
        """Say that a cloud worker runs; its own end of the connection to it."""
        near, far = socket.socketpair()
        with near:
            self.link.send(WorkerUp("cloud"), near)
        self._far.append(far)
        return far

    async def hear(self) -> Message:
        async with asyncio.timeout(HANG_SECONDS):
            return await self.heard.get()

    async def close(self) -> None:
        await self.workers.close()
        self.link.close()
        for far in self._far:
            far.close()

    def _hear(self, message: Message | None, _: socket.socket | None) -> None:
        if message:
            self.heard.put_nowait(message)


@pytest_asyncio.fixture
async def line() -> AsyncIterator[Line]:
    line = Line()
    yield line
    await line.close()


async def test_that_the_worker_before_ended_is_no_answer_to_who_waits_for_the_next(line: Line) -> None:
    asking = asyncio.create_task(line.workers.get("cloud"))
    assert await line.hear() == Want("cloud")
    line.say(WorkerDown("cloud", "it ended with status -9", ended=True))
    line.start_worker()

    assert await asking is not None


async def test_that_a_worker_may_not_start_is_an_answer(line: Line) -> None:
    asking = asyncio.create_task(line.workers.get("cloud"))
    await line.hear()
    line.say(WorkerDown("cloud", "privacy mode is on"))

    assert await asking is None
    assert line.workers.why_down["cloud"] == "privacy mode is on"


async def test_a_worker_that_ends_while_nobody_waits_is_down_for_who_asks_before_the_next_is_there(line: Line) -> None:
    asking = asyncio.create_task(line.workers.get("cloud"))
    await line.hear()
    line.start_worker()
    assert await asking is not None
    line.say(WorkerDown("cloud", "it ended", ended=True), Priced(()))
    await line.workers.learn_prices()

    assert line.workers.why_down["cloud"] == "it ended"


async def test_a_worker_of_earlier_settings_is_not_asked_even_if_it_came_up_during_the_reload(line: Line) -> None:
    changed = Settings(cloud=Cloud(model="another"))
    line.say(Reload(changed, cloud_changed=True, prices_changed=True))
    line.workers.reloaded(await line.workers.reloads.get())
    assert await line.hear() == Reloaded("")
    line.start_worker()
    line.say(Retired("cloud"), Priced(()))
    await line.workers.learn_prices()
    asking = asyncio.create_task(line.workers.get("cloud"))
    assert await line.hear() == Want("cloud")
    line.start_worker()

    assert await asking is not None


async def test_a_key_is_looked_for_until_the_look_is_over_whatever_else_is_said_meanwhile(line: Line) -> None:
    line.say(OPEN)
    first = asyncio.create_task(line.workers.look_for_key())
    assert await line.hear() == CheckKey()
    second = asyncio.create_task(line.workers.look_for_key())
    line.say(Standing(privacy=True, pinned=False, has_key=False, key=""), Priced(()))
    await line.workers.learn_prices()
    assert not first.done()
    assert not second.done()
    line.say(Standing(privacy=False, pinned=False, has_key=True, key="here", looks=1))

    assert (await first, await second) == (True, True)
    assert line.heard.empty(), "one look was enough"


async def test_who_sets_the_share_hears_what_became_of_it_in_the_order_of_asking(line: Line) -> None:
    setting = [asyncio.create_task(line.workers.set_cloud_share(share)) for share in (0.1, 0.2)]
    assert [await line.hear(), await line.hear()] == [SetShare(0.1), SetShare(0.2)]
    line.say(ShareSet("the disk is full"), ShareSet(""))

    assert [await each for each in setting] == ["the disk is full", ""]


async def test_settings_of_any_size_pass_the_line(line: Line) -> None:
    many = Settings(sensitive=Sensitive(keywords=tuple(f"keyword number {number}" for number in range(40_000))))
    line.say(Reload(many, cloud_changed=False, prices_changed=False))

    assert await asyncio.wait_for(line.workers.reloads.get(), HANG_SECONDS) == many


async def test_what_is_said_to_who_does_not_listen_waits_in_its_order(line: Line) -> None:
    other, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    heard = asyncio.Queue[Message | None]()
    speaking = Link(other, lambda message, sock: None)
    for number in range(5_000):
        speaking.send(SetShare(number / 5_000))
    listening = Link(theirs, lambda message, sock: heard.put_nowait(message))

    async with asyncio.timeout(HANG_SECONDS):
        assert [await heard.get() for _ in range(5_000)] == [SetShare(number / 5_000) for number in range(5_000)]
    speaking.close()
    listening.close()


@pytest.mark.parametrize("on", [True, False])
async def test_that_privacy_mode_was_switched_on_is_told_at_once(line: Line, on: bool) -> None:
    told: list[bool] = []
    line.workers.on_privacy = lambda: told.append(True)
    line.say(OPEN, Standing(privacy=on, pinned=False, has_key=False, key=""), Priced(()))
    await line.workers.learn_prices()

    assert told == [True] * on
