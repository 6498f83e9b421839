"""The commands around models: fetch, list and remove them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from daemon.settings_cli import settings_or_exit

if TYPE_CHECKING:
    from models.store import Progress


@click.command()
@click.argument("names", nargs=-1, required=True)
def pull(names: tuple[str, ...]) -> None:
    """Fetch models by NAME (see `upcall models`), verified by their SHA-256."""
    from daemon import privacy as state
    from models.store import Store

    if state.is_on(settings_or_exit(None)):
        raise click.ClickException("privacy mode is on, so nothing is fetched; `upcall privacy off` allows it")
    store = Store()
    for name in names:
        with progress_bar(name) as progress:
            path = store.pull(name, progress)
        click.echo(f"{name}: {path}")


@click.command()
def models() -> None:
    """List the models that can be pulled, and which are here."""
    from rich.console import Console
    from rich.table import Table

    from models.store import NotPulled, Store, StoreError

    store = Store()
    table = Table("name", "kind", "size", "licence", "here", "what it is", box=None)
    for entry in store.entries():
        try:
            here = str(store.path(entry.name)) and "yes"
        except NotPulled:
            here = "no"
        except StoreError as error:
            here = str(error)
        size = "?" if entry.size is None else f"{entry.size / 1e6:,.0f} MB"
        table.add_row(entry.name, entry.kind, size, entry.licence, here, entry.description)
    Console().print(table)


@click.command()
@click.argument("names", nargs=-1, required=True)
def rm(names: tuple[str, ...]) -> None:
    """Remove pulled models by NAME."""
    from models.store import Store

    for name in names:
        Store().remove(name)
        click.echo(f"{name}: removed")


@contextmanager
def progress_bar(name: str) -> "Iterator[Progress]":
    """A bar of bytes; gives what to call with those that are here and those of the whole."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
