"""Judges ways of training mf on sources left out: `python -m routers.training.held_out --data DIR --encoder FILE`.

Of the sources that train, each is scored by a router that never saw it; sources that never train, by the router of all
the others. Parts are gathered into the kinds of prompts that the benchmarks hold, and the mean of the kinds decides.
"""

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from routers.evaluation.metrics import curve
from routers.training import data, mf, pairs
from routers.training.embeddings import Embeddings, Rows

OFF = 1e3
"""Noise that drowns an input."""
WAYS: Mapping[str, mf.Settings] = {
    "vector": mf.Settings(length_noise=OFF, product_noise=OFF),
    "vector and length": mf.Settings(product_noise=OFF),
    "vector, length and product": mf.Settings(),
}
KINDS: Mapping[str, tuple[str, ...]] = {
    "chat": ("arena_bench_v1_gpt4_scores", "arena_hard_v01_battles", "arena55k_subset"),
    "knowledge": ("mmlu_pro_wide", "lmeval_small_models_wide", "routerbench_0shot_partial/arc-challenge"),
    "word problems": ("llmrouter_dc_9models/gsm8k", "lmeval_small_models_wide/agieval_sat_math"),
    "mixed": ("llmrouter_dc_9models", "routerbench_0shot_partial"),
}
DRAWS = 300

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """Prompts of one source, or of a group in it."""

    source: str
    vectors: Rows
    lengths: Rows
    strong: Floats
    weak: Floats


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m routers.training.held_out", description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"))
    parser.add_argument("--encoder", type=Path, default=os.environ.get("UPCALL_ENCODER"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    embeddings = Embeddings(options.encoder)
    trains = data.sources(options.data)
    known = {source.name: embeddings.inputs(source.prompts, source.name) for source in trains}
    parts = _parts(options.data, embeddings, trains)
    scores: dict[str, dict[str, Floats]] = {
        "length alone": {name: part.lengths.astype(np.float64) for name, part in parts.items()}
    }
    for way, settings in WAYS.items():
        fitted: dict[str, mf.Trained] = {}
        scores[way] = {}
        for name, part in parts.items():
            if part.source not in fitted:
                fitted[part.source] = _fit([each for each in trains if each.name != part.source], known, settings)
            scores[way][name] = fitted[part.source].lead(part.vectors, part.lengths)
    report = _report(parts, scores)
    Console().print_json(json.dumps(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def _parts(folder: Path, embeddings: Embeddings, trains: list[data.Source]) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    taught = {data.stem(prompt) for source in trains if source.name == "gsm8k_questions" for prompt in source.prompts}
    for source in (*trains, *data.held_out(folder)):
        if source.name == "gsm8k_questions":
            continue  # its labels are made, not measured
        vectors, lengths = embeddings.inputs(source.prompts, source.name)
        outcomes = (source.quality(source.strong).astype(np.float64), source.quality(source.weak).astype(np.float64))
        groups = np.array(source.groups)
        if source.name == "llmrouter_dc_9models":
            groups = np.array(["gsm8k" if data.stem(prompt) in taught else "" for prompt in source.prompts])
        whole = ~np.isnan(outcomes[0] - outcomes[1])
        wanted = {name.partition("/")[2] for names in KINDS.values() for name in names if name.startswith(source.name)}
        for group in sorted({"", *wanted}):
            rows = whole & ((groups == group) | (group == ""))
            name = f"{source.name}/{group}".rstrip("/")
            parts[name] = Part(source.name, vectors[rows], lengths[rows], outcomes[0][rows], outcomes[1][rows])
    votes = data.votes(folder)
    tiers = np.array([[votes.tiers[model] for model in side] for side in (votes.first, votes.second)])
    rows = (tiers.min(axis=0) <= 1) & (tiers.max(axis=0) >= 2)  # RouteLLM's strong models against all the others
    won = np.where(tiers[0] < tiers[1], votes.outcome, 1 - votes.outcome)[rows].astype(np.float64)
    vectors, lengths = embeddings.inputs(votes.prompts, "arena votes")
    parts["arena55k_subset"] = Part("arena55k_subset", vectors[rows], lengths[rows], won, 1 - won)
    return parts


def _fit(sources: list[data.Source], known: Mapping[str, tuple[Rows, Rows]], settings: mf.Settings) -> mf.Trained:
    vectors, lengths = (np.concatenate([known[source.name][part] for source in sources]) for part in (0, 1))
    every = [np.ones(len(source.prompts), dtype=bool) for source in sources]
    return mf.fit(vectors, lengths, pairs.compare(sources, every), settings, progress=True)


def _report(parts: Mapping[str, Part], scores: Mapping[str, Mapping[str, Floats]]) -> dict[str, object]:
    random = np.random.default_rng(0)
    drawn = [{name: np.arange(len(part.strong)) for name, part in parts.items()}] + [
        {name: random.integers(0, len(part.strong), len(part.strong)) for name, part in parts.items()}
        for _ in range(DRAWS)
    ]
    means: dict[str, list[float]] = {}
    report: dict[str, object] = {"draws": DRAWS}
    for way, of in scores.items():
        every = [{name: _apgr(part, of[name], rows[name]) for name, part in parts.items()} for rows in drawn]
        kinds = [
            {kind: float(np.mean([each[name] for name in names])) for kind, names in KINDS.items()} for each in every
        ]
        means[way] = [float(np.mean(list(each.values()))) for each in kinds]
        report[way] = {"mean": means[way][0], "kinds": kinds[0], "parts": every[0]}
    best = list(scores)[-1]
    for way in list(scores)[:-1]:
        lead = np.array(means[best]) - np.array(means[way])
        interval = np.percentile(lead[1:], [2.5, 97.5])
        report[f"{best}, over {way}"] = [round(float(each), 4) for each in (lead[0], *interval)]
    return report


def _apgr(part: Part, scores: Floats, rows: NDArray[np.intp]) -> float:
    return curve(scores[rows], part.strong[rows], part.weak[rows]).apgr


if __name__ == "__main__":
    main()
