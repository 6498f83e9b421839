"""What is known of each router: the numbers on its card, as they were measured and recorded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from routers.calibration import shipped
from routers.graph import ARTIFACTS
from routers.interface import RouterError

RESULTS = ARTIFACTS.parent / "results"
BENCHMARKS = ("mt-bench", "gsm8k", "mmlu")


@dataclass(frozen=True, slots=True)
class Card:
    """One router; what was never measured of it is missing."""

    name: str
    version: str
    size: int
    """Bytes of the artifact and its calibration, without the encoder."""
    milliseconds: float | None
    """Median for a prompt of 100 tokens on one thread, encoder included, on the machine that `results` describes."""
    apgr: Mapping[str, float]
    """By benchmark, of this very version."""
    calibration_error: float | None
    """Expected; None for a router whose scores say nothing."""


def card(name: str) -> Card:
    """The card of the router called `name`.

    Raises:
        RouterError: it has no calibration, or a damaged one.
    """
    calibration = shipped(name)
    version = "" if name == "random" else calibration.version  # of random choice no version is recorded
    evaluated = [row for row in _read("evaluation.json", []) if (row["router"], row["version"]) == (name, version)]
    return Card(
        name,
        calibration.version,
        sum(file.stat().st_size for file in (ARTIFACTS / name).glob("*")),
        _read("latency.json", {}).get(name, {}).get("100"),
        {row["benchmark"]: row["apgr"] for row in evaluated},
        calibration.expected_calibration_error if calibration.reliability else None,
    )


def _read(name: str, otherwise: Any) -> Any:
    try:
        return json.loads((RESULTS / name).read_text())
    except FileNotFoundError:
        return otherwise
    except ValueError as error:
        raise RouterError(f"{RESULTS / name} cannot be read ({error}): install upcall again.") from error
