"""The commands around keys."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daemon.commands.settings import config_option, settings_or_exit

if TYPE_CHECKING:
    from models.cloud.settings import CloudSettings


@click.group()
def key() -> None:
    """Keep API keys in the system's keyring."""


@key.command("set")
@click.argument("name")
def key_set(name: str) -> None:
    """Store the key NAME (such as openai), read from a prompt or standard input, never from the command line."""
    from daemon import keys

    with _key_errors():
        keys.checked_name(name)
    secret = click.prompt(f"API key for {name}", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()
    if not secret.strip():
        raise click.ClickException("no key was given; type it at the prompt, or pipe it in")
    with _key_errors():
        # The keyring may ask for its own password where a person is there to give it.
        keys.set(name, secret.strip(), timeout=120, prompt=sys.stdin.isatty())
        click.echo(f"{name}: {keys.where(name)}")


@key.command("rm")
@click.argument("name")
def key_rm(name: str) -> None:
    """Remove the key NAME."""
    from daemon import keys

    with _key_errors():
        keys.remove(name)
    click.echo(f"{name}: removed")


@key.command("where")
@click.argument("name")
def key_where(name: str) -> None:
    """Say where the key NAME is kept, without showing it."""
    from daemon import keys

    with _key_errors():
        click.echo(f"{name}: {keys.where(name)}")


@key.command("test")
@config_option
def key_test(config: Path | None) -> None:
    """Ask each cloud model of the settings for a few words, with its key; costs a fraction of a cent each."""
    import asyncio

    from daemon import privacy as state
    from daemon import resolve

    settings = settings_or_exit(config)
    if state.is_on(settings):
        raise click.ClickException("privacy mode is on, and this would go up; run `upcall privacy off` first")
    failures = 0
    for cloud in resolve.clouds(settings.cloud):
        if failure := asyncio.run(_try(cloud)):
            click.echo(f"{cloud.name}: {failure}", err=True)
            failures += 1
        else:
            click.echo(f"{cloud.name} answers")
    sys.exit(failures > 0)


async def _try(cloud: "CloudSettings") -> str | None:
    """Why the cloud model does not answer, or `None`."""
    from daemon.keys import find
    from models.cloud.model import CloudModel
    from models.interface import ChatRequest, Failure

    model = CloudModel(cloud, find)
    request = ChatRequest(messages=[{"role": "user", "content": "Say hello"}], max_tokens=16)
    try:
        failures = [event.message async for event in model.chat(request) if isinstance(event, Failure)]
    finally:
        await model.close()
    return failures[0] if failures else None


@contextmanager
def _key_errors() -> Iterator[None]:
    from daemon.keys import KeyUnavailable

    try:
        yield
    except (KeyUnavailable, ValueError) as error:
        raise click.ClickException(str(error)) from None
