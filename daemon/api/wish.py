"""What a request says about its own routing, in its model name and `x-upcall-*` headers; the same for every wire."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from daemon.api.errors import ApiError
from daemon.config import Routing
from daemon.policy import Route, Wish

ROUTER_NAME = re.compile(r"router-(?P<router>[a-z_]+)-(?P<threshold>\d+(\.\d+)?)")
"""As RouteLLM names them: `router-mf-0.116`."""
ROUTES: Mapping[str, Route | None] = {"auto": None, "local": "local", "cloud": "cloud"}


@dataclass(frozen=True, slots=True)
class Asked:
    wish: Wish
    explain: bool
    """Put the decision into the body, too."""
    warning: str | None = None
    """One line about what was asked for and not understood, for a header."""


def asked(model: str, headers: Mapping[str, str], routing: Routing) -> Asked:
    """Raises `ApiError` for a header or, if the settings say so, a model name that means nothing."""
    wish, warning = _by_model(model, routing)
    if value := headers.get("x-upcall-route"):
        if value not in ROUTES:
            raise _bad_header("x-upcall-route", "auto, local or cloud")
        wish = replace(wish, route=ROUTES[value])
    if value := headers.get("x-upcall-threshold"):
        wish = replace(wish, threshold=_probability(value))
    if value := headers.get("x-upcall-privacy"):
        if value not in ("on", "off"):
            raise _bad_header("x-upcall-privacy", "on; off leaves the settings as they are")
        wish = replace(wish, privacy=value == "on")
    if value := headers.get("x-upcall-sensitive"):
        if value != "allow":
            raise _bad_header("x-upcall-sensitive", "allow, or left out")
        wish = replace(wish, allow_sensitive=True)
    return Asked(wish, headers.get("x-upcall-explain") == "1", warning)


def _by_model(model: str, routing: Routing) -> tuple[Wish, str | None]:
    if model in ROUTES:
        return Wish(route=ROUTES[model]), None
    if match := ROUTER_NAME.fullmatch(model):
        threshold = float(match["threshold"])
        if threshold > 1:
            raise ApiError(400, f"The threshold in {model!r} is a probability, from 0 to 1.", param="model")
        return Wish(router=match["router"], threshold=threshold), None
    if routing.unknown_models == "refuse":
        message = f"There is no model {model!r}; GET /v1/models lists auto, local, cloud and the routers."
        raise ApiError(404, message, code="model_not_found", param="model")
    return Wish(), "unknown model name, routed as auto"


def _probability(value: str) -> float:
    try:
        threshold = float(value)
    except ValueError:
        threshold = -1
    if not 0 <= threshold <= 1:
        raise _bad_header("x-upcall-threshold", "a number from 0 to 1")
    return threshold


def _bad_header(name: str, valid: str) -> ApiError:
    return ApiError(400, f"The header {name} must be {valid}.")
