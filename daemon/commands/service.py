"""The commands around the systemd service."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from daemon.commands.settings import settings_or_exit


@click.group()
def service() -> None:
    """Run upcall as a systemd user service."""


LINGER = """\
upcall runs while you are logged in. To have it at boot and after logout, too: loginctl enable-linger
(then all your user services do so; a keyring that your login unlocks stays locked until you log in);
`loginctl show-user "$USER" --property=Linger` tells how it is"""


@service.command("install")
def service_install() -> None:
    """Write the user units and say how to enable them."""
    from daemon import service as units

    with _service_errors():
        installed = units.install(settings_or_exit(None).server)
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
        units.enable(settings_or_exit(None).server, at_login)
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


@contextmanager
def _service_errors() -> Iterator[None]:
    from daemon.service import ServiceError

    try:
        yield
    except ServiceError as error:
        raise click.ClickException(str(error)) from None
