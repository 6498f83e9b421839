"""Calibrates the causal-LLM router for a model: `python -m routers.training.causal_llm --data DIR --model FILE`."""

import argparse
import ctypes
import json
import os
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from routers.calibration import Calibration
from routers.causal_llm import mean_label
from routers.graph import ARTIFACTS
from routers.interface import RouterError
from routers.training import data
from routers.training.calibrate import MIX, calibrate
from routers.training.pairs import held_back


class LlamaJudge:
    """A GGUF model held to a few next tokens; what two texts in a row begin with alike is computed once.

    Raises:
        RouterError: llama.cpp cannot load the file.
    """

    def __init__(self, model: Path, threads: int = 2) -> None:
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_extra_bufts = False  # repacked weights load ten times slower
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), parameters)
        if not self._model:
            raise RouterError(f"llama.cpp cannot load {model}: see that it is a whole GGUF file.")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = CONTEXT
        context.n_threads = context.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._seen: list[int] = []

    def log_probabilities(self, text: str, labels: Sequence[str]) -> list[float]:
        """See `routers.causal_llm.Judge`."""
        tokens = self._tokens(text)[-CONTEXT:]
        both = zip(tokens[:-1], self._seen, strict=False)
        common = next((at for at, (ours, theirs) in enumerate(both) if ours != theirs), 0)
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), 0, common, -1)
        rest = (llama_cpp.llama_token * (len(tokens) - common))(*tokens[common:])
        if llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(rest, len(rest))) != 0:
            raise RouterError("llama.cpp could not compute the prompt.")
        self._seen = tokens
        size = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        pointer = llama_cpp.llama_get_logits_ith(self._context, -1)
        logits = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (size,)).astype(np.float64)
        logits -= logits.max() + np.log(np.exp(logits - logits.max()).sum())
        return [float(logits[self._tokens(label)[-1]]) for label in labels]

    def _tokens(self, text: str) -> list[int]:
        raw = text.encode("utf-8", "replace")
        room = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(self._vocabulary, raw, len(raw), room, len(room), True, False)
        return list(room[:count])


CONTEXT = 2048


def train(
    data_folder: Path, model: Path, out: Path = ARTIFACTS / "causal_llm", per_source: int = 60, progress: bool = True
) -> Calibration:
    """Ask the model about `per_source` held-back prompts of each calibrating source, and fit the logistic."""
    judge = LlamaJudge(model)
    chosen = [_sample(source, per_source) for source in data.sources(data_folder) if source.name in MIX]
    labels = []
    for source in chosen:
        shown = track(source.prompts, description=f"Asking about {source.name}", disable=not progress)
        labels.append(np.array([mean_label(judge, prompt) for prompt in shown]))
    fitted = calibrate(
        "causal_llm",
        labels,
        chosen,
        lambda number, rows: labels[number][rows],
        data.fingerprint(data_folder, [source.name for source in chosen]),
    )
    out.mkdir(parents=True, exist_ok=True)
    artifact = {
        "version": fitted.calibration.version,
        "model": model.name,
        "slope": fitted.slope,
        "intercept": fitted.intercept,
    }
    (out / "causal_llm.json").write_text(json.dumps(artifact, indent=1) + "\n")
    fitted.calibration.save(out / "calibration.json")
    return fitted.calibration


def _sample(source: data.Source, count: int) -> data.Source:
    usable: NDArray[np.intp] = np.flatnonzero(held_back(source.prompts))
    rows = np.sort(np.random.default_rng(0).permutation(usable)[:count])
    return data.Source(
        source.name,
        [source.prompts[row] for row in rows],
        {model: outcome[rows] for model, outcome in source.outcomes.items()},
        source.strong,
        source.weak,
        [source.groups[row] for row in rows],
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m routers.training.causal_llm", description="Calibrate causal_llm.")
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"), help="folder of the data files")
    parser.add_argument("--model", type=Path, required=True, help="the local model's GGUF file")
    parser.add_argument("--out", type=Path, default=ARTIFACTS / "causal_llm")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data is needed, or UPCALL_DATA")
    calibration = train(options.data, options.model, options.out)
    error = calibration.expected_calibration_error
    Console().print(f"causal_llm {calibration.version} written to {options.out}; calibration error {error:.3f}")


if __name__ == "__main__":
    main()
