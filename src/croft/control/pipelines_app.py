"""The local API on pipelines."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.routing import Route

from croft.control import schema
from croft.control.answers import answer


class Pipelines(Protocol):
    """What the local API asks about pipelines."""

    def pipelines(self) -> list[schema.Pipeline]: ...

    def pipeline(self, name: str) -> schema.Pipeline: ...

    async def cancel_pipeline(self, name: str) -> schema.Pipeline: ...

    async def forget_pipeline(self, name: str) -> schema.Pipeline: ...


def pipeline_routes(desk: Pipelines) -> list[Route]:
    """One route per question."""

    async def pipelines(_: Request) -> object:
        return desk.pipelines()

    async def pipeline(request: Request) -> object:
        return desk.pipeline(request.path_params["name"])

    async def cancel(request: Request) -> object:
        return await desk.cancel_pipeline(request.path_params["name"])

    async def forget(request: Request) -> object:
        return await desk.forget_pipeline(request.path_params["name"])

    return [
        Route("/v1/pipelines", answer(pipelines), methods=["GET"]),
        Route("/v1/pipelines/{name}", answer(pipeline), methods=["GET"]),
        Route("/v1/pipelines/{name}/cancellation", answer(cancel), methods=["POST"]),
        Route("/v1/pipelines/{name}", answer(forget), methods=["DELETE"]),
    ]
