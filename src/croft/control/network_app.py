"""The local API on the ways between peers."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.routing import Route

from croft.control import schema
from croft.control.answers import answer, body


class Network(Protocol):
    """What the local API asks about the network."""

    def net(self) -> schema.Net: ...

    async def measure(self, peer: str) -> schema.Way: ...


def network_routes(network: Network) -> list[Route]:
    """One route per question."""

    async def net(_: Request) -> object:
        return network.net()

    async def measure(request: Request) -> object:
        wanted: schema.MeasureWanted = await body(request, schema.MeasureWanted)
        return await network.measure(wanted.peer)

    return [
        Route("/v1/net", answer(net), methods=["GET"]),
        Route("/v1/net/measurements", answer(measure), methods=["POST"]),
    ]
