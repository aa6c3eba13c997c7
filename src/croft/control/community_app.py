"""The local API on communities."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.routing import Route

from croft.control import schema
from croft.control.answers import answer, body


class CommunityBook(Protocol):
    """What the local API asks about communities."""

    def communities(self) -> list[schema.Community]: ...

    async def create(self, wanted: schema.CommunityWanted) -> schema.Community: ...

    def members(self, wanted: schema.CommunityWanted) -> list[schema.CommunityMember]: ...

    async def set_role(self, wanted: schema.RoleWanted) -> schema.CommunityMember: ...

    async def remove(self, wanted: schema.RemovalOfMember) -> schema.CommunityMember: ...

    async def leave(self, wanted: schema.CommunityWanted) -> schema.Community: ...

    async def set_rules(self, wanted: schema.RulesWanted) -> schema.Community: ...

    def log(self, wanted: schema.LogWanted) -> list[schema.CommunityAct]: ...


def community_routes(book: CommunityBook) -> list[Route]:
    """One route per question."""

    async def communities(_: Request) -> object:
        return book.communities()

    async def create(request: Request) -> object:
        return await book.create(await body(request, schema.CommunityWanted))

    async def members(request: Request) -> object:
        return book.members(await body(request, schema.CommunityWanted))

    async def set_role(request: Request) -> object:
        return await book.set_role(await body(request, schema.RoleWanted))

    async def remove(request: Request) -> object:
        return await book.remove(await body(request, schema.RemovalOfMember))

    async def leave(request: Request) -> object:
        return await book.leave(await body(request, schema.CommunityWanted))

    async def set_rules(request: Request) -> object:
        return await book.set_rules(await body(request, schema.RulesWanted))

    async def log(request: Request) -> object:
        return book.log(await body(request, schema.LogWanted))

    return [
        Route("/v1/communities", answer(communities), methods=["GET"]),
        Route("/v1/communities", answer(create), methods=["POST"]),
        Route("/v1/communities/members", answer(members), methods=["POST"]),
        Route("/v1/communities/roles", answer(set_role), methods=["POST"]),
        Route("/v1/communities/removals", answer(remove), methods=["POST"]),
        Route("/v1/communities/departures", answer(leave), methods=["POST"]),
        Route("/v1/communities/rules", answer(set_rules), methods=["POST"]),
        Route("/v1/communities/log", answer(log), methods=["POST"]),
    ]
