"""`upcall ask` and `upcall status`: the daemon from a terminal."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from daemon.commands.settings import config_option, settings_or_exit

EXIT_INTERRUPTED = 130


@click.command()
@click.argument("prompt", nargs=-1)
@click.option("-f", "--file", "files", multiple=True, type=click.File(encoding="utf-8"), help="Add a text file.")
@click.option("--local", "route", flag_value="local", help="Have it answered on this machine.")
@click.option("--cloud", "route", flag_value="cloud", help="Have it answered in the cloud.")
@click.option("--why", is_flag=True, help="Explain the decision after the answer.")
@click.option("-c", "--continue", "goes_on", is_flag=True, help="Go on with the last conversation.")
@click.option("--json", "as_json", is_flag=True, help="Answer and decision as one JSON object.")
@config_option
def ask(
    prompt: tuple[str, ...],
    files: Sequence[Any],
    route: str | None,
    why: bool,
    goes_on: bool,
    as_json: bool,
    config: Path | None,
) -> None:
    """Ask PROMPT, and print the answer as it comes; `-`, or nothing, reads the prompt from standard input.

    Standard output gets the answer alone, standard error the route and its reason. The last conversation is kept in
    memory ($XDG_RUNTIME_DIR) until you log out.
    """
    from daemon.client import DaemonError, stream

    settings = settings_or_exit(config)
    text = _prompt(prompt, files)
    messages = [*(_last_conversation() if goes_on else []), {"role": "user", "content": text}]
    headers = {"x-upcall-explain": "1", **({"x-upcall-route": route} if route else {})}
    answer: list[str] = []
    seen: dict[str, Any] = {}
    try:
        body = {"model": "auto", "messages": messages, "stream": True}
        for chunk in stream(settings.server, "/v1/chat/completions", body, headers):
            if not seen and not as_json:
                _dim(_route_line(chunk["x_upcall"]))
            seen = chunk["x_upcall"]
            for choice in chunk["choices"]:
                answer.append(choice["delta"].get("content") or "")
                if not as_json:
                    click.echo(_harmless(answer[-1]) if sys.stdout.isatty() else answer[-1], nl=False)
    except DaemonError as error:
        if answer and not as_json:
            click.echo()
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        click.echo(err=True)
        sys.exit(EXIT_INTERRUPTED)
    _keep_conversation([*messages, {"role": "assistant", "content": "".join(answer)}])
    if as_json:
        click.echo(json.dumps({"answer": "".join(answer), "decision": seen}, ensure_ascii=False, indent=2))
        return
    click.echo()
    if why:
        _dim(explained(seen))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@config_option
def status(as_json: bool, config: Path | None) -> None:
    """Say how the running daemon does; exit status 1 where none runs, or where it cannot answer."""
    from daemon.client import DaemonError, call

    try:
        health = call(settings_or_exit(config).server, "GET", "/healthz")
    except DaemonError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(health, indent=2))
    else:
        local, cloud, router = health["local"], health["cloud"], health["router"]
        rows = {
            "upcall": health["status"],
            "privacy mode": "on, nothing leaves this machine" if health["privacy"] else "off",
            "local model": _joined(local["model"], local["state"], local["detail"]),
            "cloud model": "; then ".join(_joined(each["model"], each["detail"]) for each in cloud["models"]),
            "router": _joined(router["name"], router["detail"]),
            "kernel": health["kernel"]["barrier"],
        }
        for name, value in rows.items():
            click.echo(f"{name:<13} {value}")
    sys.exit(health["status"] != "ok")


def explained(decision: Mapping[str, Any]) -> str:
    """The decision's reason and numbers on one line, for people."""
    numbers = [
        f"score {decision['score']:.3f}, threshold {decision['threshold']:.3f}"
        if decision["score"] is not None
        else "",
        f"by {decision['router']}" if decision["router"] else "",
        f"decided in {decision['router_ms']} ms",
        f"cost ${decision['cost_usd']:.6f}" if decision["cost_usd"] else "",
        f"saved ${decision['saved_usd']:.6f}" if decision["saved_usd"] else "",
        f"request {decision['request_id']}",
    ]
    return f"{decision['route']}, because {decision['explanation']} ({'; '.join(filter(None, numbers))})"


def _prompt(words: Sequence[str], files: Sequence[Any]) -> str:
    """What was asked: the words, then the files, then standard input where something is piped in."""
    parts = [" ".join(words)] if words and tuple(words) != ("-",) else []
    try:
        parts += [f"{file.name}:\n{file.read()}" for file in files]
        if not words or tuple(words) == ("-",):
            if sys.stdin.isatty() and not files:
                _dim("type the prompt, then Ctrl-D")
            if not (files and sys.stdin.isatty()):
                parts.append(sys.stdin.read())
    except UnicodeDecodeError as error:
        raise click.ClickException(f"this is not UTF-8 text ({error.reason}); ask takes text alone") from None
    text = "\n\n".join(part for part in parts if part.strip())
    if not text:
        raise click.UsageError('there is nothing to ask; try: upcall ask "why is the sky blue?"')
    return text


def _route_line(decision: Mapping[str, Any]) -> str:
    score = "" if decision["score"] is None else f" ({decision['score']:.2f} of {decision['threshold']:.2f})"
    return f"{decision['route']} · {decision['model']} · {decision['reason']}{score}"


def _harmless(text: str) -> str:
    """Without control characters: an answer could otherwise move the cursor, or retitle the terminal."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def _dim(text: str) -> None:
    click.secho(text, dim=True, err=True)


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _conversation_file() -> Path | None:
    """In memory, and gone at logout: an answer may say what its prompt was."""
    folder = os.environ.get("XDG_RUNTIME_DIR")
    return Path(folder, "upcall", "conversation.json") if folder else None


def _last_conversation() -> list[dict[str, Any]]:
    file = _conversation_file()
    if file is None:
        raise click.ClickException("there is no $XDG_RUNTIME_DIR to keep a conversation in; log in with a session")
    try:
        messages: list[dict[str, Any]] = json.loads(file.read_text())
    except (OSError, ValueError):
        raise click.ClickException("there is no conversation to go on with; ask without -c first") from None
    return messages


def _keep_conversation(messages: Sequence[Mapping[str, Any]]) -> None:
    if file := _conversation_file():
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            new = file.with_suffix(".new")
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
                json.dump(messages, out)
            new.replace(file)
        except OSError as error:
            _dim(f"the conversation is not kept: {error}")
