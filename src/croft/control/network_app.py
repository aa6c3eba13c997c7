"""The local API on the ways between peers, and on what this peer lends of its bandwidth."""

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

    def offers(self) -> list[schema.Offer]: ...

    async def offer_relay(self, wanted: schema.OfferWanted) -> schema.Offer: ...

    async def withdraw_offer(self, what: str) -> schema.Offer: ...


def network_routes(network: Network) -> list[Route]:
    """One route per question."""

    async def net(_: Request) -> object:
        return network.net()

    async def measure(request: Request) -> object:
        wanted: schema.MeasureWanted = await body(request, schema.MeasureWanted)
        return await network.measure(wanted.peer)

    async def offers(_: Request) -> object:
        return network.offers()

    async def offer_relay(request: Request) -> object:
        return await network.offer_relay(await body(request, schema.OfferWanted))

    async def withdraw(request: Request) -> object:
        return await network.withdraw_offer(request.path_params["what"])

    return [
        Route("/v1/net", answer(net), methods=["GET"]),
        Route("/v1/net/measurements", answer(measure), methods=["POST"]),
        Route("/v1/offers", answer(offers), methods=["GET"]),
        Route("/v1/offers/relay", answer(offer_relay), methods=["PUT"]),
        Route("/v1/offers/{what}", answer(withdraw), methods=["DELETE"]),
    ]
