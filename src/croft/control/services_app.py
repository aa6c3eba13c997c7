"""The local API on what this machine offers to others by name: exposed services; and its limits."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.routing import Route

from croft.control import schema
from croft.control.answers import answer, body


class Services(Protocol):
    """What the local API asks about services."""

    async def expose(self, wanted: schema.ExposureWanted) -> schema.Exposure: ...

    def exposures(self) -> list[schema.Exposure]: ...

    async def unexpose(self, name: str) -> schema.Exposure: ...

    async def set_limit(self, wanted: schema.LimitWanted) -> schema.Limit: ...

    def limits(self) -> list[schema.Limit]: ...

    async def remove_limit(self, number: int) -> schema.Limit: ...


def service_routes(services: Services) -> list[Route]:
    """One route per question."""

    async def expose(request: Request) -> object:
        return await services.expose(await body(request, schema.ExposureWanted))

    async def exposures(_: Request) -> object:
        return services.exposures()

    async def unexpose(request: Request) -> object:
        return await services.unexpose(request.path_params["name"])

    async def set_limit(request: Request) -> object:
        return await services.set_limit(await body(request, schema.LimitWanted))

    async def limits(_: Request) -> object:
        return services.limits()

    async def remove_limit(request: Request) -> object:
        return await services.remove_limit(request.path_params["number"])

    return [
        Route("/v1/exposures", answer(expose), methods=["POST"]),
        Route("/v1/exposures", answer(exposures), methods=["GET"]),
        Route("/v1/exposures/{name}", answer(unexpose), methods=["DELETE"]),
        Route("/v1/limits", answer(set_limit), methods=["POST"]),
        Route("/v1/limits", answer(limits), methods=["GET"]),
        Route("/v1/limits/{number:int}", answer(remove_limit), methods=["DELETE"]),
    ]
