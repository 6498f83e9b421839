"""The bert router: what is frozen, what is trained, and the file that carries it."""

import shutil
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from routers.bert import FIRST, LAYERS, BertRouter
from routers.interface import RouterError
from routers.minilm import FILE, LAST, SHA256, VOCABULARY, WIDTH, MiniLM, after_layer


def test_the_frozen_part_is_the_file_that_the_catalogue_pins() -> None:
    entry = tomllib.loads(Path("models/catalogue.toml").read_text())["minilm-l6"]
    vocabulary = tomllib.loads(Path("models/catalogue.toml").read_text())["minilm-l6-vocab"]
    assert (entry["file"], entry["sha256"], vocabulary["file"]) == (FILE, SHA256, VOCABULARY)


def test_the_artifact_names_the_encoder_it_was_trained_over() -> None:
    session = ort.InferenceSession("routers/artifacts/bert/bert.onnx")
    assert session.get_modelmeta().custom_metadata_map["encoder_sha256"] == SHA256


def test_another_encoder_is_refused(minilm_path: Path, tmp_path: Path) -> None:
    shutil.copy(minilm_path.with_name(VOCABULARY), tmp_path)
    damaged = bytearray(minilm_path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / FILE).write_bytes(damaged)
    with pytest.raises(RouterError, match="not the encoder that the bert router was trained over"):
        BertRouter(tmp_path / FILE)


def test_a_missing_encoder_names_the_command_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(RouterError, match="upcall pull minilm-l6"):
        BertRouter(tmp_path / FILE)


def test_a_damaged_artifact_is_a_clear_error(minilm_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "bert.onnx"
    file.write_bytes(Path("routers/artifacts/bert/bert.onnx").read_bytes()[:100_000])
    with pytest.raises(RouterError, match="cannot load"):
        BertRouter(minilm_path, file)


def test_layers_read_from_the_file_compute_what_the_file_computes(minilm_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch (make train-deps)")
    from routers.training.bert_graph import pretrained

    first, last = MiniLM(minilm_path, after_layer(3)), MiniLM(minilm_path, LAST)
    tokens = [last.tokens("Why is the sky blue at noon and red in the evening?")]
    states = torch.from_numpy(first.states(tokens))
    with torch.no_grad():
        for layer in pretrained(minilm_path, 4, 2).eval().layers:
            states = layer(states, torch.ones(states.shape[:2], dtype=torch.bool))
    assert states.numpy() == pytest.approx(last.states(tokens), abs=1e-4)


def test_the_export_agrees_with_torch_and_int8_keeps_the_order(minilm_path: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch (make train-deps)")
    from routers.training.bert_graph import pretrained, write_bert

    base = MiniLM(minilm_path, after_layer(FIRST - 1))
    classifier = pretrained(minilm_path, FIRST, LAYERS).eval()
    torch.nn.init.normal_(classifier.head.weight, generator=torch.Generator().manual_seed(0))
    for quantized, file in ((False, "fp32.onnx"), (True, "int8.onnx")):
        calibration, metadata = (0.5, -0.2), {"version": "test"}
        write_bert(
            tmp_path / file, classifier, length=(3.0, 0.1), calibration=calibration, metadata=metadata,
            quantized=quantized,
        )  # fmt: skip
    whole, small = (ort.InferenceSession(tmp_path / file) for file in ("fp32.onnx", "int8.onnx"))
    expected, exported, rounded = [], [], []
    for prompt in PROMPTS:
        states = base.states([base.tokens(prompt)])
        mask = torch.ones(states.shape[:2], dtype=torch.bool)
        with torch.no_grad():
            lead = classifier(torch.from_numpy(states), mask).item() + (5.0 - 3.0) * 0.1
        expected.append(1 / (1 + np.exp(-(0.5 * lead - 0.2))))
        feeds = {"states": states, "log_length": np.array([[5.0]], dtype=np.float32)}
        exported.append(whole.run(None, feeds)[0][0])
        rounded.append(small.run(None, feeds)[0][0])
    assert exported == pytest.approx(expected, abs=1e-4)
    assert np.corrcoef(np.argsort(np.argsort(rounded)), np.argsort(np.argsort(exported)))[0, 1] > 0.9
    assert (tmp_path / "int8.onnx").stat().st_size < 0.3 * (tmp_path / "fp32.onnx").stat().st_size


PROMPTS = [
    f"{verb} {what}."
    for verb in ("Explain", "Translate", "Prove", "Summarize", "Criticize")
    for what in ("the theorem of Pythagoras", "a poem about the sea", "how vaccines work", "this contract", "my code")
]


def test_padding_does_not_change_what_a_prompt_is_worth() -> None:
    torch = pytest.importorskip("torch", reason="needs torch (make train-deps)")
    from routers.training.bert_graph import Classifier

    torch.manual_seed(0)
    classifier = Classifier(1).eval()
    torch.nn.init.normal_(classifier.head.weight)
    states = torch.randn(1, 9, WIDTH)
    alone = classifier(states[:, :5], torch.ones(1, 5, dtype=torch.bool))
    padded = classifier(states, torch.arange(9)[None] < 5)
    assert alone.item() == pytest.approx(padded.item(), abs=1e-5)


def test_fine_tuning_learns_what_makes_prompts_hard_and_continues_where_it_stopped(
    minilm_path: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="needs torch (make train-deps)")
    from routers.training import bert
    from routers.training.bert_graph import pretrained

    base = MiniLM(minilm_path, after_layer(FIRST - 1))
    easy = [f"What is {number} plus one?" for number in range(30)]
    hard = [f"Prove the theorem of number {number}." for number in range(30)]
    tokens = [base.tokens(prompt) for prompt in [*easy, *hard]]
    outcome = np.repeat([0.5, 1.0], 30).astype(np.float32)
    same = np.ones(60)
    targets = bert.Targets(outcome, np.zeros(60, dtype=np.int64), same.astype(np.float32), same)
    settings = bert.Settings(steps=12, batch=16)

    at_once = bert.fit(base, pretrained(minilm_path, FIRST, 1), tokens, targets, settings)
    leads = bert.leads_of(base, at_once, tokens)
    assert leads[30:].mean() > leads[:30].mean()

    checkpoint = tmp_path / "bert.pt"
    arguments = (base, pretrained(minilm_path, FIRST, 1), tokens, targets, settings, checkpoint)
    with pytest.raises(bert.Unfinished, match="1 of 12"):
        bert.fit(*arguments, minutes=1e-9)
    continued = bert.fit(*arguments)
    assert bert.leads_of(base, continued, tokens) == pytest.approx(leads, abs=0.5)
