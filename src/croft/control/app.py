"""The HTTP side of the local API: one route per question, JSON in and out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from croft.control import schema
from croft.errors import CroftError, NotFound, Refused, Unreachable, Usage

BODY_BYTES_MAX = 64 << 10

_STATUS_BY_EXIT_CODE = {
    Usage.exit_code: 400,
    NotFound.exit_code: 404,
    Refused.exit_code: 403,
    Unreachable.exit_code: 502,
}


class Node(Protocol):
    """What the local API asks of the peer."""

    def status(self) -> schema.Status: ...

    def peers(self) -> list[schema.Peer]: ...

    async def invite(self, wanted: schema.InvitationWanted) -> schema.Invitation: ...

    async def invitations(self) -> list[schema.Invitation]: ...

    async def withdraw(self, invitation: str) -> schema.Invitation: ...

    async def join(self, wanted: schema.JoinWanted) -> schema.Joined: ...

    async def jobs(self) -> list[schema.Job]: ...

    def settings(self) -> list[schema.Setting]: ...

    def stop(self) -> None: ...


def create_app(node: Node) -> Starlette:
    """The application; the caller serves it on a socket that only the owner can open."""

    async def status(_: Request) -> object:
        return node.status()

    async def peers(_: Request) -> object:
        return node.peers()

    async def invite(request: Request) -> object:
        return await node.invite(await _body(request, schema.InvitationWanted))

    async def invitations(_: Request) -> object:
        return await node.invitations()

    async def withdraw(request: Request) -> object:
        return await node.withdraw(request.path_params["invitation"])

    async def join(request: Request) -> object:
        return await node.join(await _body(request, schema.JoinWanted))

    async def jobs(_: Request) -> object:
        return await node.jobs()

    async def settings(_: Request) -> object:
        return node.settings()

    async def stop(_: Request) -> object:
        node.stop()
        return {}

    return Starlette(
        routes=[
            Route("/v1/status", _answer(status), methods=["GET"]),
            Route("/v1/peers", _answer(peers), methods=["GET"]),
            Route("/v1/invitations", _answer(invite), methods=["POST"]),
            Route("/v1/invitations", _answer(invitations), methods=["GET"]),
            Route("/v1/invitations/{invitation}", _answer(withdraw), methods=["DELETE"]),
            Route("/v1/join", _answer(join), methods=["POST"]),
            Route("/v1/jobs", _answer(jobs), methods=["GET"]),
            Route("/v1/settings", _answer(settings), methods=["GET"]),
            Route("/v1/stop", _answer(stop), methods=["POST"]),
        ]
    )


async def _body(request: Request, kind: type[Any]) -> Any:
    body = await request.body()
    if len(body) > BODY_BYTES_MAX:
        raise Usage(f"request of {len(body)} bytes, limit is {BODY_BYTES_MAX}")
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.MsgspecError as error:
        raise Usage(f"the request is not valid: {error}") from None


def _answer(ask: Callable[[Request], Awaitable[object]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            body, status = await ask(request), 200
        except CroftError as error:
            body = schema.Failure(
                code=error.code, message=error.message, remedy=error.remedy, exit_code=error.exit_code
            )
            status = _STATUS_BY_EXIT_CODE.get(error.exit_code, 500)
        return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")

    return answer
