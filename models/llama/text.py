"""Token pieces to text that is safe to send: whole characters, nothing of a stop string."""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Piece:
    """Text to send, with the logprob entries of its tokens."""

    text: str
    logprobs: Sequence[Mapping[str, Any]] = ()


@dataclass(slots=True)
class TextStream:
    """Holds back what may yet become part of a character or of one of `stops`."""

    stops: Sequence[str]
    stopped: str | None = None
    """The stop string that has been met; nothing follows then."""
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    _held: str = ""
    _logprobs: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    """Entries of tokens not sent yet, each with the length of `_held` after its token."""

    def push(self, piece: bytes, logprob: Mapping[str, Any] | None = None) -> Piece:
        """Take the next token's bytes; what can be sent now, maybe nothing."""
        self._held += self._decoder.decode(piece)
        if logprob is not None:
            self._logprobs.append((len(self._held), logprob))
        found = [(at, stop) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.stopped = min(found)
            return self._send(at)
        return self._send(len(self._held) - max((_overlap(self._held, stop) for stop in self.stops), default=0))

    def finish(self) -> Piece:
        """The rest, when no more tokens come; half a character at the end is dropped."""
        return self._send(0 if self.stopped else len(self._held))

    def _send(self, length: int) -> Piece:
        text, self._held = self._held[:length], self._held[length:]
        # Tokens that brought no text of their own, such as half characters, go with the text that completes them.
        sent = [entry for end, entry in self._logprobs if end <= length and text]
        self._logprobs = [(end - length, entry) for end, entry in self._logprobs if not (end <= length and text)]
        return Piece(text, sent)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
