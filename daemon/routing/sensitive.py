"""Recognises what people would not want to leave the machine: secrets, card and account numbers, identities.

Best effort, by pattern and check digit; it misses what it does not know and is never the guarantee. Privacy mode is.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from daemon.config import Sensitive, SensitiveKind
from models.data_url import is_data_url

MOST = 200_000
"""Characters of a message that are looked at, from its start and from its end."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of sensitive text."""

    name: str
    pattern: "re.Pattern[str]"
    check: str | None = None
    """The python-stdnum module whose check digits a match must have."""

    def found_in(self, text: str) -> bool:
        matches = self.pattern.finditer(text)
        return any(self.check is None or _is_valid(self.check, match.group()) for match in matches)


class Recogniser:
    def __init__(self, settings: Sensitive) -> None:
        self._kinds = tuple(_chosen(settings))

    def find(self, said: Iterable[Mapping[str, Any]]) -> str | None:
        """The name of the first kind that anything in `said` holds, whoever wrote it; `None` if there is none."""
        texts = [_window(text) for each in said for text in _strings(each)]
        return next((kind.name for kind in self._kinds if any(kind.found_in(text) for text in texts)), None)


def _strings(value: object) -> Iterator[str]:
    """Every string inside a JSON value: contents, parts, tool arguments; not the pictures and sounds themselves."""
    match value:
        case str():
            if not is_data_url(value):
                yield value
        case Mapping():
            for item in value.values():
                yield from _strings(item)
        case Sequence():
            for item in value:
                yield from _strings(item)


def _window(text: str) -> str:
    return text if len(text) <= 2 * MOST else f"{text[:MOST]}\n{text[-MOST:]}"


def _chosen(settings: Sensitive) -> Iterator[Kind]:
    for name in settings.kinds:
        yield from KINDS[name]
    if settings.keywords:
        words = "|".join(re.escape(word) for word in settings.keywords)
        yield Kind("keyword", re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE))
    for own, pattern in settings.patterns.items():
        yield Kind(own, re.compile(pattern))


@cache
def _validator(module: str) -> Callable[[str], bool]:
    validate: Callable[[str], bool] = import_module(f"stdnum.{module}").is_valid
    return validate


def _is_valid(module: str, number: str) -> bool:
    return _validator(module)(re.sub(r"[ .-]", "", number))


def _kind(name: str, pattern: str, check: str | None = None, flags: int = 0) -> Kind:
    return Kind(name, re.compile(pattern, flags), check)


_DIGITS = r"(?<![\w.-])\d(?:[ .-]?\d){%d,%d}(?![\w-])"

KINDS: Mapping[SensitiveKind, Sequence[Kind]] = {
    "secret": (
        _kind("private key", r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
        # Prefixes that providers gave their keys so that they can be recognised.
        _kind(
            "API key",
            r"(?<![\w-])(?:sk-(?:ant-|proj-)?[\w-]{16,}|gh[pousr]_\w{30,}|github_pat_\w{30,}|glpat-[\w-]{16,}"
            r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|xox[abeprs]-[\w-]{10,}|hf_\w{30,}|npm_\w{30,}"
            r"|pypi-[\w-]{40,}|[sr]k_live_\w{20,}|ya29\.[\w-]{20,})",
        ),
        _kind("token", r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}"),
        _kind(
            "password",
            r"(?:password|passwd|passphrase|senha|contraseña|api[_-]?key|secret[_-]?key|access[_-]?token)"
            r"[\"']?(?:\s+(?:is|é|es))?\s*(?:=|:|:=|=>)\s*[\"']?(?![\w.]*\()(?=[^\s\"']*[^a-z\s\"'(<${\[])[^\s\"'(<${\[]{6,}",
            flags=re.IGNORECASE,
        ),
    ),
    "payment": (
        _kind("card number", _DIGITS % (12, 18), "luhn"),
        _kind("IBAN", r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)", "iban"),
    ),
    "contact": (
        # An address that takes no mail is nobody's; coding assistants carry one in all of their prompts.
        _kind(
            "e-mail address",
            r"(?<![\w.+-])(?!(?i:no-?reply|do-?not-?reply)@)[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])",
        ),
        _kind("phone number", r"(?<![\w+])\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,11}(?!\w)"),
        _kind("phone number", r"(?<!\w)\(\d{2,3}\) ?9?\d{3,4}-\d{4}(?!\w)"),
    ),
    "identity": (
        _kind("CPF", r"(?<![\w.-])(?:\d{3}\.\d{3}\.\d{3}-\d{2}|\d{11})(?![\w-])", "br.cpf"),
        _kind("CNPJ", r"(?<![\w.-])(?:\d{2}\.\d{3}\.\d{3}/\d{4}-\d{2}|\d{14})(?![\w-])", "br.cnpj"),
        _kind("social security number", r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", "us.ssn"),
        _kind("codice fiscale", r"(?<!\w)[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z](?!\w)", "it.codicefiscale"),
        _kind("DNI", r"(?<!\w)\d{8}-?[A-Z](?!\w)", "es.dni"),
        _kind("NIR", r"(?<!\w)[12] ?\d{2} ?\d{2} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}(?!\w)", "fr.nir"),
        _kind("CURP", r"(?<!\w)[A-Z]{4}\d{6}[A-Z]{6}[A-Z0-9]\d(?!\w)", "mx.curp"),
        _kind("CUIT", r"(?<![\w-])\d{2}-\d{8}-\d(?![\w-])", "ar.cuit"),
        _kind("RUT", r"(?<![\w.-])\d{1,2}\.\d{3}\.\d{3}-[\dK](?!\w)", "cl.rut"),
    ),
}
"""By the names that the settings use, in the order that they are looked for."""
