"""The local API on capabilities: what others let the owner call, and what the owner lets others."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.routing import Route

from croft.control import schema
from croft.control.answers import answer, body


class Capabilities(Protocol):
    """What the local API asks about capabilities."""

    def capabilities(self) -> list[schema.Capability]: ...

    async def offer_capability(self, wanted: schema.CapabilityWanted) -> schema.Capability: ...

    async def withdraw_capability(self, name: str) -> schema.Capability: ...


def capability_routes(desk: Capabilities) -> list[Route]:
    """One route per question."""

    async def capabilities(_: Request) -> object:
        return desk.capabilities()

    async def offer(request: Request) -> object:
        return await desk.offer_capability(await body(request, schema.CapabilityWanted))

    async def withdraw(request: Request) -> object:
        return await desk.withdraw_capability(request.path_params["name"])

    return [
        Route("/v1/capabilities", answer(capabilities), methods=["GET"]),
        Route("/v1/capabilities", answer(offer), methods=["POST"]),
        Route("/v1/capabilities/{name}", answer(withdraw), methods=["DELETE"]),
    ]
