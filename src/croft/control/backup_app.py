"""The local API's routes for backups: which there are, defining and removing them. What takes long: `backup_work`."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.routing import Route

from croft.control import backup_schema
from croft.control.answers import answer, body


class Backups(Protocol):
    """What the routes ask of the peer."""

    async def backups(self) -> list[backup_schema.Backup]: ...

    async def add(self, wanted: backup_schema.BackupWanted) -> backup_schema.Backup: ...

    async def change(self, wanted: backup_schema.BackupChange) -> backup_schema.Backup: ...

    async def adopt(self, wanted: backup_schema.BackupAdoption) -> backup_schema.Backup: ...

    async def remove(self, wanted: backup_schema.BackupNamed) -> backup_schema.BackupRemoved: ...

    async def snapshots(self, wanted: backup_schema.BackupNamed) -> list[backup_schema.BackupSnapshot]: ...

    async def prune(self, wanted: backup_schema.BackupNamed) -> backup_schema.BackupPruned: ...


def backup_routes(backups: Backups) -> list[Route]:
    """The routes."""

    async def listed(_: Request) -> object:
        return await backups.backups()

    async def add(request: Request) -> object:
        return await backups.add(await body(request, backup_schema.BackupWanted))

    async def change(request: Request) -> object:
        return await backups.change(await body(request, backup_schema.BackupChange))

    async def adopt(request: Request) -> object:
        return await backups.adopt(await body(request, backup_schema.BackupAdoption))

    async def remove(request: Request) -> object:
        return await backups.remove(await body(request, backup_schema.BackupNamed))

    async def snapshots(request: Request) -> object:
        return await backups.snapshots(await body(request, backup_schema.BackupNamed))

    async def prune(request: Request) -> object:
        return await backups.prune(await body(request, backup_schema.BackupNamed))

    return [
        Route("/v1/backups", answer(listed), methods=["GET"]),
        Route("/v1/backups", answer(add), methods=["POST"]),
        Route("/v1/backups/changed", answer(change), methods=["POST"]),
        Route("/v1/backups/adopted", answer(adopt), methods=["POST"]),
        Route("/v1/backups/removed", answer(remove), methods=["POST"]),
        Route("/v1/backups/snapshots", answer(snapshots), methods=["POST"]),
        Route("/v1/backups/pruned", answer(prune), methods=["POST"]),
    ]
