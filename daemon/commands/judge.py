"""`upcall judge`: the router causal_llm, which has the local model judge prompts, fitted to a model and measured."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.routing import confine_to, data_option, training_module
from daemon.commands.settings import settings_or_exit

if TYPE_CHECKING:
    import asyncio

    from models.llama.model import LlamaModel
    from models.llama.settings import LlamaSettings

model_option = click.option(
    "--model", help="The local model: a name from `upcall models`, or a GGUF file; the settings' where not given."
)


@click.group()
def judge() -> None:
    """The router causal_llm: the local model itself judges how hard a prompt is for it."""


@judge.command()
@model_option
@data_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the calibration, in the place of your own ones."
)
@click.option("--prompts", type=click.IntRange(min=20), help="To ask about, of each source.")
def train(model: str | None, data: Path, out: Path | None, prompts: int | None) -> None:
    """Ask the model about some hundred prompts from the data files, and fit what its judgements are worth."""
    module = training_module("routers.training.causal_llm")
    count: dict[str, Any] = {} if prompts is None else {"per_source": prompts}
    out = out or module.own_folder()
    with offline_judge(model, data, [out]) as asked:
        fitted = module.train(data, asked, asked.name, out, **count)
    click.echo(f"causal_llm@{fitted.version} for {asked.name}: calibration error {fitted.expected_calibration_error}")


@judge.command()
@model_option
@click.option("--cloud-share", type=click.FloatRange(0, 1), default=0.2, show_default=True)
def calibrate(model: str | None, cloud_share: float) -> None:
    """Say which threshold of causal_llm sends a share of ordinary prompts up, if this model judges."""
    from models.fetch import file_sha256
    from routers.causal_llm import reading
    from routers.interface import RouterError

    local = _local(model)
    try:
        known = reading(local.sha256 or file_sha256(Path(local.path))).calibration
    except RouterError as error:
        raise click.ClickException(str(error)) from None
    threshold = known.threshold(cloud_share)
    click.echo(f"threshold {threshold:.4f} for causal_llm@{known.version}, {local.name}, cloud share {cloud_share:.0%}")


@judge.command()
@model_option
@click.option("--benchmark", "benchmarks", default="gsm8k,mt-bench", show_default=True, help="Comma-separated.")
@click.option("--sample", type=click.IntRange(min=20), help="Prompts to take of each; all of them where not given.")
@data_option
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the results here.")
def evaluate(model: str | None, benchmarks: str, sample: int | None, data: Path, json_file: Path | None) -> None:
    """Evaluate causal_llm as RouteLLM did, beside random choice, prompt length alone and the oracle."""
    import platformdirs
    from rich.console import Console

    evaluation = training_module("routers.evaluation.__main__")
    cache = platformdirs.user_cache_path("upcall") / "scores"
    with offline_judge(model, data, [cache, *([json_file.resolve().parent] if json_file else [])]) as asked:
        results = evaluation.run(
            ["causal_llm"], benchmarks.split(","), data, Path(), judge=asked, sample=sample, cache=cache
        )
    Console().print(evaluation.table(results))
    if json_file:
        evaluation.save(results, json_file)


@dataclass(frozen=True, slots=True)
class OfflineJudge:
    """A `routers.causal_llm.Judge` in this process."""

    model: "LlamaModel"
    name: str
    model_sha256: str
    runner: "asyncio.Runner"

    def log_probabilities(self, text: str, labels: Sequence[str]) -> Sequence[float]:
        """See `Judge.log_probabilities`."""
        return self.runner.run(self.model.label_logprobs(text, labels)).logprobs


@contextmanager
def offline_judge(model: str | None, readable: Path, writable: Sequence[Path]) -> Iterator[OfflineJudge]:
    """`model` is a name or file as in `local.model`, the settings' if None. Raises `StoreError`, `ClickException`.

    From then on this process has no network, and of files the model's, `readable` and the folders `writable` alone.
    """
    import asyncio

    from models.llama.model import LlamaModel
    from routers.interface import RouterError

    settings = _local(model)
    confine_to([Path(settings.path), readable], writable)
    loaded = LlamaModel(settings)
    with asyncio.Runner() as runner:
        try:
            sha256 = runner.run(loaded.label_logprobs("", ())).model_sha256
            yield OfflineJudge(loaded, settings.name, sha256, runner)
        except (RouterError, ValueError) as error:
            raise click.ClickException(str(error)) from None
        finally:
            runner.run(loaded.close())


def _local(model: str | None) -> "LlamaSettings":
    from daemon import resolve
    from daemon.config import Local
    from models.store import Store

    return resolve.local(Local(model=model) if model else settings_or_exit(None).local, Store())
