"""Logging to standard error, where systemd's journal and a terminal find it. No level logs prompts or answers."""

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemon.config import Log

OURS = ("daemon", "models", "routers")
"""Whose records `log.level` is about."""


def set_up_logging(settings: "Log") -> None:
    """One line per record, in the journal with its own priorities (sd-daemon(3)). A later call takes the place of this.

    Libraries are heard from warnings on, whatever the level: the providers' SDKs write whole requests at `debug`.
    """
    handler = logging.StreamHandler()
    handler.addFilter(redact_record)
    formatter: logging.Formatter = _Json() if settings.format == "json" else _Text(times=not _journal())
    handler.setFormatter(_Prioritized(formatter) if _journal() else formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in OURS:
        logging.getLogger(package).setLevel(settings.level.upper())


def redact_record(record: logging.LogRecord) -> bool:
    """A filter that lets every record pass, without what looks like a secret in message, fields or traceback.

    A second net: nothing that upcall logs should hold a key in the first place. An error that a library logs is named
    and no more, since it may quote what it could not read.
    """
    if record.exc_info and record.name.partition(".")[0] not in OURS:
        record.msg, record.args = _named(record), None
        record.exc_info = record.exc_text = None
    if isinstance(record.args, Mapping):
        record.args = {name: redact(value) if isinstance(value, str) else value for name, value in record.args.items()}
    else:
        record.msg, record.args = record.getMessage(), None
    record.msg = redact(str(record.msg))
    if record.exc_info:
        record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
    return True


def _named(record: logging.LogRecord) -> str:
    """What happened, of which kind and where, of an error whose own words may be a prompt's."""
    assert record.exc_info
    kind, _, trace = record.exc_info
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
    first, *_ = record.getMessage().splitlines() or [""]
    return f"{first} ({kind.__name__ if kind else 'error'}{place})"


def redact(text: str) -> str:
    """`text` with everything that looks like a secret replaced."""
    text = _ASSIGNED.sub(r"\1" + REDACTED, text)
    return SECRET.sub(REDACTED, text)


REDACTED = "[redacted]"

SECRET = re.compile(
    r"""
    \b(?:sk|pk|rk|gsk|xai|pplx|hf|r8|ghp|gho|ghs|ghu|github_pat|glpat|xox[abprs])[-_][A-Za-z0-9_-]{12,}
    | \bAIza[A-Za-z0-9_-]{30,}
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b
    | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----[\s\S]*?(?:-----END[ ][A-Z ]*PRIVATE[ ]KEY-----|\Z)
    """,
    re.VERBOSE,
)
_ASSIGNED = re.compile(
    r"((?:bearer\s+|basic\s+|(?:api[-_ ]?key|authorization|password|passwd|secret|token)\W{1,4}))"
    r"(?!bearer\b|basic\b)[^\s\"',;]{8,}",
    re.IGNORECASE,
)


class _Text(logging.Formatter):
    def __init__(self, times: bool) -> None:
        layout = "%(asctime)s %(levelname)-7s %(name)s: %(message)s" if times else "%(name)s: %(message)s"
        super().__init__(layout, datefmt="%H:%M:%S")


class _Json(logging.Formatter):
    """One object per line; the fields of a record that was logged with a mapping are keys of their own."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": time, "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": record.getMessage(), **(record.args if isinstance(record.args, Mapping) else {})}
        if record.exc_text:
            line["traceback"] = record.exc_text
        return json.dumps(line, ensure_ascii=False, default=str)


class _Prioritized(logging.Formatter):
    PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = next((priority for level, priority in self.PRIORITIES if record.levelno >= level), 7)
        # The journal reads the priority of every line anew.
        return "\n".join(f"<{priority}>{line}" for line in self._inner.format(record).splitlines())


def _journal() -> bool:
    """Whether standard error goes to the journal; the variable alone is inherited by whatever a service starts."""
    try:
        seen = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{seen.st_dev}:{seen.st_ino}"
