"""Frames between processes: whole and in order however their bytes arrive, and no more than the other side reads."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from models.frames import FROM_WORKER, MAX_FRAME, TO_WORKER, Channel, Counted, Emit, FromWorker, Refused, ToWorker
from models.interface import TextDelta

FRAMES: list[FromWorker] = [Emit(1, TextDelta("olá " * 300)), Counted(2, 7), Refused(3, ""), Emit(1, TextDelta("…"))]


def encoded(frames: list[FromWorker]) -> bytes:
    bodies = [FROM_WORKER.dump_json(frame) for frame in frames]
    return b"".join(len(body).to_bytes(4, "big") + body for body in bodies)


@pytest_asyncio.fixture
async def line() -> AsyncIterator[tuple[Channel[ToWorker, FromWorker], socket.socket]]:
    """A channel, and the bare other end of its socket."""
    near, far = socket.socketpair()
    far.setblocking(False)
    channel = await Channel.over(near, TO_WORKER, FROM_WORKER)
    yield channel, far
    far.close()
    async with asyncio.timeout(60):
        await channel.close()


@pytest.mark.parametrize("size", [1, 3, 700, 1 << 20])
async def test_frames_come_whole_and_in_order_however_their_bytes_arrive(
    line: tuple[Channel[ToWorker, FromWorker], socket.socket], size: int
) -> None:
    channel, far = line
    got: list[FromWorker] = []
    channel.listen(got.append)
    data = encoded(FRAMES)
    for start in range(0, len(data), size):
        await asyncio.get_running_loop().sock_sendall(far, data[start : start + size])
        await asyncio.sleep(0)
    far.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(60):
        assert await channel.ended == ""
    assert got == FRAMES


@pytest.mark.parametrize(
    ("last", "wrong"),
    [
        ((MAX_FRAME + 1).to_bytes(4, "big"), "announced"),
        ((2).to_bytes(4, "big") + b"{}" + encoded(FRAMES), "not of the protocol"),
    ],
)
async def test_what_is_no_frame_ends_the_channel_behind_the_frames_before_it(
    line: tuple[Channel[ToWorker, FromWorker], socket.socket], last: bytes, wrong: str
) -> None:
    channel, far = line
    got: list[FromWorker] = []
    channel.listen(got.append)
    await asyncio.get_running_loop().sock_sendall(far, encoded(FRAMES) + last)
    async with asyncio.timeout(60):
        assert wrong in await channel.ended
        with pytest.raises(ConnectionError):
            await channel.drain()
    assert got == FRAMES


async def test_a_sender_waits_for_a_reader_that_falls_behind_and_hears_when_it_is_gone() -> None:
    near, far = socket.socketpair()
    sender = await Channel.over(near, FROM_WORKER, TO_WORKER)
    reader = await Channel.over(far, TO_WORKER, FROM_WORKER)
    sender.listen(lambda frame: None)
    frame = Emit(1, TextDelta("x" * 2**20))

    async def send() -> None:
        sender.send(frame)
        await sender.drain()

    async with asyncio.timeout(60):
        sending = asyncio.create_task(send())
        assert not (await asyncio.wait([sending], timeout=0.2))[0]
        got = asyncio.Queue[FromWorker]()
        reader.listen(got.put_nowait)
        await sending
        assert await got.get() == frame
        await reader.close()
        await sender.ended
        with pytest.raises(ConnectionError):
            await send()
