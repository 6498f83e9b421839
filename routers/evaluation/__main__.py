"""`python -m routers.evaluation --routers mf,random --benchmarks mmlu,gsm8k,mt-bench --data DIR --encoder FILE`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import platformdirs
from rich.console import Console
from rich.table import Table

from routers.calibration import shipped
from routers.evaluation import plots
from routers.evaluation.benchmarks import BENCHMARKS
from routers.evaluation.runner import Result, run, save


def table(results: Sequence[Result]) -> Table:
    """For people: APGR, and CPT in per cent of calls, each with its 95 % interval."""
    shown = Table("benchmark", "router", "APGR", "CPT20", "CPT50", "CPT80")
    for result in results:
        low, high = result.apgr_interval
        cpts = [
            f"{result.cpt[level]:.1%} [{result.cpt_interval[level][0]:.0%}, {result.cpt_interval[level][1]:.0%}]"
            for level in ("20", "50", "80")
        ]
        shown.add_row(result.benchmark, result.router, f"{result.apgr:.3f} [{low:.2f}, {high:.2f}]", *cpts)
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m routers.evaluation", description="Evaluate routers as RouteLLM did."
    )
    parser.add_argument("--routers", default="mf", help="comma-separated")
    parser.add_argument("--benchmarks", default="mmlu,gsm8k,mt-bench", help=f"comma-separated: {', '.join(BENCHMARKS)}")
    parser.add_argument("--data", type=Path, default=os.environ.get("UPCALL_DATA"), help="folder of the data files")
    parser.add_argument(
        "--encoder", type=Path, default=os.environ.get("UPCALL_ENCODER"), help="the encoder's ONNX file"
    )
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap draws")
    parser.add_argument("--sample", type=int, help="prompts to take of each benchmark; all of them where not given")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--plots", type=Path, help="also draw curves.png and reliability.png in this folder")
    options = parser.parse_args(arguments)
    if options.data is None or options.encoder is None:
        parser.error("--data and --encoder are needed, or UPCALL_DATA and UPCALL_ENCODER")
    results = run(
        options.routers.split(","), options.benchmarks.split(","), options.data, options.encoder,
        draws=options.draws, cache=platformdirs.user_cache_path("upcall") / "scores", sample=options.sample,
    )  # fmt: skip
    Console().print(table(results))
    if options.json:
        save(results, options.json)
    if options.plots:
        plots.curves(results, options.plots / "curves.png")
        plots.reliability([shipped(name) for name in options.routers.split(",")], options.plots / "reliability.png")


if __name__ == "__main__":
    main()
