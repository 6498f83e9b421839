"""Prints the path of a llama-cpp-python wheel for this machine, and compiles it first if there is none yet.

llama-cpp-python comes as source only. The version and the hash of that source are those of requirements.lock, the tools
that build it those of requirements-llama.lock. The wheel is kept in the user's cache under a key of everything that it
depends on, so that another environment on this machine does not compile again. `CMAKE_ARGS` adds settings of your own,
such as -DGGML_CUDA=on. Needs a C++ compiler and takes some minutes; progress goes to stderr.
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NO_COMMON = Path(__file__).with_name("nocommon.cmake")
LOG = ROOT / ".build" / "llama-wheel.log"
HEARTBEAT = 20.0
"""Seconds: a compile that says nothing for longer looks dead."""


def main() -> None:
    source = pinned_source()
    # Multimodal projectors and llama-common are three quarters of the build, and Python loads neither.
    settings = f"-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE={shlex.quote(str(NO_COMMON))}"
    own_settings = os.environ.get("CMAKE_ARGS", "")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upcall" / "wheels"
    kept = cache / key(source, "-DLLAVA_BUILD=OFF", NO_COMMON.read_text(), own_settings)
    if not list(kept.glob("*.whl")):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as folder:
            build(source, f"{settings} {own_settings}".strip(), Path(folder))
            try:
                (Path(folder) / "wheel").rename(kept)
            except OSError:  # another build was faster; its wheel is as good
                if not list(kept.glob("*.whl")):
                    raise
    print(next(kept.glob("*.whl")))


def pinned_source() -> str:
    """The entry of llama-cpp-python in the lock, as a requirements file of its own."""
    entry = re.search(r"^llama-cpp-python==(?:.*\\\n)*.*\n", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    if entry is None:
        sys.exit("requirements.lock does not name llama-cpp-python: run `make lock`")
    return entry[0]


def key(*parts: str) -> str:
    """Of the wheel: source, settings, and the processor that GGML_NATIVE compiles for. Any Python 3 can load it."""
    cpu = Path("/proc/cpuinfo")
    features = re.search(r"^(?:flags|Features)\s*:.*$", cpu.read_text(), re.MULTILINE) if cpu.exists() else None
    machine = [sysconfig.get_platform(), *platform.libc_ver(), features[0] if features else platform.processor()]
    return hashlib.sha256("\0".join([*parts, *machine]).encode()).hexdigest()[:24]


def build(source: str, settings: str, folder: Path) -> None:
    """Compile the wheel into `folder/wheel`."""
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        sys.exit("A C++ compiler is needed to build llama.cpp. On Debian and Ubuntu: apt-get install g++")
    say("building llama.cpp for this processor: once per machine, some four minutes of processor time")
    tools = folder / "tools"
    subprocess.run([sys.executable, "-m", "venv", tools], check=True)
    pip = [str(tools / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    lock = ROOT / "requirements-llama.lock"
    subprocess.run(
        [*pip, "install", "--quiet", "--require-hashes", "--requirement", str(lock)], check=True, stdout=sys.stderr
    )
    pin = folder / "source.txt"
    pin.write_text(source)
    # Without pip's cache: its key leaves CMAKE_ARGS out, so it would hand over a wheel built with other settings.
    command = [*pip, "wheel", "--verbose", "--no-cache-dir", "--no-deps", "--no-build-isolation", "--require-hashes"]
    command += ["--no-binary=llama-cpp-python", f"--wheel-dir={folder / 'wheel'}", f"--requirement={pin}"]
    environment = {**os.environ, "CMAKE_ARGS": settings, "PATH": f"{tools / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            watch(process)
        finally:
            process.kill()
    if process.wait() != 0:
        tail = "\n".join(LOG.read_text(errors="replace").splitlines()[-30:])
        sys.exit(f"{tail}\nllama.cpp could not be built; the whole log is in {LOG}")


def watch(process: subprocess.Popen[bytes]) -> None:
    """Tell how far Ninja is, until the build ends."""
    start = told_at = time.monotonic()
    told = ""
    while process.poll() is None:
        time.sleep(0.5)
        steps = re.findall(r"\[(\d+)/(\d+)\]", LOG.read_text(errors="replace"))
        state = f"compiling, step {steps[-1][0]} of {steps[-1][1]}" if steps else "fetching the source"
        now = time.monotonic()
        if now - told_at > HEARTBEAT or (state != told and sys.stderr.isatty()):
            say(f"{state}, {now - start:.0f} s")
            told, told_at = state, now
    say(f"done after {time.monotonic() - start:.0f} s")


def say(line: str) -> None:
    print(f"  llama.cpp: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
