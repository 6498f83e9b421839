"""The router causal_llm as served: the local model judges, in time or not at all."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from daemon.config import Cloud, Routing
from daemon.processes.link import Link, WorkerUp
from daemon.processes.workers import Workers
from daemon.routing import judge
from daemon.routing.judge import Judgement, LocalJudge
from daemon.routing.policy import Reason
from daemon.routing.scorer import Scorer
from models.client import WorkerClient
from models.interface import Labelled
from models.store import Store
from models.worker import serve
from routers.causal_llm import reading
from tests.daemon.conftest import Escalating, StartDaemon
from tests.daemon.harness import client

PATIENT = {"ROUTING__ROUTER": "causal_llm", "ROUTING__JUDGE_SECONDS": "60"}
PROMPT = "How many moons does Mars have, and what are they called?"


def asking(*turns: str, model: str = "auto") -> dict[str, Any]:
    messages = [{"role": "user", "content": turn} for turn in turns]
    return {"model": model, "messages": messages}


def test_the_local_model_judges_and_the_threshold_decides(escalating: Escalating) -> None:
    daemon = escalating("http://127.0.0.1:9/v1", **PATIENT)
    seen = daemon.call("POST", "/v1/route", asking(PROMPT))

    version = reading(Store().find("smollm2-135m").sha256).version
    assert seen["router"] == f"causal_llm@{version}"
    assert 0 < seen["score"] < 1
    for threshold, route in ((0, "cloud"), (1, "local")):
        named = daemon.call("POST", "/v1/route", asking(PROMPT, model=f"router-causal_llm-{threshold}"))
        assert (named["route"], named["score"]) == (route, seen["score"])


def test_a_judgement_is_remembered_for_the_turns_that_follow(escalating: Escalating) -> None:
    daemon = escalating("http://127.0.0.1:9/v1", **PATIENT)
    first = daemon.call("POST", "/v1/route", asking(PROMPT))
    followed = daemon.call("POST", "/v1/route", asking(PROMPT, "continue"))

    assert followed["score"] == first["score"]
    answer = client(daemon).chat.completions.with_raw_response.create(
        model="router-causal_llm-1", messages=asking(PROMPT)["messages"], max_tokens=4
    )
    assert answer.headers["x-upcall-reason"] == "below_threshold"
    assert answer.parse().model == "smollm2-135m"


def test_a_judge_without_time_keeps_the_prompt_here_and_says_so(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(ROUTING__ROUTER="causal_llm", ROUTING__JUDGE_SECONDS="0.000001")
    seen = daemon.call("POST", "/v1/route", asking(PROMPT))

    assert (seen["route"], seen["reason"], seen["score"]) == ("local", "not_judged", None)
    assert "no time to judge" in seen["explanation"]


def test_a_model_without_a_calibration_is_named_with_what_to_run(
    start_daemon: StartDaemon, smollm2: Path, tmp_path: Path
) -> None:
    other = tmp_path / "another.gguf"
    # Bytes after the last tensor: the same model in a file of its own.
    other.write_bytes(smollm2.read_bytes() + b"\0")
    daemon = start_daemon(LOCAL__MODEL=str(other), **PATIENT)
    seen = daemon.call("POST", "/v1/route", asking(PROMPT))

    assert (seen["route"], seen["reason"]) == ("local", "not_calibrated")
    assert "upcall judge train" in daemon.call("GET", "/healthz")["router"]["detail"]


class Clerk:
    """Finds a text as likely as its own number says, once it may answer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def label_logprobs(self, text: str, labels: Sequence[str]) -> Labelled:
        self.asked.append(text)
        await self.may_answer.wait()
        return Labelled([float(text) for _ in labels], self._name)

    async def close(self) -> None:
        pass


class Office:
    """A judge over real connections, and the supervisor's end of the line, which gives it a local model."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._workers, self._link = Workers(ours, Cloud()), Link(theirs, lambda message, sock: None)
        self._serving: list[asyncio.Task[None]] = []
        self._client: WorkerClient | None = None
        self.judge = LocalJudge(self._workers)

    async def hire(self, clerk: Clerk) -> None:
        """Have `clerk` be the local model from now on."""
        near, far = socket.socketpair()
        self._serving.append(asyncio.create_task(serve(far, clerk)))  # type: ignore[arg-type]
        with near:
            self._link.send(WorkerUp("local"), near)
        before = self._client
        while self._client is before:
            await asyncio.sleep(0.01)
            self._client = await self._workers.get("local")

    async def close(self) -> None:
        await self._workers.close()
        self._link.close()
        for serving in self._serving:
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


@pytest_asyncio.fixture
async def office() -> AsyncIterator[Office]:
    office = Office()
    yield office
    await office.close()


async def test_a_judgement_that_is_forgotten_for_a_newer_one_still_counts_for_who_asked(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "REMEMBERED", 2)
    clerk = Clerk("one")
    await office.hire(clerk)

    assert await office.judge.judge(["1", "2"], ["a"]) == Judgement("one", [[1.0], [2.0]])
    assert await office.judge.judge(["1", "3"], ["a"]) == Judgement("one", [[1.0], [3.0]])
    assert await office.judge.judge(["1", "4", "5", "4"], ["a"]) == Judgement("one", [[1.0], [4.0], [5.0], [4.0]])
    assert await office.judge.judge(["4"], ["a"]) == Judgement("one", [[4.0]])
    assert clerk.asked == ["1", "2", "3", "4", "5"]  # what is asked for again and again is forgotten last


async def test_who_asked_a_model_that_is_replaced_meanwhile_gets_its_answer_and_the_next_asks_the_new_one(
    office: Office,
) -> None:
    before, after = Clerk("before"), Clerk("after")
    before.may_answer.clear()
    await office.hire(before)
    judging = asyncio.create_task(office.judge.judge(["1"], ["a"]))
    naming = asyncio.create_task(office.judge.model_sha256())
    async with asyncio.timeout(60):
        await asyncio.sleep(0)  # both know whom they ask
        await office.hire(after)
        assert await office.judge.judge(["2"], ["a"]) == Judgement("after", [[2.0]])
        before.may_answer.set()
        assert (await judging, await naming) == (Judgement("before", [[1.0]]), "before")

    assert await office.judge.judge(["1"], ["a"]) == Judgement("after", [[1.0]])
    assert (sorted(before.asked), after.asked) == (["", "1"], ["2", "1"])
    assert await office.judge.model_sha256() == "after"


class Replaced(LocalJudge):
    """A judge whose model was replaced after it was asked for its name."""

    def __init__(self, named: str, judging: str) -> None:
        self._named, self._judging = named, judging

    async def model_sha256(self) -> str:
        return self._named

    async def judge(self, texts: Sequence[str], labels: Sequence[str]) -> Judgement:
        return Judgement(self._judging, [[0.0] * len(labels)] * len(texts))


async def test_what_a_model_judged_is_never_read_as_the_judgement_of_the_one_before() -> None:
    known, unknown = Store().find("smollm2-135m").sha256, "0" * 64
    for judging in (known, unknown):
        scorer = Scorer(Routing(router="causal_llm"), Store(), Replaced(known, judging))
        look = await scorer.look([{"role": "user", "content": PROMPT}], None, None)
        scorer.close()
        assert (look.score is None) == (judging == unknown)
    assert look.unscored is Reason.NOT_CALIBRATED
