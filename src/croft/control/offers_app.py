"""The local API on what this peer offers, and what others offer to it."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.routing import Route

from croft.control import schema
from croft.control.answers import answer, body


class Offers(Protocol):
    """What the local API asks about offers."""

    def offers(self) -> list[schema.Offer]: ...

    async def lend(self, wanted: schema.LendWanted) -> schema.Offer: ...

    async def offer_relay(self, wanted: schema.OfferWanted) -> schema.Offer: ...

    async def withdraw_offer(self, what: str) -> schema.Offer: ...


def offer_routes(desk: Offers) -> list[Route]:
    """One route per question."""

    async def offers(_: Request) -> object:
        return desk.offers()

    async def lend(request: Request) -> object:
        return await desk.lend(await body(request, schema.LendWanted))

    async def offer_relay(request: Request) -> object:
        return await desk.offer_relay(await body(request, schema.OfferWanted))

    async def withdraw(request: Request) -> object:
        return await desk.withdraw_offer(request.path_params["what"])

    return [
        Route("/v1/offers", answer(offers), methods=["GET"]),
        Route("/v1/offers", answer(lend), methods=["POST"]),
        Route("/v1/offers/relay", answer(offer_relay), methods=["PUT"]),
        Route("/v1/offers/{what}", answer(withdraw), methods=["DELETE"]),
    ]
