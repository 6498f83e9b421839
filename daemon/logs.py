"""Logging to standard error, where systemd's journal and a terminal find it. No level logs prompts or answers."""

import logging
import os

from daemon.config import Log


def set_up_logging(settings: Log) -> None:
    """One line per record; under systemd with the journal's own priorities (sd-daemon(3)) instead of times."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Journal() if "JOURNAL_STREAM" in os.environ else _Terminal())
    logging.basicConfig(level=settings.level.upper(), handlers=[handler])


class _Terminal(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S")


class _Journal(logging.Formatter):
    PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        priority = next((priority for level, priority in self.PRIORITIES if record.levelno >= level), 7)
        return f"<{priority}>{super().format(record)}"
