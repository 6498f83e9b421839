"""Writes docs/upcall.1, the manual page, from the commands themselves: `python -m daemon.tools.man_page`."""

from collections.abc import Iterator

import click

from daemon.cli import cli

FILES = (
    ("~/.config/upcall/config.toml", "settings; `upcall config check` reads them"),
    ("~/.local/share/upcall/models", "models that were pulled"),
    ("~/.local/state/upcall", "ledger, privacy switch and calibrations of your own"),
)


def page() -> str:
    """The page, in the man macros (man(7))."""
    about = cli.get_short_help_str(200)
    lines = [
        '.TH UPCALL 1 "" upcall "User Commands"',
        f".SH NAME\nupcall \\- {_escaped(about[0].lower() + about[1:].rstrip('.'))}",
        ".SH SYNOPSIS\n.B upcall\n.I command\n[options]",
        ".SH COMMANDS",
        *(
            line
            for command, context in _commands(cli, click.Context(cli, info_name="upcall"))
            for line in _command(command, context)
        ),
        ".SH EXIT STATUS",
        _escaped(" ".join((cli.epilog or "").removeprefix("Exit status: ").split())),
        ".SH FILES",
        *(f".TP\n.I {_escaped(path)}\n{_escaped(what)}" for path, what in FILES),
    ]
    return "\n".join(lines) + "\n"


def _commands(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Every command that does something, in alphabetical order."""
    if not isinstance(command, click.Group):
        yield command, context
        return
    for name in command.list_commands(context):
        inner = command.commands[name]
        yield from _commands(inner, click.Context(inner, info_name=name, parent=context))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join(piece for parameter in command.params for piece in parameter.get_usage_pieces(context))
    yield f".SS {_escaped(' '.join(f'{context.command_path} {usage}'.split()))}"
    yield "\n.PP\n".join(_escaped(" ".join(paragraph.split())) for paragraph in (command.help or "").split("\n\n"))
    for parameter in command.params:
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)):
            yield f".TP\n.B {_escaped(record[0])}\n{_escaped(' '.join(record[1].split()))}"


def _escaped(text: str) -> str:
    """A line for roff: hyphens that can be copied, and nothing that looks like a request."""
    return ("\\&" if text.startswith((".", "'")) else "") + text.replace("\\", "\\e").replace("-", "\\-")


if __name__ == "__main__":
    print(page(), end="")
