import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from routers.encoder import DIMENSION, Encoder, readable
from routers.interface import RouterError


def test_every_string_has_a_finite_vector(encoder: Encoder, hostile: str) -> None:
    vector = encoder.embed([hostile])
    assert vector.shape == (1, DIMENSION)
    assert np.isfinite(vector).all()
    norm = np.linalg.norm(vector)
    assert norm == pytest.approx(1, abs=1e-3) if readable(hostile) else norm == 0


def test_a_prompt_has_the_same_vector_whatever_stands_beside_it(encoder: Encoder) -> None:
    prompts = ["Hello", "Prove that there are infinitely many primes. " * 20, "Qual é a capital do Brasil?"]
    together = encoder.embed(prompts)
    alone = np.concatenate([encoder.embed([prompt]) for prompt in prompts])
    assert np.array_equal(together, alone)


def test_portuguese_lies_nearest_to_its_english_twin(encoder: Encoder) -> None:
    english = encoder.embed(["How do I boil an egg?", "Integrate x squared.", "Who wrote Dom Casmurro?"])
    portuguese = encoder.embed(["Como cozinho um ovo?", "Integre x ao quadrado.", "Quem escreveu Dom Casmurro?"])
    assert (english @ portuguese.T).argmax(axis=1).tolist() == [0, 1, 2]


def test_time_does_not_grow_with_the_prompt_beyond_the_window(encoder: Encoder) -> None:
    def seconds(prompt: str) -> float:
        start = time.process_time()
        encoder.embed([prompt])
        return time.process_time() - start

    words = "word " * 20_000
    long = short = math.inf
    # In turn, so that what disturbs one disturbs the other, and beyond five times only as often as it takes.
    for pair in range(20):
        long, short = min(long, seconds(words * 10)), min(short, seconds(words[:3_000]))
        if pair >= 4 and long < 3 * short:
            break
    assert long < 3 * short


def test_a_missing_encoder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(RouterError, match="upcall pull use-multilingual"):
        Encoder(tmp_path / "absent.onnx")


def test_a_damaged_encoder_is_refused(tmp_path: Path, encoder_path: Path) -> None:
    damaged = tmp_path / "encoder.onnx"
    damaged.write_bytes(encoder_path.read_bytes()[:1_000_000])
    with pytest.raises(RouterError, match="cannot load"):
        Encoder(damaged)


def test_another_graph_is_refused(tmp_path: Path) -> None:
    other = Path("routers/artifacts/mf/mf.onnx")
    copy = tmp_path / "encoder.onnx"
    copy.write_bytes(other.read_bytes())
    with pytest.raises(RouterError):
        Encoder(copy)


def test_an_encoder_in_a_folder_that_cannot_be_written_still_loads(
    tmp_path: Path, encoder_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "encoder.onnx"
    copy.write_bytes(encoder_path.read_bytes())

    def refuse(**_: object) -> str:
        raise PermissionError("read-only")

    monkeypatch.setattr("routers.encoder.tempfile.mkdtemp", refuse)  # root may write anywhere, so no mode bits
    plain = Encoder(copy).embed(["Why is the sky blue?"])
    assert not list(tmp_path.glob("*.mapped-*"))
    assert np.allclose(plain, Encoder(encoder_path).embed(["Why is the sky blue?"]), atol=1e-5)


def test_an_encoder_on_a_disk_that_fills_up_still_loads_and_so_does_one_whose_copy_was_cut_short(
    tmp_path: Path, encoder_path: Path
) -> None:
    (encoder := tmp_path / "encoder.onnx").symlink_to(encoder_path)
    script = (
        "import pathlib, resource, sys; from routers.encoder import Encoder;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000));"
        "print(Encoder(pathlib.Path(sys.argv[1])).embed(['Hello']).shape)"
    )
    full = subprocess.run([sys.executable, "-c", script, encoder], capture_output=True, text=True, check=True)
    assert full.stdout == "(1, 512)\n"
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]

    whole = Encoder(encoder).embed(["Hello"])
    (weights,) = tmp_path.glob("*.mapped-*/weights.bin")
    weights.write_bytes(weights.read_bytes()[:1_000_000])
    assert np.allclose(Encoder(encoder).embed(["Hello"]), whole, atol=1e-5)
    assert Encoder(encoder).embed(["Hello"]).shape == (1, 512)
    assert next(tmp_path.glob("*.mapped-*/weights.bin")).stat().st_size > 10_000_000


def test_the_mapped_copy_takes_less_memory_than_the_file(encoder_path: Path) -> None:
    script = (
        "import json, pathlib, sys; from routers.encoder import Encoder;"
        "encoder = Encoder(pathlib.Path(sys.argv[1])); encoder.embed(['Hello']);"
        "print(json.dumps([int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmRSS')]))"
    )
    Encoder(encoder_path)  # the copy is there from here on
    ran = subprocess.run([sys.executable, "-c", script, encoder_path], capture_output=True, text=True, check=True)
    (kilobytes,) = json.loads(ran.stdout)
    assert kilobytes < 130 * 1024
