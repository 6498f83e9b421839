"""The local worker killed over and over, at every stage of an answer."""

import re
import threading
from pathlib import Path
from queue import Queue

import openai
import psutil
import pytest

from tests.daemon.harness import client, running_daemon, wait_until

KILLS = 50
ENOUGH = 15
"""Of the half of them that are meant to come in prefill."""
LONGEST_PAUSE = 2.0
"""Seconds before a worker that has answered is started again."""
LONG = "The quick brown fox jumps over the lazy dog near the river. " * 300


@pytest.mark.timeout(1800)
def test_fifty_kills_in_prefill_and_in_decode_cost_one_answer_each(tmp_path: Path, models_ready: Path) -> None:
    with running_daemon(tmp_path, models_ready, {}) as daemon:
        gateway, asking = daemon.children("daemon.gateway"), client(daemon)
        without_a_word = 0
        for number in range(KILLS):
            wait_until(lambda: daemon.call("GET", "/healthz")["local"]["state"] == "ready")
            (worker,) = daemon.children("local")
            before = computed(worker)
            in_prefill = number % 2 == 0
            request = Request(asking, f"{number}: {LONG}" if in_prefill else f"Count from {number} to a thousand.")
            if in_prefill:
                wait_until(lambda: computed(worker) > before + 0.2)  # noqa: B023 - called in this round only
                without_a_word += request.pieces.empty()
                assert request.is_alive(), f"request {number} ended before it was killed"
            else:
                assert request.pieces.get(timeout=120), f"request {number} ended before it was killed"
            worker.kill()
            worker.wait(120)  # Or it might still be taken for ready in the next round.
            request.join(120)
            assert not request.is_alive(), f"the client of request {number} hangs"
            assert isinstance(request.error, openai.APIError), f"request {number} got {request.error!r}"
        # A round in which this process had to wait too long to kill in time was one in decode.
        assert without_a_word >= ENOUGH
        hello = [{"role": "user", "content": "hello"}]
        answer = asking.chat.completions.create(model="local", messages=hello, max_tokens=2)  # type: ignore[arg-type]
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        assert daemon.children("daemon.gateway") == gateway
    pauses = [float(pause) for pause in re.findall(r"restarting it in ([\d.]+) s", (tmp_path / "log").read_text())]
    assert len(pauses) == KILLS
    assert max(pauses) <= LONGEST_PAUSE


class Request(threading.Thread):
    """A streamed answer, and what became of it."""

    def __init__(self, asking: openai.OpenAI, prompt: str) -> None:
        super().__init__(daemon=True)
        self.pieces: Queue[bool] = Queue()
        self.error: Exception | None = None
        self._client = asking
        self._prompt = prompt
        self.start()

    def run(self) -> None:
        messages = [{"role": "user", "content": self._prompt}]
        try:
            for chunk in self._client.chat.completions.create(  # type: ignore[call-overload]
                model="local", messages=messages, max_tokens=2000, stream=True, logit_bias={"2": -100}
            ):
                if chunk.choices and chunk.choices[0].delta.content:
                    self.pieces.put(True)
        except Exception as error:
            self.error = error
        self.pieces.put(False)


def computed(worker: psutil.Process) -> float:
    times = worker.cpu_times()
    return float(times.user + times.system)
