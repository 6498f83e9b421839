"""Pictures and sounds inside a prompt, which no search for words goes through."""

import re

_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+=-]+)*;base64,[A-Za-z0-9+/=_-]*", re.ASCII)


def is_data_url(text: str) -> bool:
    """Whether all of `text` is one, in base64 (RFC 2397): words may begin like it, too."""
    return text.startswith("data:") and _DATA_URL.fullmatch(text) is not None
