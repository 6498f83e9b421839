"""Clients that people use, unmodified, in environments of their own; each program uses one as its manual says."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Require
from tests.daemon.harness import Daemon

HERE = Path(__file__).parent
PYTHON = HERE.parent.parent / ".venv-clients/bin/python"
WEATHER = "It is 4 degrees in Oslo."
GREETING = "Hello from the emulator."


@pytest.fixture
def run(served: Daemon, require: Require, tmp_path: Path) -> Any:
    """`run("ollama")` gives what `programs/with_ollama.py` printed."""

    def run(client: str) -> dict[str, Any]:
        program = next(HERE.glob(f"programs/with_{client}.*"))
        if program.suffix == ".mjs":
            interpreter = shutil.which("node")
            require(interpreter and (HERE / "node_modules").exists(), "needs node and its clients (make test-deps)")
        else:
            interpreter = str(PYTHON)
            require(PYTHON.exists(), "needs .venv-clients (make test-deps)")
        # Prices and the like are fetched by some clients at their start; nothing here may leave the machine.
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        command = [str(interpreter), str(program), served.url]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-4000:]
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    return run


def test_the_ollama_client_finds_an_ollama_server(run: Any, served: Daemon) -> None:
    got = run("ollama")

    assert got["whole"]
    assert got["whole"] == got["streamed"]
    assert (got["done_reason"], got["eval_count"]) == ("length", 6)
    assert got["generated"]
    assert got["calls"] == [["get_weather", {"city": "Oslo"}]]
    assert got["told"] == WEATHER
    assert json.loads(got["capital"]) == {"capital": "Lima"}
    assert got["embedding"] == 512
    assert got["models"][:3] == ["auto", "local", "cloud"]
    assert "tools" in got["capabilities"]
    assert got["running"] == ["local"]
    assert got["refusal"][0] == 403
    assert "upcall pull" in got["refusal"][1]
    # What began here and would not do reads as any answer of the cloud's, whole and streamed.
    assert got["escalated"] == got["direct"]
    assert len(got["escalated"]) > 3
    reasons = [row["reason"] for row in served.call("GET", "/upcall/decisions")["decisions"]]
    assert reasons.count("low_confidence") >= 2


def test_langchain_works_through_chat_responses_and_embeddings(run: Any) -> None:
    got = run("langchain")

    assert got["whole"]
    assert got["whole"] == got["streamed"]
    assert got["tokens"] == 6
    assert got["calls"] == [["get_weather", {"city": "Oslo"}]]
    assert got["told"] == WEATHER
    assert got["capital"] == "Lima"
    assert got["responses"] == got["routed"] == GREETING
    assert got["embedding"] == 512
    assert "temperature" in got["refused"]


def test_litellm_works_in_three_wire_formats(run: Any) -> None:
    got = run("litellm")

    assert got["whole"]
    assert got["whole"] == got["streamed"]
    assert got["calls"] == [["get_weather", {"city": "Oslo"}]]
    assert got["told"] == WEATHER
    assert got["anthropic"] == got["ollama"] == GREETING
    assert got["embedding"] == 512
    assert "temperature" in got["refused"]


def test_llm_works_by_its_settings_file(run: Any) -> None:
    got = run("llm")

    assert got["whole"]
    assert got["whole"] == got["streamed"]
    assert got["told"].endswith(WEATHER)
    assert json.loads(got["capital"]) == {"capital": "Lima"}
    assert "max_tokens" in got["refused"]


def test_the_openai_client_for_javascript_works(run: Any) -> None:
    got = run("openai")

    assert got["whole"]
    assert got["whole"] == got["streamed"]
    assert got["calls"] == [["get_weather", {"city": "Oslo"}]]
    assert got["told"] == WEATHER
    assert json.loads(got["capital"]) == {"capital": "Lima"}
    assert got["responses"] == GREETING
    assert (got["first_event"], got["last_event"]) == ("response.created", "response.completed")
    assert got["embedding"] == 512
    assert "temperature" in got["refused"]
