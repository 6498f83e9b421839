"""`upcall feedback`: verdicts on decisions, from a terminal."""

import time
from pathlib import Path

import click

from daemon.commands.settings import config_option, settings_or_exit


@click.group()
def feedback() -> None:
    """Say whether requests were answered in the right place, for `upcall calibrate --from-feedback` to learn from."""


def _judge(id: str, verdict: str, config: Path | None) -> None:
    from daemon.client import DaemonError, call

    try:
        kept = call(settings_or_exit(config).server, "POST", "/v1/feedback", {"id": id, "verdict": verdict})
    except DaemonError as error:
        raise click.ClickException(str(error)) from None
    with_it = "with the prompt's embedding" if kept["embedding_kept"] else "alone: no embedding of the prompt is held"
    click.echo(f"{kept['id'][:8]} was {kept['verdict']}; kept {with_it}")


@feedback.command()
@click.argument("id")
@config_option
def right(id: str, config: Path | None) -> None:
    """The request was answered where it should be; ID is what its id begins with, or `last`."""
    _judge(id, "right", config)


@feedback.command()
@click.argument("id")
@config_option
def wrong(id: str, config: Path | None) -> None:
    """The other model should have answered the request; ID is what its id begins with, or `last`."""
    _judge(id, "wrong", config)


@feedback.command("list")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def list_command(as_json: bool) -> None:
    """List the verdicts, oldest first, and whether an embedding was kept with each."""
    import json

    from daemon.accounts.ledger import LedgerError, default_path
    from daemon.routing.feedback import all_of

    try:
        judged = all_of(default_path())
    except LedgerError as error:
        raise click.ClickException(str(error)) from None
    for each in judged:
        if as_json:
            names = ("id", "time", "verdict", "router", "score", "route")
            seen = {name: getattr(each, name) for name in names}
            click.echo(json.dumps({**seen, "embedding_kept": each.vector is not None}))
            continue
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.time))
        click.echo(f"{each.id[:8]}  {when}  {each.route or '-':5}  {each.verdict}{'  embedding' * bool(each.vector)}")
    if not judged and not as_json:
        click.echo("no verdicts yet: give one with `upcall feedback right last`, or on the dashboard", err=True)


@feedback.command()
@click.argument("id", required=False)
@click.option("--all", "everything", is_flag=True, help="Forget every verdict.")
def forget(id: str | None, everything: bool) -> None:
    """Delete the verdict on request ID, or --all of them, with their embeddings; nothing is left in the file.

    A correction that was learnt from them stays until `upcall calibrate --from-feedback --undo`.
    """
    from daemon.accounts.history import UnknownDecisionError
    from daemon.accounts.ledger import LedgerError, default_path
    from daemon.routing.feedback import forget as delete
    from daemon.routing.scorer import own_corrections

    if (id is None) != everything:
        raise click.UsageError("name a request, as in `upcall feedback forget ID`, or forget --all")
    try:
        deleted = delete(default_path(), id)
    except (LedgerError, UnknownDecisionError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"forgot {deleted} verdict{'s' * (deleted != 1)}")
    if any(own_corrections().glob("*.json")):
        click.echo(
            "what was learnt from verdicts stays until `upcall calibrate --from-feedback --undo` takes it back",
            err=True,
        )
