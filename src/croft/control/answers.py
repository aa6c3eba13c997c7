"""How a question to the local API becomes an answer: JSON in and out, errors with code and remedy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from croft.control import schema
from croft.errors import CroftError, NotFound, Refused, Unreachable, Usage

BODY_BYTES_MAX = 64 << 10

_STATUS_BY_EXIT_CODE = {
    Usage.exit_code: 400,
    NotFound.exit_code: 404,
    Refused.exit_code: 403,
    Unreachable.exit_code: 502,
}


async def body(request: Request, kind: type[Any]) -> Any:
    """The request's body as a `kind`. Raises Usage."""
    sent = await request.body()
    if len(sent) > BODY_BYTES_MAX:
        raise Usage(f"request of {len(sent)} bytes, limit is {BODY_BYTES_MAX}")
    try:
        return msgspec.json.decode(sent or b"{}", type=kind)
    except msgspec.MsgspecError as error:
        raise Usage(f"the request is not valid: {error}") from None


def answer(ask: Callable[[Request], Awaitable[object]]) -> Callable[[Request], Awaitable[Response]]:
    """Turns what `ask` returns, or the error it raises, into a response."""

    async def answered(request: Request) -> Response:
        try:
            said, status = await ask(request), 200
        except CroftError as error:
            said = schema.Failure(
                code=error.code, message=error.message, remedy=error.remedy, exit_code=error.exit_code
            )
            status = _STATUS_BY_EXIT_CODE.get(error.exit_code, 500)
        return Response(msgspec.json.encode(said), status_code=status, media_type="application/json")

    return answered
