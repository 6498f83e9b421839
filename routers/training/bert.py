"""Trains the BERT classifier: `python -m routers.training.bert --data DIR --encoder FILE`.

RouteLLM (arXiv 2406.18665 §4.2) fine-tunes BERT-base to classify prompts by who wins. Here the upper layers of MiniLM
are fine-tuned on the outcomes that train `mf`, as the chance that the strong model is preferred, ties counting as half.
As for `mf` each source has an offset of its own, and a term for the length of the question stands beside.
"""

import argparse
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from routers.bert import FIRST, LAYERS
from routers.calibration import Calibration
from routers.features import log_length
from routers.graph import ARTIFACTS
from routers.minilm import SHA256, WIDTH, MiniLM, after_layer
from routers.training import data, pairs
from routers.training.bert_graph import Classifier, pretrained, write_bert
from routers.training.calibrate import calibrate

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Settings:
    """How long and how fast; `routers/results/README.md` says what was tried."""

    steps: int = 400
    batch: int = 64
    learning_rate: float = 1e-4
    """Of the encoder layers; the head's is ten times, the offsets' a hundred times as large."""
    decay: float = 0.01
    warm_up: float = 0.1
    """Share of the steps in which the rate rises; after them it falls to 0."""
    seed: int = 0


class Unfinished(Exception):  # noqa: N818 - a state, not a fault
    """Time was up; the next run continues from the checkpoint."""


def train(
    data_folder: Path,
    encoder: Path,
    out: Path = ARTIFACTS / "bert",
    settings: Settings | None = None,
    minutes: float | None = None,
    progress: bool = True,
) -> Calibration:
    """Train, export to `out` and calibrate. `encoder` is MiniLM's ONNX file.

    Takes six minutes on two cores that multiply in bfloat16, and several times that on others.

    Prompts that `pairs.held_back` keeps never train: they calibrate.

    Raises:
        Unfinished: it took longer than `minutes`.
    """
    settings = settings or Settings()
    sources = data.sources(data_folder)
    base = MiniLM(encoder, after_layer(FIRST - 1), threads=2)
    kept = [~pairs.held_back(source.prompts) for source in sources]
    prompts = [prompt for source in sources for prompt in source.prompts]
    fingerprint = data.fingerprint(data_folder, [source.name for source in sources])
    # Without the number of steps, so that a run can be made longer or shorter while it is under way.
    identity = hashlib.sha256(repr((fingerprint, FIRST, LAYERS, asdict(settings) | {"steps": 0})).encode())
    checkpoint = platformdirs.user_cache_path("upcall") / f"bert-{identity.hexdigest()[:12]}.pt"
    tokens = [base.tokens(prompt) for prompt in prompts]
    targets = aggregate(pairs.compare(sources, kept), len(prompts))
    classifier = fit(base, pretrained(encoder, FIRST, LAYERS), tokens, targets, settings, checkpoint, minutes, progress)
    lengths = log_length(prompts).astype(np.float64)
    sample = np.random.default_rng(settings.seed).permutation(np.flatnonzero(targets.weight))[:SAMPLE]
    spread = leads_of(base, classifier, [tokens[row] for row in sample]).std()
    length = float(lengths[sample].mean()), float(spread / lengths[sample].std())

    def lead(texts: Sequence[str]) -> Floats:
        leads = leads_of(base, classifier, [base.tokens(text) for text in texts])
        return np.asarray(leads + (log_length(texts) - length[0]) * length[1])

    def lead_of(number: int, rows: NDArray[np.intp]) -> Floats:
        return lead([sources[number].prompts[row] for row in rows])

    weights = [parameter.detach().numpy() for parameter in classifier.parameters()]
    sent = data.votes(data_folder).prompts
    everyday = lead([sent[row] for row in np.random.default_rng(settings.seed).permutation(len(sent))[:SAMPLE]])
    fitted = calibrate("bert", weights, sources, lead_of, fingerprint, everyday)
    metadata = {
        "version": fitted.calibration.version,
        "date": fitted.calibration.date,
        "data_sha256": fingerprint,
        "encoder_sha256": SHA256,
        "seed": str(settings.seed),
    }
    write_bert(
        out / "bert.onnx", classifier, length=length, calibration=(fitted.slope, fitted.intercept), metadata=metadata
    )
    fitted.calibration.save(out / "calibration.json")
    checkpoint.unlink(missing_ok=True)
    return fitted.calibration


SAMPLE = 1000
"""Prompts by which the spread of the leads is measured, and of the arena those that the thresholds are for."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What is known of each prompt; arrays of one length."""

    outcome: NDArray[np.float32]
    """How far the strong models are preferred on it, 0 to 1, over all comparisons."""
    group: NDArray[np.int64]
    spread: NDArray[np.float32]
    """Of its source, as in `Comparisons`."""
    weight: NDArray[np.float64]
    """How often it is drawn: a source of n prompts as often as the square root of n; 0 where it does not train."""


def aggregate(comparisons: pairs.Comparisons, prompts: int) -> Targets:
    """One outcome per prompt from `comparisons`."""
    weight = np.bincount(comparisons.prompt, comparisons.weight, prompts)
    known = np.maximum(weight, 1e-12)
    outcome = np.bincount(comparisons.prompt, comparisons.weight * comparisons.outcome, prompts) / known
    group, spread = np.zeros(prompts, dtype=np.int64), np.ones(prompts, dtype=np.float32)
    group[comparisons.prompt], spread[comparisons.prompt] = comparisons.group, comparisons.spread
    source = np.unique(spread, return_inverse=True)[1]  # prompts of one source have one spread
    size = np.bincount(source, weight > 0)[source]
    return Targets(outcome.astype(np.float32), group, spread, np.asarray(weight * np.sqrt(size), dtype=np.float64))


def fit(
    base: MiniLM,
    classifier: Classifier,
    tokens: Sequence[Sequence[int]],
    targets: Targets,
    settings: Settings,
    checkpoint: Path | None = None,
    minutes: float | None = None,
    progress: bool = False,
) -> Classifier:
    """Fine-tune `classifier` on the prompts `tokens`; with a `checkpoint`, from where the last run stopped."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(2)
    offsets = torch.nn.Parameter(torch.zeros(int(targets.group.max()) + 1))
    rates = [(classifier.layers.parameters(), 1), (classifier.head.parameters(), 10), (iter([offsets]), 100)]
    optimizer = torch.optim.AdamW(
        [{"params": list(part), "lr": settings.learning_rate * factor} for part, factor in rates],
        weight_decay=settings.decay,
    )
    rise = settings.warm_up * settings.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, max(settings.steps - step, 0) / (settings.steps - rise))
    )
    parts: dict[str, Any] = {"classifier": classifier, "optimizer": optimizer, "schedule": schedule}
    done = 0
    if checkpoint and checkpoint.exists():
        stored = torch.load(checkpoint)
        done = stored.pop("done")
        offsets.data.copy_(stored.pop("offsets"))
        for name, state in stored.items():
            parts[name].load_state_dict(state)
    end = time.monotonic() + 60 * minutes if minutes else None
    classifier.train()
    with Progress(disable=not progress, console=Console(stderr=True)) as bar:
        task = bar.add_task("Training bert", total=settings.steps, completed=done)
        for step, rows in enumerate(_batches(tokens, targets.weight, settings)):
            if step < done:
                continue
            # Leads are in units of their source's spread and count by it, so that no source dominates by its scale.
            spread, outcome = torch.from_numpy(targets.spread[rows]), torch.from_numpy(targets.outcome[rows])
            padded = _padded(base, [tokens[row] for row in rows])
            with torch.autocast("cpu", torch.bfloat16, enabled=SHORT_FLOATS):
                lead = classifier(*padded)
            logits = 2 * spread * lead.float() + offsets[torch.from_numpy(targets.group[rows])]
            misfit = torch.nn.functional.binary_cross_entropy_with_logits(logits, outcome, reduction="none")
            torch.autograd.backward((misfit / spread.square()).mean())
            torch.nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            bar.advance(task)
            late = end is not None and time.monotonic() > end
            if checkpoint and (late or step % 20 == 19):
                states = {name: part.state_dict() for name, part in parts.items()}
                checkpoint.parent.mkdir(parents=True, exist_ok=True)
                torch.save({**states, "offsets": offsets.data, "done": step + 1}, checkpoint)
            if late:
                raise Unfinished(f"{step + 1} of {settings.steps} steps are done")
    return classifier.eval()


SHORT_FLOATS = bool(torch.cpu.get_capabilities().get("amx_bf16"))
"""Where the processor multiplies matrices of them, some five times as fast; elsewhere they are no faster."""


def leads_of(base: MiniLM, classifier: Classifier, tokens: Sequence[Sequence[int]]) -> Floats:
    """Of the strong models over the weak on each prompt, without the term for length, before calibration."""
    leads = np.zeros(len(tokens))
    order = np.argsort([len(each) for each in tokens], kind="stable")
    with torch.no_grad():
        for rows in np.array_split(order, len(order) // 64 + 1):
            if len(rows):
                leads[rows] = classifier(*_padded(base, [tokens[row] for row in rows])).numpy()
    return leads


def _batches(tokens: Sequence[Sequence[int]], weight: Floats, settings: Settings) -> Iterator[NDArray[np.int64]]:
    """Rows drawn by `weight`, in batches of prompts about as long as each other, so that little is padding."""
    generator = np.random.default_rng(settings.seed)
    lengths = np.array([len(each) for each in tokens])
    cumulative = np.cumsum(weight)
    for start in range(0, settings.steps, POOL):
        count = min(POOL, settings.steps - start)
        drawn = np.searchsorted(cumulative, generator.random(count * settings.batch) * cumulative[-1], side="right")
        drawn = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(count, settings.batch)
        yield from drawn[generator.permutation(count)]


POOL = 20
"""Batches that are drawn and sorted at a time."""


def _padded(base: MiniLM, tokens: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """States `(n, longest, WIDTH)` and which of them are of tokens. Behind the lower layers prompts of one length go
    together, since the frozen part takes no padding."""
    lengths = np.array([len(each) for each in tokens])
    states = np.zeros((len(tokens), lengths.max(), WIDTH), dtype=np.float32)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length).tolist()
        states[rows, :length] = base.states([tokens[row] for row in rows])
    return torch.from_numpy(states), torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m routers.training.bert", description="Train the bert router.")
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"), help="folder of the data files")
    parser.add_argument("--encoder", type=Path, required=True, help="MiniLM's ONNX file (`upcall pull minilm-l6`)")
    parser.add_argument("--out", type=Path, default=ARTIFACTS / "bert")
    parser.add_argument("--minutes", type=float, help="stop after so long; the next run continues")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("--data is needed, or UPCALL_DATA")
    try:
        calibration = train(options.data, options.encoder, options.out, minutes=options.minutes)
    except Unfinished as state:
        raise SystemExit(f"{state}: run it again to continue") from None
    Console().print(
        f"bert {calibration.version} written to {options.out}; "
        f"calibration error {calibration.expected_calibration_error:.3f}"
    )


if __name__ == "__main__":
    main()
