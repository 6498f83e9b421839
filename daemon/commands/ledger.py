"""`upcall stats`, `decisions` and `why`: the ledger from a terminal, with or without a daemon that runs."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.settings import config_option, settings_or_exit

if TYPE_CHECKING:
    from daemon.accounts.history import History

FOLLOW_SECONDS = 0.5
PERIODS = {"today": "today", "week": "7 days", "month": "this month"}

json_option = click.option("--json", "as_json", is_flag=True, help="For scripts.")


@click.command()
@config_option
@json_option
def stats(config: Path | None, as_json: bool) -> None:
    """Say what was answered where, what it cost and what it saved: today, in 7 days and this month."""
    with _history(config) as history:
        seen = history.stats()
    if as_json:
        click.echo(json.dumps(seen, indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    from daemon.accounts.history import sentence

    table = Table("", *(Column(name, no_wrap=True) for name in PERIODS.values()), box=None)
    periods = [seen[name] for name in PERIODS]
    table.add_row("requests", *(f"{period['requests']:,}" for period in periods))
    table.add_row("answered here", *(_share(period["local_share"]) for period in periods))
    table.add_row("failed", *(f"{period['failed']:,}" for period in periods))
    table.add_row("spent", *(_dollars(period["cost_usd"]) for period in periods))
    table.add_row("  of it estimated", *(_dollars(period["estimated_usd"]) for period in periods))
    table.add_row("saved", *(_dollars(period["saved_usd"]) for period in periods))
    table.add_row("prompt tokens", *(f"{period['prompt_tokens']:,}" for period in periods))
    table.add_row("answer tokens", *(f"{period['completion_tokens']:,}" for period in periods))
    for name, route in (("tokens a second, here", "local"), ("tokens a second, cloud", "cloud")):
        speeds = [period["speed"][route]["tokens_per_second"] for period in periods]
        if any(speeds):
            table.add_row(name, *("" if speed is None else f"{speed:.1f}" for speed in speeds))
    for reason in seen["month"]["by_reason"] | seen["week"]["by_reason"]:
        counts = (f"{period['by_reason'].get(reason, 0):,}" for period in periods)
        table.add_row(f"[dim]{reason}[/dim]", *counts, f"[dim]{sentence(reason)}[/dim]")
    Console().print(table)
    if unpriced := seen["month"]["unpriced"]:
        click.echo(f"{unpriced} cloud answers of this month have no known price; [prices] in config.toml can give one")


@click.command()
@click.option("-n", "count", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")
@click.option("-f", "--follow", is_flag=True, help="Show new ones as they come.")
@config_option
@json_option
def decisions(count: int, follow: bool, config: Path | None, as_json: bool) -> None:
    """List the latest requests, oldest first: when, where they were answered, and why."""
    from daemon.accounts.history import shown

    def show(seen: Mapping[str, Any]) -> None:
        click.echo(json.dumps(seen) if as_json else _line(seen))

    with _history(config) as history:
        latest = history.decisions(count)
        for record in reversed(latest):
            show(shown(record))
        last = latest[0].id if latest else None
        while follow:
            time.sleep(FOLLOW_SECONDS)
            for record in reversed(history.decisions(1000, after=last)):
                show(shown(record))
                last = record.id


@click.command()
@click.argument("id")
@config_option
@json_option
def why(id: str, config: Path | None, as_json: bool) -> None:
    """Explain one decision: ID is what the answer's x-upcall-request-id begins with, or `last`."""
    from daemon.accounts.history import UnknownDecisionError, shown

    with _history(config) as history:
        try:
            seen = shown(history.find(id))
        except UnknownDecisionError as error:
            raise click.ClickException(str(error)) from None
    click.echo(json.dumps(seen, indent=2) if as_json else "\n".join(_explained(seen)))


@contextmanager
def _history(config: Path | None) -> "Iterator[History]":
    from daemon.accounts.history import opened
    from daemon.accounts.ledger import LedgerError, default_path

    if not settings_or_exit(config).ledger.enabled:
        click.echo("ledger.enabled is false in the settings: nothing new is recorded", err=True)
    try:
        with opened(default_path()) as history:
            yield history
    except LedgerError as error:
        raise click.ClickException(str(error)) from None


def _line(seen: Mapping[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen["time"]))
    score = "" if seen["score"] is None or seen["threshold"] is None else _scores(seen)
    outcome = "" if seen["outcome"] == "ok" else f"  {seen['outcome']}"
    cost = "" if not seen["cost_usd"] else f"  {_dollars(seen['cost_usd'])}"
    return f"{seen['request_id'][:8]}  {when}  {seen['route'] or '-':5}  {seen['reason'] or '-'}{score}{cost}{outcome}"


def _explained(seen: Mapping[str, Any]) -> Iterator[str]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen["time"]))
    yield f"request  {seen['request_id']}, {when}, {seen['wire']}"
    yield f"outcome  {seen['outcome']}" + (f", after {seen['error']}" if seen["error"] else "")
    if seen["route"] is None:
        yield "route    none: nothing was decided"
        return
    degraded = ", which is not what was wanted" if seen["degraded"] else ""
    yield f"route    {seen['route']}, {seen['model']}{degraded}"
    if seen["reason"]:
        yield f"reason   {seen['reason']}: {seen['explanation']}"
    if seen["score"] is not None and seen["threshold"] is not None:
        yield f"score    {_scores(seen).strip()} by {seen['router']} in {seen['router_ms']:.1f} ms"
    if seen["verdict"]:
        yield f"verdict  {seen['verdict']}"
    cached = f", {seen['cached_tokens']:,} of them cached" if seen["cached_tokens"] else ""
    yield f"tokens   {seen['prompt_tokens']:,} of the prompt{cached}; {seen['completion_tokens']:,} of the answer"
    first = "no word came" if seen["first_ms"] is None else f"first word after {seen['first_ms']:,.0f} ms"
    if seen["total_ms"] is not None:
        yield f"time     {first}, {seen['total_ms']:,.0f} ms in all"
    if seen["cost_usd"] is None:
        yield "cost     not known: the model has no known price"
    else:
        estimated = " (at most: the provider has not said)" if seen["estimated"] else ""
        saved = "" if seen["saved_usd"] is None else f"; saved {_dollars(seen['saved_usd'])}"
        yield f"cost     {_dollars(seen['cost_usd'])}{estimated}{saved}"


def _scores(seen: Mapping[str, Any]) -> str:
    sign = ">=" if seen["score"] >= seen["threshold"] else "<"
    return f"  {seen['score']:.4f} {sign} {seen['threshold']:.4f}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 1 or amount == 0 else f"${amount:.6f}"
