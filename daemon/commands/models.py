"""The commands around models: fetch, list and remove them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from daemon.commands.settings import settings_or_exit

if TYPE_CHECKING:
    from models.store import Progress


@click.command()
@click.argument("names", metavar="NAME... | URL", nargs=-1, required=True)
@click.option("--sha256", help="Of the file at URL, in hexadecimal; the page that offers the file shows it.")
@click.option("--name", help="What to call the file at URL; its own name where this is left out.")
def pull(names: tuple[str, ...], sha256: str | None, name: str | None) -> None:
    """Fetch models by NAME (see `upcall models`), verified by their SHA-256, or any GGUF file by its URL."""
    from daemon import privacy as state
    from models.store import Store

    if state.is_on(settings_or_exit(None)):
        raise click.ClickException("privacy mode is on, so nothing is fetched; `upcall privacy off` allows it")
    store = Store()
    url = next((each for each in names if "://" in each), None)
    if url is None:
        if sha256 or name:
            raise click.UsageError("--sha256 and --name belong to a URL; known names are pinned already")
        for known in names:
            with progress_bar(known) as progress:
                path = store.pull(known, progress)
            click.echo(f"{known}: {path}")
        return
    if len(names) > 1:
        raise click.UsageError("one URL at a time, since --sha256 is that of one file")
    if sha256 is None:
        raise click.UsageError(f"--sha256 is missing: what {url} sends must be known before; its page shows it")
    name = name or _name_of(url)
    with progress_bar(name) as progress:
        path = store.pull_url(url, sha256, name, progress)
    click.echo(f'{name}: {path}; to use it, set local.model = "{name}"')


def _name_of(url: str) -> str:
    from pathlib import PurePosixPath
    from urllib.parse import unquote, urlsplit

    file = PurePosixPath(unquote(urlsplit(url).path)).name
    return file.lower().removesuffix(".gguf").replace(" ", "-")


@click.command()
def models() -> None:
    """List the models that can be pulled, and which are here."""
    from rich.console import Console
    from rich.padding import Padding

    from models.store import NotPulled, Store, StoreError

    store, console = Store(), Console()
    for entry in store.entries():
        try:
            here = str(store.path(entry.name)) and "is here"
        except NotPulled:
            here = "not pulled"
        except StoreError as error:
            here = str(error)
        size = "?" if entry.size is None else f"{entry.size / 1e6:,.0f} MB"
        # What people copy stands on one line, however narrow the terminal.
        click.echo(f"{entry.name:<19} {size:>9}  {entry.kind}, {here}, {entry.licence}")
        console.print(Padding(entry.description, (0, 0, 0, 2)), style="dim", markup=False, highlight=False)


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
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
