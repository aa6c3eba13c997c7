"""The local API's routes for jobs: which there are, how one stands, and ending it."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.routing import Route

from croft.control import schema
from croft.control.answers import answer


class Jobs(Protocol):
    """What the routes ask of the peer."""

    async def listed(self) -> list[schema.Job]: ...

    async def shown(self, name: str) -> schema.Job: ...

    async def cancel(self, name: str) -> schema.Job: ...

    async def forget(self, name: str) -> schema.Job: ...


def job_routes(jobs: Jobs) -> list[Route]:
    """The routes."""

    async def listed(_: Request) -> object:
        return await jobs.listed()

    async def shown(request: Request) -> object:
        return await jobs.shown(request.path_params["job"])

    async def cancel(request: Request) -> object:
        return await jobs.cancel(request.path_params["job"])

    async def forget(request: Request) -> object:
        return await jobs.forget(request.path_params["job"])

    return [
        Route("/v1/jobs", answer(listed), methods=["GET"]),
        Route("/v1/jobs/{job:path}", answer(shown), methods=["GET"]),
        Route("/v1/jobs/{job:path}/cancellation", answer(cancel), methods=["POST"]),
        Route("/v1/jobs/{job:path}", answer(forget), methods=["DELETE"]),
    ]
