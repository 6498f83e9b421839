"""Reads a request's body: JSON, checked by the wire format's model, and freed of what it says to upcall itself."""

from collections.abc import Mapping
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from daemon.api.errors import ApiError
from daemon.api.wish import take_wishes

Body = TypeVar("Body", bound=BaseModel)


_WRAPPED = 10
"""Levels that a body goes deeper on its way to a model's process, whose parser of JSON ends as deep as this one."""
_DEEP = 200 - _WRAPPED


class Loose(BaseModel):
    """A body or a part of one. What is not named in it is no error: where a cloud may know it, it passes as it is."""

    model_config = ConfigDict(extra="allow")


async def read(request: web.Request, model: type[Body]) -> tuple[Body, dict[str, Any], Mapping[str, str]]:
    """The body as `model`, as it came, and its wishes as headers would name them. Raises `ApiError`."""
    body = await request.read()
    try:
        raw = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.") from None
    if body.count(b"[") + body.count(b"{") > _DEEP:
        try:
            from_json(b"[" * _WRAPPED + body + b"]" * _WRAPPED)
        except ValueError:
            raise ApiError(400, f"The body is nested more than {_DEEP} deep.") from None
    if not isinstance(raw, dict):
        raise ApiError(400, "The body must be a JSON object.")
    wishes = take_wishes(raw)
    return check(model, raw), raw, wishes


def check(model: type[Body], raw: Mapping[str, Any]) -> Body:
    """Raises `ApiError`, naming the first field that is wrong."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> ApiError:
    # Of a union's branches the one that came furthest is what the client meant.
    first = max(error.errors(), key=lambda detail: len(detail["loc"]))
    # A union's branch names are pydantic's, not the client's: `messages.0.content.str` is `messages.0.content`.
    param = ".".join(str(key) for key in first["loc"] if not _is_branch(key))
    return ApiError(400, f"{param}: {first['msg'].removeprefix('Value error, ')}.", param=param)


def _is_branch(key: int | str) -> bool:
    return isinstance(key, str) and (key == "str" or "[" in key)
