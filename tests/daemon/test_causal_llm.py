"""The router causal_llm as served: the local model judges, in time or not at all."""

from pathlib import Path
from typing import Any

from models.store import Store
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
