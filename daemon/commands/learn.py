"""The command that gets to know a local model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.commands.routing import confine_to, encoder_path, training_module
from daemon.commands.settings import settings_or_exit

if TYPE_CHECKING:
    from daemon.learn import OnProgress


@click.command("learn-model")
@click.argument("model")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    envvar="UPCALL_DATA",
    help="Folder of the data files (or UPCALL_DATA); without one public questions are fetched.",
)
@click.option(
    "--questions", type=click.IntRange(min=200), default=2500, show_default=True, help="How many to ask, at most."
)
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads; by default one for each core.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the artifact, in the place of one beside the model."
)
def learn_model(model: str, data: Path | None, questions: int, threads: int | None, out: Path | None) -> None:
    """Ask MODEL public questions, and train its second look: what its first tokens say about its answer.

    MODEL is a name from `upcall models` or the path of a GGUF file. On two cores this takes from minutes to hours, by
    the model's size; stop it at any time, and it goes on where it was. It gives way to other programs and waits while
    the machine runs on battery.
    """
    from models.fetch import file_sha256
    from routers.second_look import beside

    learn, file, encoder = training_module("daemon.learn"), _file(model), encoder_path()
    asked = learn.to_learn(questions, data or public_questions(), public=data is None)
    sha256, trusted = file_sha256(file), settings_or_exit(None).local.trust_template
    out = out or beside(file, sha256)
    confine_to([file, encoder, encoder.parent], [learn.folder(sha256), out])
    with _asking(file) as on_progress:
        learnt = learn.learn(
            file, sha256, asked, encoder, out, trusted=trusted, threads=threads or 0, on_progress=on_progress
        )
    click.echo(f"{learnt.folder}: second look {learnt.version}, trained on {learnt.n} questions")
    click.echo(
        f"calibration error {learnt.error:.3f} on sources it was not trained on; "
        f"the model was right on {learnt.weak:.0%} of the questions"
    )


def evaluate_second_look(model: str, data: Path, questions: int, json_file: Path | None) -> None:
    """Ask MODEL questions, and say what second looks trained on it are worth on sources they were not trained on."""
    import json
    from dataclasses import asdict

    from rich.console import Console

    from models.fetch import file_sha256

    learn, file, encoder = training_module("daemon.learn"), _file(model), encoder_path()
    shown = training_module("routers.evaluation.second_look")
    asked = learn.to_judge(questions, data, public_questions())
    sha256, trusted = file_sha256(file), settings_or_exit(None).local.trust_template
    results = [json_file.resolve().parent] if json_file else []
    confine_to([file, encoder, encoder.parent], [learn.folder(sha256), *results])
    with _asking(file) as on_progress:
        verdict = learn.judge(file, sha256, asked, encoder, trusted=trusted, on_progress=on_progress)
    Console().print(shown.table(verdict))
    low, high = verdict.lead_interval
    click.echo(f"combined leads mf by {verdict.lead:+.3f} [{low:+.3f}, {high:+.3f}] in APGR on {shown.POOLED}")
    if json_file:
        json_file.write_text(json.dumps(asdict(verdict), indent=1) + "\n")


def public_questions() -> Path:
    """The folder of the published files, fetched if need be."""
    import platformdirs

    from daemon import privacy
    from daemon.benchmark_files import benchmark_files
    from daemon.commands.models import progress_bar

    files = training_module("routers.training.public").files()
    folder = platformdirs.user_cache_path("upcall") / "questions"
    private = privacy.is_on(settings_or_exit(None))
    with progress_bar("public questions") as progress:
        return benchmark_files(files, progress, folder, may_fetch=not private, what="the public questions")


def _file(model: str) -> Path:
    from models.store import Store

    file = Path(model) if model.endswith(".gguf") else Store().path(model)
    if not file.is_file():
        raise click.ClickException(f"there is no file {file}; name a GGUF file, or a model of `upcall models`")
    return file


@contextmanager
def _asking(file: Path) -> "Iterator[OnProgress]":
    """A bar of the questions asked; what goes wrong is one line."""
    from models.llama.errors import LoadError
    from routers.interface import RouterError

    try:
        with _bar(file.stem) as on_progress:
            yield on_progress
    except (LoadError, RouterError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        raise click.ClickException("stopped; run the same command to go on where it was") from None


@contextmanager
def _bar(name: str) -> "Iterator[OnProgress]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)

        def show(done: int, total: int, state: str) -> None:
            bar.update(task, completed=done, total=total, description=state or name)

        yield show
