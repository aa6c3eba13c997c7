"""The local API on what this machine offers to others by name: exposed services."""

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


def service_routes(services: Services) -> list[Route]:
    """One route per question."""

    async def expose(request: Request) -> object:
        return await services.expose(await body(request, schema.ExposureWanted))

    async def exposures(_: Request) -> object:
        return services.exposures()

    async def unexpose(request: Request) -> object:
        return await services.unexpose(request.path_params["name"])

    return [
        Route("/v1/exposures", answer(expose), methods=["POST"]),
        Route("/v1/exposures", answer(exposures), methods=["GET"]),
        Route("/v1/exposures/{name}", answer(unexpose), methods=["DELETE"]),
    ]
