"""Text to the token numbers of uncased BERT models: WordPiece, as `vocab.txt` of all-MiniLM-L6-v2 expects it."""

import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from routers.interface import RouterError

LONGEST_WORD = 100
"""Characters; BERT takes longer words as unknown."""


class WordPiece:
    """Tokenizes with the vocabulary file at `path`.

    Raises:
        RouterError: the file is missing or is no such vocabulary.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            self._numbers = {piece: number for number, piece in enumerate(lines)}
            self.begin, self.end, self._unknown = (self._numbers[piece] for piece in ("[CLS]", "[SEP]", "[UNK]"))
        except FileNotFoundError:
            raise RouterError(f"The vocabulary {path} is missing: run `upcall pull minilm-l6`.") from None
        except (OSError, UnicodeError, KeyError) as error:
            raise RouterError(
                f"{path} is no BERT vocabulary ({error!r}): fetch it again with `upcall rm minilm-l6-vocab` and "
                "`upcall pull minilm-l6`."
            ) from error

    def tokens(self, text: str, head: int, tail: int) -> list[int]:
        """`[CLS]`, the first `head` and the last `tail` tokens of `text` or all where they are fewer, `[SEP]`."""
        found = [number for word in _words(text) for number in self._pieces(word)]
        if len(found) > head + tail:
            found = found[:head] + found[len(found) - tail :]
        return [self.begin, *found, self.end]

    def _pieces(self, word: str) -> list[int]:
        """The longest known beginning, then the longest known continuation of it, and so on."""
        if len(word) > LONGEST_WORD:
            return [self._unknown]
        pieces = []
        start = 0
        while start < len(word):
            mark = "##" if start else ""
            for end in range(len(word), start, -1):
                if (number := self._numbers.get(mark + word[start:end])) is not None:
                    break
            else:
                return [self._unknown]
            pieces.append(number)
            start = end
        return pieces


def _words(text: str) -> Iterator[str]:
    """Lower case without accents, cut at white space, punctuation and around every Chinese character."""
    separated = "".join(_separated(character) for character in text)
    for word in separated.split():
        plain = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        yield from "".join(f" {c} " if _is_punctuation(c) else c for c in plain).split()


@lru_cache(maxsize=4096)
def _separated(character: str) -> str:
    if character.isspace():
        return " "
    if ord(character) in (0, 0xFFFD) or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn"):
        return ""
    return f" {character} " if any(first <= ord(character) <= last for first, last in _CHINESE) else character


@lru_cache(maxsize=4096)
def _is_punctuation(character: str) -> bool:
    ascii_symbol = "!" <= character <= "~" and not character.isalnum()
    return ascii_symbol or unicodedata.category(character).startswith("P")


_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
