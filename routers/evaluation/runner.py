"""Scores every router on every benchmark, beside random choice, prompt length alone and the oracle."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from routers.causal_llm import Judge
from routers.evaluation.benchmarks import BENCHMARKS, Benchmark, checked
from routers.evaluation.metrics import LEVELS, Curve, curve, interval, percentiles
from routers.interface import Router
from routers.registry import load

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Result:
    """One router on one benchmark; shares and APGR as fractions, intervals 95 % bootstrap over prompts."""

    benchmark: str
    router: str
    version: str
    n: int
    apgr: float
    apgr_interval: tuple[float, float]
    cpt: Mapping[str, float]
    """By level: "20", "50", "80"."""
    cpt_interval: Mapping[str, tuple[float, float]]
    share: Sequence[float]
    quality: Sequence[float]
    """The curve behind the numbers: quality at each share of strong calls."""
    weak: float
    strong: float


def run(
    routers: Sequence[str],
    benchmarks: Sequence[str],
    data: Path,
    encoder: Path,
    *,
    draws: int = 1000,
    cache: Path | None = None,
    progress: bool = True,
    judge: Judge | None = None,
    sample: int | None = None,
) -> list[Result]:
    """Evaluate `routers` and the baselines on `benchmarks`; scores are kept in the folder `cache`, if there is one.

    `judge` is for the router that needs one. A `sample` takes so many prompts of a benchmark, always the same ones.

    Raises:
        RouterError: a router cannot be loaded, or there is no such benchmark.
    """
    checked(benchmarks)
    loaded = [load(name, encoder, judge) for name in routers if name != "random"]
    results = []
    for name in benchmarks:
        benchmark = _sampled(BENCHMARKS[name](data), sample)
        for router in loaded:
            scores = _scores(router, benchmark, cache, progress)
            results.append(_result(benchmark, router.name, router.version, scores, draws))
        results += [_result(benchmark, key, "", make(benchmark), draws) for key, make in BASELINES.items()]
        results.append(_random(benchmark))
    return results


BASELINES: Mapping[str, Callable[[Benchmark], Scores]] = {
    "length": lambda benchmark: np.array([len(prompt) for prompt in benchmark.prompts], dtype=np.float64),
    "oracle": lambda benchmark: benchmark.strong - benchmark.weak,
}


def save(results: Iterable[Result], path: Path) -> None:
    """Write as JSON; what `path` already holds of other routers or other benchmarks stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else []
    rows = {(row["benchmark"], row["router"]): row for row in kept}
    rows |= {(result.benchmark, result.router): asdict(result) for result in results}
    path.write_text(json.dumps(list(rows.values()), indent=1) + "\n")


def _sampled(benchmark: Benchmark, count: int | None) -> Benchmark:
    if count is None or count >= len(benchmark.prompts):
        return benchmark
    rows = np.sort(np.random.default_rng(0).permutation(len(benchmark.prompts))[:count])
    prompts = [benchmark.prompts[row] for row in rows]
    return Benchmark(f"{benchmark.name}-{count}", prompts, benchmark.strong[rows], benchmark.weak[rows])


def _scores(router: Router, benchmark: Benchmark, cache: Path | None, progress: bool) -> Scores:
    """From the cache as far as it has them; what is still to be scored is NaN there, so that a run can go on."""
    scores = np.full(len(benchmark.prompts), np.nan)
    file = cache / f"{router.name}-{router.version}-{benchmark.name}.npy" if cache else None
    if file is not None and file.exists() and len(stored := np.load(file)) == len(scores):
        scores = stored
    missing = np.flatnonzero(np.isnan(scores)).tolist()
    title = f"{router.name} on {benchmark.name}"
    shown = track(missing, title, disable=not progress, console=Console(stderr=True))
    for done, row in enumerate(shown, start=1):
        scores[row] = router.score([benchmark.prompts[row]])[0]
        if file is not None and (done % SAVED == 0 or done == len(missing)):
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, scores)
    return scores


SAVED = 200
"""Prompts between one writing of the cache and the next."""


def _result(benchmark: Benchmark, router: str, version: str, scores: Scores, draws: int) -> Result:
    whole = curve(scores, benchmark.strong, benchmark.weak)
    intervals = interval(scores, benchmark.strong, benchmark.weak, draws)
    return _as_result(benchmark, router, version, whole, intervals)


def _random(benchmark: Benchmark, runs: int = 400) -> Result:
    """Single random routers: their mean, and the interval that one of them falls into."""
    draws = np.random.default_rng(0).random((runs, len(benchmark.prompts)))
    curves = [curve(scores, benchmark.strong, benchmark.weak) for scores in draws]
    mean = Curve(curves[0].share, np.mean([each.quality for each in curves], axis=0), curves[0].weak, curves[0].strong)
    values = {"apgr": [each.apgr for each in curves]}
    values |= {f"cpt{level * 100:.0f}": [each.cpt(level) for each in curves] for level in LEVELS}
    intervals = {key: percentiles(value) for key, value in values.items()}
    return _as_result(benchmark, "random", "", mean, intervals)


def _as_result(
    benchmark: Benchmark, router: str, version: str, whole: Curve, intervals: Mapping[str, tuple[float, float]]
) -> Result:
    levels = [f"{level * 100:.0f}" for level in LEVELS]
    return Result(
        benchmark.name,
        router,
        version,
        len(benchmark.prompts),
        whole.apgr,
        intervals["apgr"],
        {name: whole.cpt(level) for name, level in zip(levels, LEVELS, strict=True)},
        {name: intervals[f"cpt{name}"] for name in levels},
        whole.share.tolist(),
        whole.quality.tolist(),
        whole.weak,
        whole.strong,
    )
