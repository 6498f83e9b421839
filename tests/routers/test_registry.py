import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from routers.calibration import Calibration, read, shipped, threshold_for_share
from routers.encoder import Encoder
from routers.interface import Router, RouterError
from routers.mf import MatrixFactorizationRouter
from routers.registry import ROUTERS, load

SERVED = sorted(ROUTERS)


@pytest.fixture(scope="module", params=SERVED)
def router(request: pytest.FixtureRequest, encoder_path: Path) -> Router:
    return load(request.param, encoder_path)


def test_every_string_has_a_score_between_0_and_1(router: Router, hostile: str) -> None:
    scores = router.score([hostile])
    assert scores.shape == (1,)
    assert scores.dtype == np.float32
    assert 0 <= scores[0] <= 1


def test_no_prompts_have_no_scores(router: Router) -> None:
    assert router.score([]).shape == (0,)


def test_scores_are_the_same_in_every_process_and_beside_any_other_prompt(router: Router, encoder_path: Path) -> None:
    prompts = ["Hello", "Prove that the square root of 2 is irrational.", "Escreva um poema sobre o mar."]
    here = router.score(prompts)
    script = (
        "import pathlib, sys; from routers.registry import load;"
        "print(*load(sys.argv[1], pathlib.Path(sys.argv[2])).score(sys.argv[3:]).tolist())"
    )
    command = [sys.executable, "-c", script, router.name, encoder_path, *reversed(prompts)]
    there = [float(word) for word in subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()]
    assert here.tolist() == pytest.approx(list(reversed(there)), abs=1e-6)


def test_serving_imports_no_training_library(encoder_path: Path) -> None:
    script = (
        "import pathlib, sys; from routers.registry import ROUTERS, load;"
        "[load(name, pathlib.Path(sys.argv[1])).score(['Hello']) for name in ROUTERS];"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-c", script, encoder_path], capture_output=True, check=True, text=True)
    heavy = {"torch", "pandas", "scipy", "matplotlib", "sklearn", "pyarrow", "onnx", "daemon", "models"}
    assert not heavy & set(loaded.stdout.split())


def test_an_unknown_router_names_the_nearest() -> None:
    with pytest.raises(RouterError, match="did you mean 'random'"):
        load("randon", Path("unused"))


def test_hard_problems_score_above_small_talk_on_average(encoder: Encoder) -> None:
    router = MatrixFactorizationRouter(encoder)
    easy = ["hi there", "What is the capital of France?", "Say thanks to my neighbour."]
    hard = [
        "Prove that every finite integral domain is a field, then find all zero divisors of Z/36Z.",
        "A 2 kg block slides down a frictionless 30 degree incline of length 4 m onto a spring of stiffness 500 N/m. "
        "How far is the spring compressed at most?",
    ]
    assert router.score(hard).mean() > router.score(easy).mean()


def test_missing_artifact_is_a_clear_error(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(RouterError, match="missing"):
        MatrixFactorizationRouter(encoder, tmp_path / "mf.onnx")


def test_artifact_with_nan_is_a_clear_error(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(RouterError, match="not numbers"):
        MatrixFactorizationRouter(encoder, _altered(tmp_path, lambda weights: weights * np.nan))


def test_artifact_of_another_encoder_is_a_clear_error(encoder: Encoder, tmp_path: Path) -> None:
    model = onnx.load("routers/artifacts/mf/mf.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 384
    for name, rows in {"mean": 384, "projection": 2 * 384 + 1}.items():
        weights = next(each for each in model.graph.initializer if each.name == name)
        weights.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(weights)[:rows]), name))
    file = tmp_path / "mf.onnx"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(RouterError, match="another encoder"):
        MatrixFactorizationRouter(encoder, file)


def test_truncated_artifact_is_a_clear_error(encoder: Encoder, tmp_path: Path) -> None:
    file = tmp_path / "mf.onnx"
    file.write_bytes(Path("routers/artifacts/mf/mf.onnx").read_bytes()[:1000])
    with pytest.raises(RouterError, match="cannot load"):
        MatrixFactorizationRouter(encoder, file)


def _altered(folder: Path, change: object) -> Path:
    model = onnx.load("routers/artifacts/mf/mf.onnx")
    projection = next(each for each in model.graph.initializer if each.name == "projection")
    weights = change(numpy_helper.to_array(projection))  # type: ignore[operator]
    projection.CopyFrom(numpy_helper.from_array(weights, "projection"))
    file = folder / "mf.onnx"
    file.write_bytes(model.SerializeToString())
    return file


@pytest.mark.parametrize("name", SERVED)
def test_the_shipped_calibration_is_of_the_shipped_router(name: str, encoder_path: Path) -> None:
    assert shipped(name).version == load(name, encoder_path).version


@pytest.mark.parametrize("name", SERVED)
def test_a_larger_cloud_share_never_raises_the_threshold(name: str) -> None:
    thresholds = [threshold_for_share(name, share) for share in np.linspace(0, 1, 21)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] > 1
    assert thresholds[-1] == 0


def test_a_share_outside_0_to_1_is_refused() -> None:
    with pytest.raises(RouterError, match="between 0 and 1"):
        threshold_for_share("random", 30)


def test_the_random_router_sends_the_share_it_is_asked_for(encoder_path: Path) -> None:
    scores = load("random", encoder_path).score([f"prompt {number}" for number in range(20_000)])
    for share in (0.1, 0.3, 0.9):
        assert np.mean(scores >= threshold_for_share("random", share)) == pytest.approx(share, abs=0.015)


def test_a_damaged_calibration_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    with pytest.raises(RouterError, match="upcall calibrate"):
        read(file)
    for text in ("", "{}", "[]", json.dumps({"format": 99})):
        file.write_text(text)
        with pytest.raises(RouterError, match="upcall calibrate"):
            read(file)
    Calibration("mf", "1", "", "", "", 2, [0.9, 0.1], 0.0, ()).save(file)
    with pytest.raises(RouterError, match="do not rise"):
        read(file)
