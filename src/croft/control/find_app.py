"""The local API's routes for finding: peers by what they have, and who has what a key names."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.routing import Route

from croft.control import schema
from croft.control.answers import answer, body


class Search(Protocol):
    """What the routes ask of the peer."""

    async def find_peers(self, wanted: schema.PeersWanted) -> list[schema.Peer]: ...

    async def find_key(self, wanted: schema.KeyWanted) -> schema.Located: ...

    def provided(self) -> list[str]: ...

    async def provide(self, wanted: schema.KeyWanted) -> list[str]: ...

    async def withdraw_key(self, wanted: schema.KeyWanted) -> list[str]: ...


def find_routes(search: Search) -> list[Route]:
    """The routes."""

    async def find_peers(request: Request) -> object:
        return await search.find_peers(await body(request, schema.PeersWanted))

    async def find_key(request: Request) -> object:
        return await search.find_key(await body(request, schema.KeyWanted))

    async def provided(_: Request) -> object:
        return search.provided()

    async def provide(request: Request) -> object:
        return await search.provide(await body(request, schema.KeyWanted))

    async def withdraw(request: Request) -> object:
        return await search.withdraw_key(await body(request, schema.KeyWanted))

    return [
        Route("/v1/find/peers", answer(find_peers), methods=["POST"]),
        Route("/v1/find/key", answer(find_key), methods=["POST"]),
        Route("/v1/provided", answer(provided), methods=["GET"]),
        Route("/v1/provided", answer(provide), methods=["POST"]),
        Route("/v1/provided/withdrawn", answer(withdraw), methods=["POST"]),
    ]
