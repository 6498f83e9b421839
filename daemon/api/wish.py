"""What a request says about its own routing, in its model name and `x-upcall-*` headers; the same for every wire.

Clients that cannot set headers say the same in the body: `{"upcall": {"route": "local"}}` or `{"x-upcall-route":
"local"}`, at its top or in its `metadata`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from daemon.api.errors import ApiError
from daemon.config import Routing
from daemon.routing.policy import Route, Wish

ROUTER_NAME = re.compile(r"router-(?P<router>[a-z_]+)-(?P<threshold>\d+(\.\d+)?)")
"""As RouteLLM names them: `router-mf-0.116`."""
PREFIX = "x-upcall-"
WISHES: Mapping[str, Mapping[str, Any]] = {
    "x-upcall-route": {"type": "string", "enum": ["auto", "local", "cloud"]},
    "x-upcall-threshold": {"type": "string", "pattern": r"^(0(\.\d+)?|1(\.0+)?)$"},
    "x-upcall-privacy": {"type": "string", "enum": ["on", "off"]},
    "x-upcall-sensitive": {"type": "string", "enum": ["allow"]},
    "x-upcall-max-cost-usd": {"type": "string", "pattern": r"^\d{1,9}(\.\d{1,9})?$"},
    "x-upcall-explain": {"type": "string", "enum": ["0", "1"]},
}
"""Headers, each with the JSON schema of its values."""
LATEST = ":latest"
"""What clients of Ollama put behind the name of every model."""
ROUTES: Mapping[str, Route | None] = {"auto": None, "local": "local", "cloud": "cloud"}


@dataclass(frozen=True, slots=True)
class Asked:
    wish: Wish
    explain: bool
    """Put the decision into the body, too."""
    warning: str | None = None
    """One line about what was asked for and not understood, for a header."""


def asked(model: str, headers: Mapping[str, str], wishes: Mapping[str, str], routing: Routing) -> Asked:
    """`wishes` are those of the body; headers come before them.

    Raises `ApiError` for a wish or, if the settings say so, a model name that means nothing.
    """
    headers = {**wishes, **{name.lower(): value for name, value in headers.items()}}
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
    if value := headers.get("x-upcall-max-cost-usd"):
        if not re.fullmatch(WISHES["x-upcall-max-cost-usd"]["pattern"], value, re.ASCII):
            raise _bad_header("x-upcall-max-cost-usd", "US dollars, such as 0.05")
        wish = replace(wish, max_cost=float(value))
    return Asked(wish, headers.get("x-upcall-explain") == "1", warning)


def take_wishes(body: dict[str, Any]) -> dict[str, str]:
    """Take out of `body` what it says to upcall, which is nobody else's business; named as the headers are.

    Raises `ApiError` for a wish that there is no header for.
    """
    wishes: dict[str, str] = {}
    for place in (body, *(body.get(key) for key in ("metadata", "extra_body"))):
        if isinstance(place, dict):
            wishes |= dict(_taken(place))
    for key in ("metadata", "extra_body"):
        if wishes and body.get(key) == {}:
            del body[key]
    return wishes


def _taken(place: dict[str, Any]) -> Iterator[tuple[str, str]]:
    grouped = place.pop("upcall", {})
    if not isinstance(grouped, dict):
        raise ApiError(400, 'upcall must be an object, such as {"route": "local"}.', param="upcall")
    flat = [key for key in place if key.lower().startswith(PREFIX)]
    for key, value in [*grouped.items(), *((key, place.pop(key)) for key in flat)]:
        name = PREFIX + key.lower().replace("_", "-").removeprefix(PREFIX)
        if name not in WISHES:
            known = ", ".join(wish.removeprefix(PREFIX) for wish in WISHES)
            raise ApiError(400, f"There is no wish {key!r}; there are {known}.", param=f"upcall.{key}")
        if isinstance(value, bool):
            value = {"x-upcall-explain": "01"}.get(name, ("off", "on"))[value]
        yield name, str(value)


def _by_model(model: str, routing: Routing) -> tuple[Wish, str | None]:
    model = model.removesuffix(LATEST)
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
