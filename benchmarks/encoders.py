"""Which encoder serves routing best: `python benchmarks/encoders.py --data DATA --store MODELS [--wordllama WHEEL]`.

For each: quality of a ridge of the strong models' lead, as it trains `mf`, on every source when that one is left out,
and on the sources that never train; milliseconds per prompt on one thread; Spearman's correlation between the scores of
500 Arena-Hard prompts and of their translations. MODELS is the store's folder, with use-multilingual and minilm-l6, and
WHEEL that of WordLlama's unpacked package. `--shipped` compares languages for the routers that ship. Prints Markdown;
vectors are cached, so that a run can go on.
"""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from encoder_candidates import Embed, Rows, kept, minilm, use_multilingual, wordllama
from numpy.typing import NDArray
from route_latency import prompt_of

from routers.evaluation.benchmarks import BENCHMARKS
from routers.evaluation.metrics import curve
from routers.features import log_length
from routers.minilm import FILE as MINILM
from routers.registry import ROUTERS, load
from routers.training.data import Source, held_out, sources

LANGUAGES = ("pt", "es", "de", "fr", "ru", "zh")
USE = "use-multilingual-v3.int8.onnx"
NOISE = 0.01
"""Ridge per unit of a source's weight: what Gaussian noise of 0.1 on each component amounts to, as `mf` has it."""


@dataclass(frozen=True, slots=True)
class Ridge:
    """A line through vectors, and the term for length of equal spread."""

    line: NDArray[np.float64]
    length: tuple[float, float]

    def leads(self, vectors: Rows, lengths: Rows) -> NDArray[np.float64]:
        return np.asarray(vectors @ self.line + (lengths - self.length[0]) * self.length[1])


def fit(every: Sequence[Source], vectors: Sequence[Rows], lengths: Sequence[Rows]) -> Ridge:
    """Each source counts as much as any other; leads are standardized within the parts of a source."""
    size = vectors[0].shape[1]
    normal, moment = NOISE * len(every) * np.eye(size), np.zeros(size)
    for source, rows in zip(every, vectors, strict=True):
        lead = (1 + source.quality(source.strong)) / 2 - source.quality(source.weak)
        known = ~np.isnan(lead)
        names = np.array(source.groups)
        x, y = rows.astype(np.float64), lead / np.nanstd(lead)
        for part in dict.fromkeys(source.groups):
            among = known & (names == part)
            if among.any():
                x[among] -= x[among].mean(axis=0)
                y[among] -= y[among].mean()
        normal += x[known].T @ x[known] / known.sum()
        moment += x[known].T @ y[known] / known.sum()
    line = np.linalg.solve(normal, moment)
    seen, spread = np.concatenate(lengths), np.concatenate([rows @ line for rows in vectors]).std()
    return Ridge(line, (float(seen.mean()), float(spread / seen.std())))


def apgr(source: Source, leads: NDArray[np.float64]) -> float:
    """Mean over the parts of the source that are large enough to say anything."""
    strong, weak = (source.quality(models).astype(np.float64) for models in (source.strong, source.weak))
    names, values = np.array(source.groups), []
    for part in dict.fromkeys(source.groups):
        among = (names == part) & ~np.isnan(strong - weak)
        if among.sum() >= 150 and strong[among].mean() > weak[among].mean():
            values.append(curve(leads[among], strong[among], weak[among]).apgr)
    return float(np.mean(values)) if values else float("nan")


def translations(data: Path) -> dict[str, list[str]]:
    """The 500 Arena-Hard prompts by language, in one order."""
    by_language: dict[str, dict[str, str]] = {}
    for row in pq.read_table(data / "m_arena_hard_prompts_23lang.parquet").to_pylist():
        by_language.setdefault(row["lang"], {})[row["question_id"]] = row["prompt"]
    questions = sorted(by_language["en"])
    return {language: [by_language[language][each] for each in questions] for language in ("en", *LANGUAGES)}


def ranks(values: NDArray[np.floating]) -> NDArray[np.intp]:
    """Places of `values` in ascending order."""
    return np.argsort(np.argsort(values))


def rank_correlation(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def quality(name: str, embed: Embed, data: Path, prompts: dict[str, list[str]]) -> dict[str, float]:
    """Everything that is said of one encoder but its speed."""
    every, beside = sources(data), held_out(data)
    vectors = [kept(name, embed, source.prompts) for source in every]
    lengths = [log_length(source.prompts) for source in every]
    found: dict[str, float] = {}
    for left_out, source in enumerate(every):
        others = [number for number in range(len(every)) if number != left_out]
        ridge = fit(*([part[number] for number in others] for part in (every, vectors, lengths)))
        found[source.name] = apgr(source, ridge.leads(vectors[left_out], lengths[left_out]))
    ridge = fit(every, vectors, lengths)
    for source in beside:
        found[source.name] = apgr(source, ridge.leads(kept(name, embed, source.prompts), log_length(source.prompts)))
    found["mean"] = float(np.nanmean(list(found.values())))
    for each in ("mt-bench", "gsm8k", "mmlu"):
        benchmark = BENCHMARKS[each](data)
        leads = ridge.leads(kept(name, embed, benchmark.prompts), log_length(benchmark.prompts))
        found[each] = curve(leads, benchmark.strong, benchmark.weak).apgr
    rows = {language: kept(name, embed, texts) for language, texts in prompts.items()}
    english = ridge.leads(rows["en"], log_length(prompts["en"]))
    for language in LANGUAGES:
        found[language] = rank_correlation(english, ridge.leads(rows[language], log_length(prompts[language])))
        found[f"{language}, without length"] = rank_correlation(rows["en"] @ ridge.line, rows[language] @ ridge.line)
        nearest = (rows[language] @ rows["en"].T).argmax(axis=1) == np.arange(len(rows["en"]))
        found[f"{language}, twin nearest"] = float(nearest.mean())
    return found


def milliseconds(embed: Embed, tokens: int, runs: int = 60) -> float:
    """Median on fresh prompts."""
    times = []
    for run in range(runs + 5):
        prompt = prompt_of(tokens, run)
        start = time.perf_counter()
        embed([prompt])
        times.append((time.perf_counter() - start) * 1000)
    return float(np.median(times[5:]))


def table(columns: dict[str, dict[str, float]], digits: int) -> None:
    print("| | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for row in next(iter(columns.values())):
        print(f"| {row} | " + " | ".join(f"{column[row]:.{digits}f}" for column in columns.values()) + " |")
    print()


def shipped(prompts: dict[str, list[str]], encoder: Path, names: Sequence[str]) -> None:
    """Rank correlation to English of the routers as they ship."""
    scores = {
        name: {language: load(name, encoder).score(texts) for language, texts in prompts.items()} for name in names
    }
    table({name: {each: rank_correlation(by["en"], by[each]) for each in LANGUAGES} for name, by in scores.items()}, 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"))
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--wordllama", type=Path, help="folder of WordLlama's unpacked wheel; needs `tokenizers`")
    parser.add_argument("--shipped", help=f"of {','.join(ROUTERS)}; comma-separated")
    options = parser.parse_args()
    prompts = translations(options.data)
    if options.shipped:
        shipped(prompts, options.store / USE, options.shipped.split(","))
        return
    candidates = {"USE multilingual int8": use_multilingual(options.store / USE)}
    candidates["MiniLM-L6 int8"] = minilm(options.store / MINILM, quantized=True)
    if options.wordllama:
        candidates["WordLlama static"] = wordllama(options.wordllama)
    found = {name: quality(name, embed, options.data, prompts) for name, embed in candidates.items()}
    table(found, 3)
    candidates["MiniLM-L6 fp32"] = minilm(options.store / MINILM, quantized=False)
    speed = {
        name: {f"{tokens} tokens": milliseconds(embed, tokens) for tokens in (20, 100, 256)}
        for name, embed in candidates.items()
    }
    table(speed, 2)


if __name__ == "__main__":
    main()
