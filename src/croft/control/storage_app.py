"""The local API's routes for stored files: which there are, removing them, and how they stand."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.routing import Route

from croft.control import schema
from croft.control.answers import answer, body


class Files(Protocol):
    """What the routes ask of the peer."""

    async def files(self, wanted: schema.FilesWanted) -> list[schema.StoredFile]: ...

    async def remove(self, wanted: schema.RemovalWanted) -> schema.FilesRemoved: ...

    async def collect(self) -> schema.FilesRemoved: ...

    async def roll_back(self, wanted: schema.RollbackWanted) -> schema.StoredFile: ...

    async def snapshots(self) -> list[schema.Snapshot]: ...

    async def take_snapshot(self, wanted: schema.SnapshotWanted) -> list[schema.Snapshot]: ...

    async def drop_snapshot(self, wanted: schema.SnapshotWanted) -> list[schema.Snapshot]: ...

    async def links(self) -> list[schema.FileLink]: ...

    async def make_link(self, wanted: schema.LinkWanted) -> schema.FileLink: ...

    async def revoke_link(self, wanted: schema.LinkNamed) -> schema.FileLink: ...

    async def verify_link(self, wanted: schema.VerificationWanted) -> schema.LinkVerified: ...

    async def check(self) -> schema.StorageState: ...

    async def rebalance(self, wanted: schema.RebalanceWanted) -> schema.Rebalanced: ...

    async def state(self) -> schema.StorageState: ...

    async def recover(self) -> schema.Recovered: ...


def storage_routes(files: Files) -> list[Route]:
    """The routes."""

    async def listed(request: Request) -> object:
        return await files.files(await body(request, schema.FilesWanted))

    async def remove(request: Request) -> object:
        return await files.remove(await body(request, schema.RemovalWanted))

    async def collect(_: Request) -> object:
        return await files.collect()

    async def roll_back(request: Request) -> object:
        return await files.roll_back(await body(request, schema.RollbackWanted))

    async def snapshots(_: Request) -> object:
        return await files.snapshots()

    async def take_snapshot(request: Request) -> object:
        return await files.take_snapshot(await body(request, schema.SnapshotWanted))

    async def drop_snapshot(request: Request) -> object:
        return await files.drop_snapshot(await body(request, schema.SnapshotWanted))

    async def links(_: Request) -> object:
        return await files.links()

    async def make_link(request: Request) -> object:
        return await files.make_link(await body(request, schema.LinkWanted))

    async def revoke_link(request: Request) -> object:
        return await files.revoke_link(await body(request, schema.LinkNamed))

    async def verify_link(request: Request) -> object:
        return await files.verify_link(await body(request, schema.VerificationWanted))

    async def check(_: Request) -> object:
        return await files.check()

    async def rebalance(request: Request) -> object:
        return await files.rebalance(await body(request, schema.RebalanceWanted))

    async def state(_: Request) -> object:
        return await files.state()

    async def recover(_: Request) -> object:
        return await files.recover()

    return [
        Route("/v1/storage", answer(state), methods=["GET"]),
        Route("/v1/storage/rollbacks", answer(roll_back), methods=["POST"]),
        Route("/v1/storage/snapshots", answer(snapshots), methods=["GET"]),
        Route("/v1/storage/snapshots", answer(take_snapshot), methods=["POST"]),
        Route("/v1/storage/snapshots/dropped", answer(drop_snapshot), methods=["POST"]),
        Route("/v1/storage/links", answer(links), methods=["GET"]),
        Route("/v1/storage/links", answer(make_link), methods=["POST"]),
        Route("/v1/storage/links/revoked", answer(revoke_link), methods=["POST"]),
        Route("/v1/storage/links/verified", answer(verify_link), methods=["POST"]),
        Route("/v1/storage/checks", answer(check), methods=["POST"]),
        Route("/v1/storage/rebalances", answer(rebalance), methods=["POST"]),
        Route("/v1/storage/files", answer(listed), methods=["POST"]),
        Route("/v1/storage/removals", answer(remove), methods=["POST"]),
        Route("/v1/storage/recoveries", answer(recover), methods=["POST"]),
        Route("/v1/storage/collections", answer(collect), methods=["POST"]),
    ]
