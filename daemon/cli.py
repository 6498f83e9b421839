"""The command line. Every command imports what it needs when it runs, so that `upcall --help` answers at once."""

import io
import sys
from pathlib import Path

import click

from daemon.commands import ask, feedback, judge, keys, learn, ledger, models, routing, service
from daemon.commands.settings import Flags, config_option, load_settings, settings_or_exit

EXIT_STATUS = """Exit status: 0 done; 1 it failed, and standard error says why; 2 wrong usage or settings; 130 `ask` was
stopped by ctrl-C. `service status` and `service logs` end with systemctl's and journalctl's own."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_STATUS)
@click.version_option(package_name="upcall")
def cli() -> None:
    """Answer prompts on this machine, and call up to a cloud model only when it must."""


def main() -> None:
    """The console script: every expected failure is one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        # An answer may have characters that the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        cli()
    except Exception as error:
        from models.llama.errors import LoadError
        from models.store import StoreError
        from routers.interface import RouterError

        if not isinstance(error, StoreError | LoadError | RouterError | OSError):
            raise
        click.echo(f"upcall: {error}", err=True)
        sys.exit(1)


for command in (
    *(ask.ask, ask.status),
    *(models.pull, models.models, models.rm),
    *(routing.routers, routing.calibrate, routing.train, routing.evaluate, learn.learn_model),
    *(keys.key, service.service, judge.judge),
    *(feedback.feedback, ledger.stats, ledger.decisions, ledger.why),
):
    cli.add_command(command)


@cli.command()
@config_option
@click.option("--port", type=int, help="TCP port on loopback; 0 takes a free one.")
@click.option("--local-model", help="Name from `upcall models`, or path of a GGUF file.")
@click.option("--cloud-share", type=float, help="Share of prompts that may go to the cloud, 0 to 1.")
@click.option(
    "--privacy/--no-privacy",
    default=None,
    help="Keep everything on this machine for this run; --no-privacy lifts privacy.mode, not `upcall privacy on`.",
)
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
    settings = settings_or_exit(config, flags)

    import asyncio

    from daemon.logs import set_up_logging
    from daemon.processes.supervisor import Supervisor

    set_up_logging(settings.log)

    async def run() -> int:
        return await Supervisor(settings, lambda: load_settings(config, flags)).run()

    sys.exit(asyncio.run(run()))


@cli.command()
@click.argument("switch", type=click.Choice(["on", "off", "status", "forget"]))
@config_option
def privacy(switch: str, config: Path | None) -> None:
    """Keep everything on this machine (on), or let hard prompts go up (off); survives restarts. `forget` deletes what
    local.cache_on_disk has kept of conversations."""
    from daemon import kept
    from daemon import privacy as state
    from daemon.client import DaemonError, NotRunning, StrangerError, TokenUnreadable, call

    settings = settings_or_exit(config)
    if switch == "forget":
        click.echo(f"files of conversations deleted: {kept.forget()}")
        return
    if switch != "status":
        try:
            answer = call(settings.server, "PUT", "/upcall/privacy", {"on": switch == "on"})
            if detail := answer.get("detail"):
                click.echo(f"upcall: {detail}", err=True)
        except (NotRunning, TokenUnreadable) as error:
            if switch == "off" and settings.privacy.mode:
                raise click.ClickException("privacy.mode is set in config.toml; unset it there") from None
            state.remember(switch == "on")
            click.echo(
                f"upcall: {error}. The switch holds for the next start, and within seconds for a daemon that runs",
                err=True,
            )
            if isinstance(error, StrangerError):
                sys.exit(1)
        except DaemonError as error:
            raise click.ClickException(str(error)) from None
    try:
        on = bool(call(settings.server, "GET", "/healthz")["privacy"])
    except (NotRunning, TokenUnreadable):
        on = state.is_on(settings)
    except DaemonError as error:
        raise click.ClickException(str(error)) from None
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
    for finding in examine(settings_or_exit(config)):
        findings.append(finding)
        if not as_json:
            click.echo(f"{marks.get(finding.state, click.style('bad ', fg='red'))} {finding.check}: {finding.text}")
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    sys.exit(any(finding.state == "bad" for finding in findings))


@cli.group("config")
def config_group() -> None:
    """See and check the settings."""


@config_group.command("check")
@config_option
def config_check(config: Path | None) -> None:
    """Say what is wrong with the settings, one line per mistake."""
    settings_or_exit(config)
    click.echo("the settings are valid")


@config_group.command("show")
@config_option
def config_show(config: Path | None) -> None:
    """Print the settings from file, environment and defaults, as JSON."""
    click.echo(settings_or_exit(config).model_dump_json(indent=2))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes upcall's commands in SHELL; `eval` it, or save it where the shell looks."""
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(cli, {}, "upcall", "_UPCALL_COMPLETE").source())
