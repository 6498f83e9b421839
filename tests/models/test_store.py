"""The store: names, verification before use, and what several pulls at once may do to each other."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from models.store import NotPulled, Store, StoreError

CONTENT = b"GGUF" + random.Random(11).randbytes(1_000_000)


@pytest.fixture
def own(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_every_entry_pins_its_file_and_every_wheel_it_comes_in(own: Store) -> None:
    entries = own.entries()
    assert {"smollm2-135m", "qwen2.5-coder-1.5b", "llama3-8b", "use-multilingual", "minilm-l6"} <= {
        e.name for e in entries
    }
    assert len({entry.file for entry in entries}) == len(entries)
    for entry in entries:
        assert bool(entry.urls) != bool(entry.packages), entry.name
        assert all(url.startswith("https://") for url in entry.urls)
        for digest in (entry.sha256, *(member.wheel_sha256 for member in entry.packages)):
            assert len(bytes.fromhex(digest)) == 32, entry.name
        if entry.packages:
            assert sum(member.size for member in entry.packages) == entry.size
        assert (entry.context_length > 0) == (entry.kind == "gguf"), entry.name
        for required in entry.requires:
            own.find(required)


def test_the_default_model_comes_out_of_the_package_registry_as_pinned(store: Store, smollm2: Path) -> None:
    assert smollm2.stat().st_size == store.find("smollm2-135m").size
    store.verify(smollm2, store.find("smollm2-135m"))


def test_an_unknown_name_is_answered_with_the_nearest_ones(own: Store) -> None:
    with pytest.raises(StoreError, match=r"no model is called 'lama3-8b'; did you mean llama3-8b"):
        own.find("lama3-8b")


def test_a_model_that_is_not_here_names_the_command_that_brings_it(own: Store) -> None:
    with pytest.raises(NotPulled, match="run `upcall pull llama3-8b`"):
        own.path("llama3-8b")


def test_a_pulled_file_is_there_under_its_name_and_for_its_user_alone(own: Store, serve: Callable) -> None:
    mirror = serve(CONTENT)
    path = own.pull_url(mirror.url, mirror.sha256, "mine")
    assert path == own.path("mine")
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o644
    assert own.root.stat().st_mode & 0o777 == 0o700
    assert not list(own.root.glob("*.part"))


def test_a_wrong_hash_leaves_nothing_that_could_be_used(own: Store, serve: Callable) -> None:
    with pytest.raises(StoreError, match=r"mine was not pulled: .* other bytes than its SHA-256 promises") as caught:
        own.pull_url(serve(CONTENT).url, "0" * 64, "mine")
    assert "\n" not in str(caught.value)
    assert not list(own.root.glob("mine*"))
    with pytest.raises(StoreError, match="no model is called 'mine'"):
        own.path("mine")


def test_a_name_added_by_url_is_known_to_the_next_process_until_removed(own: Store, serve: Callable) -> None:
    mirror = serve(CONTENT)
    own.pull_url(mirror.url, mirror.sha256.upper(), "mine")
    entry = Store(own.root).find("mine")
    assert (entry.kind, entry.size, entry.sha256) == ("gguf", len(CONTENT), mirror.sha256)
    (own.root / "mine.gguf.derived").mkdir()
    Store(own.root).remove("mine")
    assert not list(own.root.glob("mine*"))
    with pytest.raises(StoreError, match="no model is called"):
        own.find("mine")


@pytest.mark.parametrize("name", ["llama3-8b", "../evil", "a/b", "", ".hidden", "Capital", "mine.gguf", "x" * 65])
def test_a_name_that_is_taken_or_leads_elsewhere_is_refused(own: Store, serve: Callable, name: str) -> None:
    mirror = serve(CONTENT)
    with pytest.raises(StoreError, match="cannot be the name"):
        own.pull_url(mirror.url, mirror.sha256, name)
    assert mirror.seen == []


@pytest.mark.parametrize(
    "url", ["http://example.org/m.gguf", "file:///etc/passwd", "file://localhost/etc/passwd", "ftp://127.0.0.1/m.gguf"]
)
def test_only_https_and_this_machine_are_pulled_from(own: Store, url: str) -> None:
    with pytest.raises(StoreError, match="over https only"):
        own.pull_url(url, "0" * 64, "mine")


def test_a_damaged_file_is_refused_and_the_next_pull_repairs_it(own: Store, serve: Callable) -> None:
    mirror = serve(CONTENT)
    path = own.pull_url(mirror.url, mirror.sha256, "mine")
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(StoreError, match="run `upcall rm mine` and `upcall pull mine`"):
        own.path("mine")
    own.pull("mine")
    assert own.path("mine").read_bytes() == CONTENT


def test_a_file_is_hashed_again_only_when_its_size_or_time_changed(own: Store, serve: Callable) -> None:
    mirror = serve(CONTENT)
    path = own.pull_url(mirror.url, mirror.sha256, "mine")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(bytes(len(CONTENT)))
    os.utime(path, ns=times)
    assert own.path("mine") == path
    path.touch()
    with pytest.raises(StoreError, match="damaged or was changed"):
        own.path("mine")
    path.write_bytes(CONTENT)
    assert own.path("mine") == path


def test_a_model_that_is_here_is_not_fetched_again(own: Store, serve: Callable) -> None:
    mirror = serve(CONTENT)
    own.pull_url(mirror.url, mirror.sha256, "mine")
    own.pull("mine")
    own.pull_url(mirror.url, mirror.sha256, "mine")
    assert len(mirror.seen) == 1


PULL = "import sys; from pathlib import Path; from models.store import Store\n" + (
    "print(Store(Path(sys.argv[1])).pull_url(*sys.argv[2:5]))"
)


def pull_in_a_process(own: Store, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PULL, str(own.root), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_pulling_one_name_end_with_one_whole_file(own: Store, serve: Callable) -> None:
    mirror = serve(CONTENT, pause=0.1)
    both = [pull_in_a_process(own, mirror.url, mirror.sha256, "mine") for _ in range(2)]
    outcomes = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outcomes
    assert own.path("mine").read_bytes() == CONTENT
    assert len(mirror.seen) == 1


def test_a_killed_pull_is_continued_by_the_next_one(own: Store, serve: Callable) -> None:
    mirror = serve(CONTENT, pause=0.1)
    process = pull_in_a_process(own, mirror.url, mirror.sha256, "mine")
    part = own.root / "mine.gguf.part"
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = part.stat().st_size
    own.pull_url(mirror.url, mirror.sha256, "mine")
    assert own.path("mine").read_bytes() == CONTENT
    assert mirror.seen[-1]["Range"] == f"bytes={kept}-"
