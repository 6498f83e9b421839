"""Conversations kept across restarts: only where that is asked for, and not in privacy mode."""

from pathlib import Path
from typing import Any

from daemon import resolve
from daemon.config import Local
from models.store import Store
from tests.daemon.harness import Daemon, client, running_daemon, wait_until

LONG = "The quick brown fox jumps over the lazy dog near the river. " * 10
ON = {"LOCAL__CACHE_ON_DISK": "true"}


def ask(daemon: Daemon, text: str = LONG) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client(daemon).chat.completions.create(model="local", messages=messages, max_tokens=1, temperature=0)


def kept(home: Path) -> set[str]:
    return {path.name for path in (home / "state" / "upcall").glob("kv/*")}


def test_conversations_go_on_after_a_restart_until_they_are_forgotten(tmp_path: Path, models_ready: Path) -> None:
    with running_daemon(tmp_path, models_ready, ON) as daemon:
        ask(daemon)
        layers = daemon.call("GET", "/healthz")["kernel"]["local"]
        wait_until(lambda: kept(tmp_path))  # After a rest: a stop has little time for it.
    assert len(kept(tmp_path)) == 1

    with running_daemon(tmp_path, models_ready, ON) as daemon:
        after = ask(daemon)
        assert daemon.call("GET", "/healthz")["kernel"]["local"] == layers
        daemon.cli("privacy", "on")
        wait_until(lambda: daemon.call("GET", "/healthz")["privacy"])
        ask(daemon, "Something else. " + LONG)
    assert after.usage.prompt_tokens_details.cached_tokens == after.usage.prompt_tokens - 1
    assert len(kept(tmp_path)) == 1, "privacy mode wrote something"

    with running_daemon(tmp_path, models_ready, ON) as daemon:
        assert ask(daemon).usage.prompt_tokens_details.cached_tokens == 0, "privacy mode read something"
        assert daemon.cli("privacy", "forget").stdout == "files of conversations deleted: 1\n"
    assert kept(tmp_path) == set()


def test_settings_of_the_local_model_reach_its_engine(smollm2: Path) -> None:
    local = Local(model=str(smollm2), idle_seconds=5, timeout=7, cache_disk_mib=3)
    llama = resolve.local(local, Store())
    assert (llama.idle_unload, llama.timeout, llama.disk_bytes) == (5, 7, 3 * 2**20)
    assert not llama.disk_folder


def test_nothing_is_kept_unless_it_is_asked_for(tmp_path: Path, models_ready: Path) -> None:
    with running_daemon(tmp_path, models_ready, {}) as daemon:
        ask(daemon)
    assert not list(tmp_path.rglob("kv*"))
