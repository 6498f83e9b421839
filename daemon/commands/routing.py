"""The commands around routers: what there are, what they are worth, and how they are made."""

import importlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from routers.calibration import Calibration

TRAINERS = {"mf": "mf", "knn": "references", "sw_ranking": "references", "bert": "bert"}
"""The module of `routers.training` that trains each router."""
DEFAULT_ENCODER = "use-multilingual"
FEWEST_SCORES = 200
"""Of which a share of 5 % is ten: fewer say little about the rarely hard."""
SAMPLE = "Explain, step by step, why the sum of the angles of a triangle is 180 degrees. " * 5
"""About a hundred tokens, to time a router with."""

data_option = click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="UPCALL_DATA",
    required=True,
    help="Folder of the data files (or UPCALL_DATA).",
)


@click.command()
@click.option("--measure", is_flag=True, help="Time each router on this machine, in the place of the recorded time.")
def routers(measure: bool) -> None:
    """List the routers: size, time per prompt of 100 tokens, quality (APGR on each benchmark), calibration error."""
    from rich.console import Console
    from rich.table import Column, Table

    from routers.card import BENCHMARKS, card
    from routers.interface import RouterError
    from routers.registry import NAMES, load

    whole = [Column(name, no_wrap=True) for name in ("router", "version", "size", "ms", *BENCHMARKS)]
    table = Table(*whole, Column("calibration error", overflow="fold"), box=None)
    for name in NAMES:
        try:
            known = card(name)
            milliseconds = _milliseconds(load(name, encoder_path()).score) if measure else known.milliseconds
        except RouterError as trouble:
            table.add_row(name, "-", "-", "-", *("-" for _ in BENCHMARKS), str(trouble))
            continue
        numbers = (milliseconds, *(known.apgr.get(benchmark) for benchmark in BENCHMARKS), known.calibration_error)
        digits = (1, *(3 for _ in BENCHMARKS), 3)
        shown = ("-" if value is None else f"{value:.{digit}f}" for value, digit in zip(numbers, digits, strict=True))
        table.add_row(name, known.version, f"{known.size / 1e6:.1f} MB", *shown)
    Console().print(table)


@click.command()
@click.option("--router", type=click.Choice([*sorted(TRAINERS), "causal_llm"]), default="mf", show_default=True)
@click.option("--cloud-share", type=click.FloatRange(0, 1), default=0.2, show_default=True)
@click.option("--from-ledger", is_flag=True, help="From now on go by the scores of your own prompts.")
@click.option("--from-feedback", is_flag=True, help="From now on have your verdicts correct the router's scores.")
@click.option(
    "--undo", is_flag=True, help="Take the latest such calibration, or with --from-feedback correction, back."
)
def calibrate(router: str, cloud_share: float, from_ledger: bool, from_feedback: bool, undo: bool) -> None:
    """Say which threshold sends a share of prompts up, by your own calibration or the sample that ships."""
    if from_ledger and from_feedback:
        raise click.UsageError("--from-ledger and --from-feedback are two steps: take one, then the other")
    if from_feedback:
        return _from_feedback(router, undo)
    from daemon.routing.scorer import own_calibrations
    from routers.calibration import in_force, keep, versions
    from routers.interface import RouterError

    folder = own_calibrations()
    try:
        if undo:
            if not (mine := versions(router, folder)):
                raise click.ClickException(f"there is no calibration of your own for {router} in {folder}")
            mine[-1].unlink()
            click.echo(f"removed {mine[-1]}", err=True)
        if from_ledger:
            path = keep(_from_ledger(router), folder)
            click.echo(f"wrote {path}; a daemon that runs takes it once restarted", err=True)
        calibration = in_force(router, folder)
        threshold = calibration.threshold(cloud_share)
    except RouterError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"threshold {threshold:.4f} for {router}@{calibration.version}, cloud share {cloud_share:.0%}")
    click.echo(f"sample of {calibration.n} prompts, {calibration.date}: {calibration.sample}", err=True)
    return None


def _from_feedback(router: str, undo: bool) -> None:
    """Learn from verdicts, or take back what was learnt last."""
    from daemon.accounts.ledger import LedgerError, default_path
    from daemon.routing.feedback_learning import correct, take_back
    from daemon.routing.scorer import own_corrections
    from routers.interface import RouterError

    try:
        if undo:
            click.echo(f"removed {take_back(router, own_corrections())}")
        else:
            path, worth = correct(router, default_path(), own_corrections())
            click.echo(f"wrote {path}, learnt from {worth.n} verdicts")
            click.echo(
                "of two prompts, one for here and one for the cloud, the score tells which is which "
                f"{worth.before:.1%} of the time before and {worth.after:.1%} after, on verdicts held out "
                f"(standard error {worth.error:.1%})"
            )
            if worth.step < 1:
                click.echo(f"that is not certain, so it takes a step of {worth.step:.0%} of what the verdicts teach")
    except (RouterError, LedgerError) as error:
        raise click.ClickException(str(error)) from None
    click.echo("a daemon that runs takes it when it is reloaded (SIGHUP) or restarted", err=True)


def _from_ledger(router: str) -> "Calibration":
    """How the shipped version of `router` scores the prompts of this user."""
    import hashlib
    import time

    import numpy as np

    from daemon.accounts.history import opened
    from daemon.accounts.ledger import LedgerError, default_path
    from daemon.routing.scorer import own_corrections
    from routers.calibration import measured, shipped
    from routers.correction import in_force

    version = shipped(router).version
    corrected = in_force(router, version, own_corrections())
    label = f"{router}@{version}" + (f"+f{corrected[1]}" if corrected else "")
    try:
        with opened(default_path()) as history:
            scores = np.asarray(history.scores(label), dtype=np.float64)
    except LedgerError as error:
        raise click.ClickException(str(error)) from None
    if len(scores) < FEWEST_SCORES:
        raise click.ClickException(
            f"the ledger has {len(scores)} scores by {label}, and a calibration takes {FEWEST_SCORES}: "
            "use upcall for a while and try again"
        )
    digest = hashlib.sha256(np.sort(scores).tobytes()).hexdigest()
    date = time.strftime("%Y-%m-%d")
    return measured(router, version, scores, date=date, sample="the scores in this user's ledger", data_sha256=digest)


@click.command()
@click.argument("router", type=click.Choice(sorted(TRAINERS)))
@data_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the artifact, in the place of the shipped one."
)
def train(router: str, data: Path, out: Path | None) -> None:
    """Train ROUTER from the data files; minutes on two cores, for all but bert most of them to embed prompts once."""
    module = training_module(f"routers.training.{TRAINERS[router]}")
    function = getattr(module, "train" if TRAINERS[router] == router else f"train_{router}")
    where = {} if out is None else {"out": out}
    calibration = function(data, encoder_path("minilm-l6" if router == "bert" else DEFAULT_ENCODER), **where)
    click.echo(f"{router}@{calibration.version}: calibration error {calibration.expected_calibration_error:.3f}")


@click.command()
@click.option("--routers", "names", default="mf", show_default=True, help="Comma-separated.")
@click.option("--benchmark", "benchmarks", default="mmlu,gsm8k,mt-bench", show_default=True, help="Comma-separated.")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="UPCALL_DATA",
    help="Folder of the data files (or UPCALL_DATA); without one RouteLLM's public result files are fetched.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the results here.")
@click.option("--plots", type=click.Path(path_type=Path), help="Also draw the curves in this folder.")
@click.option("--second-look", metavar="MODEL", help="Judge the second look at this local model instead; needs --data.")
@click.option(
    "--questions",
    type=click.IntRange(min=200),
    default=3000,
    help="To ask MODEL from the data; 3000 by default, and four tenths as many easier ones.",
)
def evaluate(
    names: str,
    benchmarks: str,
    data: Path | None,
    json_file: Path | None,
    plots: Path | None,
    second_look: str | None,
    questions: int,
) -> None:
    """Evaluate routers as RouteLLM did: APGR and CPT beside random choice, prompt length alone and the oracle."""
    if second_look:
        from daemon.commands.learn import evaluate_second_look

        if data is None:
            raise click.UsageError("--second-look needs the folder of the data files: name it with --data")
        return evaluate_second_look(second_look, data, questions, json_file)
    module = training_module("routers.evaluation.__main__")
    training_module("routers.evaluation.benchmarks").checked(benchmarks.split(","))
    data = data or _public_results(benchmarks.split(","))
    arguments = ["--routers", names, "--benchmarks", benchmarks, "--data", str(data), "--encoder", str(encoder_path())]
    for flag, value in (("--json", json_file), ("--plots", plots)):
        arguments += [] if value is None else [flag, str(value)]
    module.main(arguments)
    return None


def _public_results(benchmarks: Sequence[str]) -> Path:
    """RouteLLM's own files, fetched if need be."""
    from daemon import privacy
    from daemon.benchmark_files import benchmark_files
    from daemon.commands.models import progress_bar
    from daemon.commands.settings import settings_or_exit
    from routers.evaluation import benchmarks as known
    from routers.evaluation import routellm

    if missing := [name for name in benchmarks if name in known.BENCHMARKS and name not in known.RAW]:
        raise click.ClickException(f"RouteLLM publishes no results for {missing[0]}: name a data folder with --data.")
    private = privacy.is_on(settings_or_exit(None))
    with progress_bar("RouteLLM's results") as progress:
        return benchmark_files(routellm.files(), progress, may_fetch=not private)


def encoder_path(name: str = DEFAULT_ENCODER) -> Path:
    """The file of an encoder, from UPCALL_ENCODER where that replaces the default, else from the model store."""
    from models.store import Store

    if name == DEFAULT_ENCODER and "UPCALL_ENCODER" in os.environ:
        return Path(os.environ["UPCALL_ENCODER"])
    return Store().path(name)


def confine_to(readable: Sequence[Path], writable: Sequence[Path]) -> None:
    """Keep this process from the network and from all files but these: it is to parse one that may come from anywhere.

    Folders in `writable` that are not there are made. Raises `ClickException` where they cannot be.
    """
    from daemon.confine import confine

    for folder in writable:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise click.ClickException(f"{folder} cannot be made ({error.strerror}): check its owner") from None
    confine(readable=readable, writable=writable)


def training_module(module: str) -> ModuleType:
    """A module that needs the `train` extra; says how to install that where it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed, which training and evaluation need: run `make train-deps`"
        raise click.ClickException(message) from None


def _milliseconds(score: Callable[[Sequence[str]], object]) -> float:
    """Median of some tries."""
    times = []
    for _ in range(15):
        start = time.perf_counter()
        score([SAMPLE])
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2] * 1000
