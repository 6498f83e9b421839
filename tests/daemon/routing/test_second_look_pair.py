"""The second look between two models of this machine: a second server stands in for the cloud, and nothing leaves."""

import json
from pathlib import Path

from models.store import Store
from tests.daemon.conftest import Escalating
from tests.daemon.harness import running_daemon, wait_until
from tests.daemon.routing.test_second_look import BELOW_ALL, LOOKING, MESSAGES, SURE_OF_NOTHING


def test_a_second_local_model_answers_what_the_first_began_badly_and_the_first_goes_on_once_it_is_gone(
    escalating: Escalating, store: Store, tmp_path: Path
) -> None:
    home = tmp_path / "strong"
    home.mkdir()
    body = {"model": BELOW_ALL, "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
    explained = {**body, "upcall": {"explain": True}}
    with running_daemon(home, store.root, {"PRIVACY__MODE": "true"}) as strong:
        daemon = escalating(
            f"{strong.url}/v1", CLOUD__MODEL="local", CLOUD__PROVIDER="openai", CLOUD__KEY="none",
            **LOOKING, **SURE_OF_NOTHING,
        )  # fmt: skip
        wait_until(lambda: strong.call("GET", "/healthz")["local"]["state"] == "ready")
        escalated = daemon.call("POST", "/v1/chat/completions", explained)
        asked = strong.call("GET", "/upcall/decisions")["decisions"]
        direct = strong.call("POST", "/v1/chat/completions", {**body, "model": "local"})
    alone = daemon.call("POST", "/v1/chat/completions", explained)
    rows = daemon.call("GET", "/upcall/decisions")["decisions"]

    assert escalated["x_upcall"]["reason"] == "low_confidence"
    assert escalated["choices"] == direct["choices"]
    assert [(row["route"], row["completion_tokens"]) for row in asked] == [("local", 6)]
    assert (alone["x_upcall"]["route"], alone["x_upcall"]["degraded"]) == ("local", True)
    assert alone["choices"][0]["message"]["content"]
    assert alone["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert [row["wasted_tokens"] for row in rows] == [4, 4], json.dumps(rows)
