"""The tokenizer against what Hugging Face's `tokenizers` 0.23 gives for the same vocabulary."""

from pathlib import Path

import pytest

from routers.interface import RouterError
from routers.minilm import VOCABULARY
from routers.wordpiece import WordPiece


@pytest.fixture(scope="module")
def wordpiece(minilm_path: Path) -> WordPiece:
    return WordPiece(minilm_path.with_name(VOCABULARY))


KNOWN = {
    "Olá, você está bem? naïve CAFÉ": [19330, 2050, 1010, 29536, 3401, 9765, 2050, 2022, 2213, 1029, 15743, 7668],
    "日本語 x=3.14!": [1864, 1876, 1950, 1060, 1027, 1017, 1012, 2403, 999],
    "unbelievably tokenization 🦙": [4895, 8671, 2666, 3567, 6321, 19204, 3989, 100],
    "zero\u200bwidth\ttab": [5717, 9148, 11927, 2232, 21628],
    "x" * 101: [100],
    "": [],
}


@pytest.mark.parametrize("text", KNOWN)
def test_tokens_are_those_of_the_reference(wordpiece: WordPiece, text: str) -> None:
    assert wordpiece.tokens(text, 100, 0) == [101, *KNOWN[text], 102]


def test_of_a_long_text_the_first_and_the_last_tokens_are_kept(wordpiece: WordPiece) -> None:
    all_of_them = wordpiece.tokens(" ".join(map(str, range(1000, 1100))), 1000, 0)[1:-1]
    kept = wordpiece.tokens(" ".join(map(str, range(1000, 1100))), 7, 3)
    assert kept == [101, *all_of_them[:7], *all_of_them[-3:], 102]


def test_a_missing_or_foreign_vocabulary_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RouterError, match="upcall pull minilm-l6"):
        WordPiece(tmp_path / VOCABULARY)
    (tmp_path / VOCABULARY).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RouterError, match="no BERT vocabulary"):
        WordPiece(tmp_path / VOCABULARY)
    (tmp_path / VOCABULARY).write_text("a\nb\n")
    with pytest.raises(RouterError, match="no BERT vocabulary"):
        WordPiece(tmp_path / VOCABULARY)
