"""A decision as clients see it: `x-upcall-*` headers, and the same as an object."""

import uuid
from typing import TYPE_CHECKING, Any

from daemon.dispatcher import Bill, Chosen

if TYPE_CHECKING:
    from routers.knn import Neighbour


def new_request_id() -> str:
    return uuid.uuid4().hex


def explanation(chosen: Chosen, request_id: str, bill: Bill | None = None) -> dict[str, Any]:
    """The decision as a JSON object; what a hard rule left open or is not known yet is null."""
    decision, verdict = chosen.decision, chosen.verdict
    return {
        "request_id": request_id,
        "route": decision.route,
        "model": chosen.model,
        "reason": decision.reason.code,
        "explanation": decision.reason.value,
        "score": decision.score,
        "threshold": decision.threshold if decision.score is not None else None,
        "router": decision.router,
        "router_ms": round(chosen.router_ms, 2),
        "confidence": verdict.confidence if verdict else None,
        "confidence_threshold": verdict.threshold if verdict else None,
        "held_back_ms": round(verdict.milliseconds, 2) if verdict else None,
        "degraded": decision.degraded,
        "neighbours": [_neighbour(each) for each in chosen.neighbours] or None,
        "cost_usd": bill.cost if bill else None,
        "saved_usd": bill.saved if bill else None,
    }


def _neighbour(neighbour: "Neighbour") -> dict[str, Any]:
    """`strong_ahead`: how far strong models' answers to it were ahead, in standard deviations of its source."""
    return {
        "source": neighbour.source,
        "similarity": round(neighbour.similarity, 3),
        "strong_ahead": round(neighbour.lead, 2),
    }


def headers(chosen: Chosen, request_id: str, warning: str | None, bill: Bill | None = None) -> dict[str, str]:
    """The decision as response headers; what is not known is left out, as a stream's cost is at its start."""
    seen = explanation(chosen, request_id, bill)
    named = {
        "x-upcall-request-id": request_id,
        "x-upcall-route": seen["route"],
        "x-upcall-model": seen["model"],
        "x-upcall-reason": seen["reason"],
        "x-upcall-score": _number(seen["score"]),
        "x-upcall-threshold": _number(seen["threshold"]),
        "x-upcall-confidence": _number(seen["confidence"]),
        "x-upcall-router": seen["router"],
        "x-upcall-latency-router-ms": str(seen["router_ms"]),
        "x-upcall-degraded": "true" if seen["degraded"] else None,
        "x-upcall-cost-usd": _dollars(seen["cost_usd"]),
        "x-upcall-saved-usd": _dollars(seen["saved_usd"]),
        "x-upcall-warning": warning,
    }
    return {name: _printable(value) for name, value in named.items() if value is not None}


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _dollars(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}"


def _printable(value: str) -> str:
    """Model names come from files and settings: nothing but visible ASCII may reach a header."""
    return "".join(character if " " <= character <= "~" else "?" for character in value)
