"""The command line. Every command imports what it needs when it runs, so that `upcall --help` answers at once.

Exit status: 0 done, 1 it failed (the reason is on standard error), 2 wrong usage or configuration.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from daemon import routing_cli

if TYPE_CHECKING:
    from daemon.config import Settings
    from models.cloud.settings import CloudSettings
    from models.store import Progress


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="upcall")
def cli() -> None:
    """Answer prompts on this machine, and call up to a cloud model only when it must."""


def main() -> None:
    """The console script: every expected failure is one line on standard error."""
    try:
        cli()
    except Exception as error:
        from models.store import StoreError

        if not isinstance(error, StoreError | OSError):
            raise
        click.echo(f"upcall: {error}", err=True)
        sys.exit(1)


for command in (routing_cli.routers, routing_cli.calibrate, routing_cli.train, routing_cli.evaluate):
    cli.add_command(command)


config_option = click.option(
    "--config", "config", type=click.Path(path_type=Path), help="Settings file in the place of the user's config.toml."
)


@cli.command()
@config_option
@click.option("--port", type=int, help="TCP port on loopback; 0 takes a free one.")
@click.option("--local-model", help="Name from `upcall models`, or path of a GGUF file.")
@click.option("--cloud-share", type=float, help="Share of prompts that may go to the cloud, 0 to 1.")
@click.option("--privacy/--no-privacy", default=None, help="Keep everything on this machine for this run.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Lines for people, or JSON objects.")
def serve(
    config: Path | None,
    port: int | None,
    local_model: str | None,
    cloud_share: float | None,
    privacy: bool | None,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Run the daemon in the foreground; SIGHUP has it read its settings again."""
    flags: Flags = {
        ("server", "port"): port,
        ("local", "model"): local_model,
        ("routing", "cloud_share"): cloud_share,
        ("privacy", "mode"): privacy,
        ("log", "level"): log_level,
        ("log", "format"): log_format,
    }
    settings = _settings(config, flags)

    import asyncio

    from daemon.logs import set_up_logging
    from daemon.supervisor import Supervisor

    set_up_logging(settings.log)

    async def run() -> int:
        return await Supervisor(settings, lambda: _load(config, flags)).run()

    sys.exit(asyncio.run(run()))


@cli.command()
@click.argument("names", nargs=-1, required=True)
def pull(names: tuple[str, ...]) -> None:
    """Fetch models by NAME (see `upcall models`), verified by their SHA-256."""
    from daemon import privacy as state
    from models.store import Store

    if state.is_on(_settings(None)):
        raise click.ClickException("privacy mode is on, so nothing is fetched; `upcall privacy off` allows it")
    store = Store()
    for name in names:
        with _bar(name) as progress:
            path = store.pull(name, progress)
        click.echo(f"{name}: {path}")


@cli.command()
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


@cli.command()
@click.argument("names", nargs=-1, required=True)
def rm(names: tuple[str, ...]) -> None:
    """Remove pulled models by NAME."""
    from models.store import Store

    for name in names:
        Store().remove(name)
        click.echo(f"{name}: removed")


@cli.command()
@click.argument("switch", type=click.Choice(["on", "off", "status"]))
@config_option
def privacy(switch: str, config: Path | None) -> None:
    """Keep everything on this machine (on), or let hard prompts go up (off); survives restarts."""
    from daemon import privacy as state
    from daemon.client import DaemonError, NotRunning, call

    settings = _settings(config)
    if switch != "status":
        try:
            call(settings.server, "PUT", "/upcall/privacy", {"on": switch == "on"})
        except NotRunning:
            if switch == "off" and settings.privacy.mode:
                raise click.ClickException("privacy.mode is set in config.toml; unset it there") from None
            state.remember(switch == "on")
        except DaemonError as error:
            raise click.ClickException(str(error)) from None
    try:
        on = bool(call(settings.server, "GET", "/healthz")["privacy"])
    except NotRunning:
        on = state.is_on(settings)
    click.echo(f"privacy mode is {'on' if on else 'off'}")


@cli.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def doctor(config: Path | None, as_json: bool) -> None:
    """Say what works on this machine and what mends the rest; exit status 1 where something does not work."""
    import json
    from dataclasses import asdict

    from daemon.doctor import examine

    marks = {"ok": click.style("ok  ", fg="green"), "note": click.style("note", fg="yellow")}
    findings = []
    for finding in examine(_settings(config)):
        findings.append(finding)
        if not as_json:
            click.echo(f"{marks.get(finding.state, click.style('bad ', fg='red'))} {finding.check}: {finding.text}")
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    sys.exit(any(finding.state == "bad" for finding in findings))


@cli.group()
def key() -> None:
    """Keep API keys in the system's keyring."""


@key.command("set")
@click.argument("name")
def key_set(name: str) -> None:
    """Store the key NAME (such as openai), read from a prompt or standard input, never from the command line."""
    from daemon import keys

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
    """Say where the key NAME is kept, without reading it."""
    from daemon import keys

    with _key_errors():
        click.echo(f"{name}: {keys.where(name)}")


@key.command("test")
@config_option
def key_test(config: Path | None) -> None:
    """Ask the cloud model of the settings for a few words, with its key; costs a fraction of a cent."""
    import asyncio

    from daemon import privacy as state
    from daemon import resolve

    settings = _settings(config)
    if state.is_on(settings):
        raise click.ClickException("privacy mode is on, and this would go up; run `upcall privacy off` first")
    if failure := asyncio.run(_try(resolve.cloud(settings.cloud))):
        raise click.ClickException(failure)
    click.echo(f"{settings.cloud.model} answers")


@cli.group("config")
def config_group() -> None:
    """See and check the settings."""


@config_group.command("check")
@config_option
def config_check(config: Path | None) -> None:
    """Say what is wrong with the settings, one line per mistake."""
    _settings(config)
    click.echo("the settings are valid")


@config_group.command("show")
@config_option
def config_show(config: Path | None) -> None:
    """Print the settings in force, from file, environment and defaults, as JSON."""
    click.echo(_settings(config).model_dump_json(indent=2))


@cli.group()
def service() -> None:
    """Run upcall as a systemd user service."""


LINGER = """\
upcall runs while you are logged in. To have it at boot and after logout, too: loginctl enable-linger
(then all your user services do so; a keyring that your login unlocks stays locked until you log in)"""


@service.command("install")
def service_install() -> None:
    """Write the user units and say how to enable them."""
    from daemon import service as units

    with _service_errors():
        installed = units.install(_settings(None).server)
    for path in installed.units:
        click.echo(f"wrote {path}")
    if installed.trouble:
        click.echo(f"your systemd has not read them: {installed.trouble}", err=True)
    click.echo("nothing is enabled yet; next: upcall service enable")


@service.command("uninstall")
def service_uninstall() -> None:
    """Stop the service and remove its units."""
    from daemon import service as units

    with _service_errors():
        for path in units.uninstall():
            click.echo(f"removed {path}")


@service.command("enable")
@click.option("--at-login", is_flag=True, help="Start the daemon at login, not with its first request.")
def service_enable(at_login: bool) -> None:
    """Have systemd listen for upcall, now and after every login; the first request starts the daemon."""
    from daemon import service as units

    with _service_errors():
        units.enable(at_login)
        click.echo("the daemon runs" if at_login else "systemd listens; the first request starts the daemon")
        if not units.lingers():
            click.echo(LINGER)


@service.command("disable")
def service_disable() -> None:
    """Stop the service, and start it no more."""
    from daemon import service as units

    with _service_errors():
        units.disable()
    click.echo("stopped and disabled")


@service.command("status")
def service_status() -> None:
    """Show what systemd knows about the service; the exit status is systemctl's."""
    from daemon import service as units

    with _service_errors():
        shown = units.systemctl("status", "--no-pager", "--lines=5", units.SOCKET, units.SERVICE)
        click.echo("\nlinger is on: upcall is here from boot on" if units.lingers() else f"\n{LINGER}")
    sys.exit(shown.returncode)


@service.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Show new lines as they come.")
@click.option("-n", "--lines", type=int, default=50, show_default=True, help="Latest lines to show.")
def service_logs(follow: bool, lines: int) -> None:
    """Show the service's log: one line per request, and never a word of it."""
    from daemon import service as units

    with _service_errors():
        if not units.journal_is_kept():
            click.echo(
                "this system keeps its journal in memory, where users have none of their own: "
                "if nothing follows, see `upcall service status`, or as root `journalctl --user-unit upcall`",
                err=True,
            )
        shown = units.journalctl("--no-pager", f"--lines={lines}", *(["--follow"] if follow else []))
    sys.exit(shown.returncode)


Flags: TypeAlias = dict[tuple[str, str], Any]
"""Values by section and name; `None` where a flag was not given."""


def _settings(path: Path | None, flags: Flags | None = None) -> "Settings":
    """The settings, or the end with one line per mistake."""
    from daemon.config import ConfigError

    try:
        return _load(path, flags or {})
    except ConfigError as error:
        for line in str(error).splitlines():
            click.echo(f"upcall: {line}", err=True)
        sys.exit(2)


def _load(path: Path | None, flags: Flags) -> "Settings":
    """Raises `ConfigError`."""
    from daemon import resolve
    from daemon.config import load

    nested: dict[str, dict[str, Any]] = {}
    for (section, name), value in flags.items():
        if value is not None:
            nested.setdefault(section, {})[name] = value
    settings = load(path, nested)
    resolve.cloud(settings.cloud)
    return settings


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
def _bar(name: str) -> "Iterator[Progress]":
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _key_errors() -> Iterator[None]:
    from daemon.keys import KeyUnavailable

    try:
        yield
    except (KeyUnavailable, ValueError) as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def _service_errors() -> Iterator[None]:
    from daemon.service import ServiceError

    try:
        yield
    except ServiceError as error:
        raise click.ClickException(str(error)) from None
