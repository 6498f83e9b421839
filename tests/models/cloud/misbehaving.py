"""What a provider says that will not answer, and what must not be shown of it."""

import asyncio

from tests.emulators.upstream import Call

SECRET = "sk-live-do-not-print"
PROMPT = "the launch codes are 0000 and nobody may know"


def shown_nothing(message: str) -> bool:
    return SECRET not in message and "launch codes" not in message and "\n" not in message


async def error(call: Call, status: int, kind: str = "some_error", message: str = "Said the provider.", **headers: str):
    body = {"message": message, "type": kind, "code": kind, "param": None}
    await call.refuse(status, {"type": "error", "error": body}, **headers)


async def hang(call: Call) -> None:
    await asyncio.sleep(60)
