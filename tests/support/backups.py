"""Backups of a simulated world: real folders, simulated peers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from croft.control import backup_schema
from croft.control.work_messages import OpenBackupRestore, OpenBackupRun, OpenBackupVerify
from croft.node.backup_desk import BackupDesk
from croft.sim.world import Machine, World


def desk(machine: Machine) -> BackupDesk:
    """What the local API asks of a machine's backups."""
    return BackupDesk(machine.parts, list)


async def add(
    machine: Machine,
    name: str,
    *paths: Path,
    every_s: float = 0.0,
    keep: str = "",
    exclude: tuple[str, ...] = (),
    **policy: int,
) -> backup_schema.Backup:
    """Defines a backup; `policy` as of `backup_schema.RetentionPolicy`."""
    wanted = backup_schema.BackupWanted(
        name=name,
        paths_hex=[os.fsencode(path).hex() for path in paths],
        every_s=every_s,
        keep=keep,
        exclude=list(exclude),
        policy=backup_schema.RetentionPolicy(**policy),
    )
    return await desk(machine).add(wanted)


async def run(machine: Machine, name: str, *, is_anew: bool = False) -> backup_schema.BackupReport:
    """Runs it now."""
    return await desk(machine).run(OpenBackupRun(name, is_anew), _nobody)


async def restore(
    machine: Machine, name: str, into: Path, number: int = 0, inside: str = "", *, replaces: bool = False
) -> backup_schema.BackupRestored:
    """Writes a snapshot into a folder."""
    opening = OpenBackupRestore(name, os.fsencode(into), number, os.fsencode(inside), replaces)
    return await desk(machine).restore(opening, _nobody)


async def verify(machine: Machine, name: str, *, reads: bool = True) -> backup_schema.BackupVerified:
    """Whether everything is there."""
    return await desk(machine).verify(OpenBackupVerify(name, reads), _nobody)


async def prune(machine: Machine, name: str) -> backup_schema.BackupPruned:
    """Forgets and frees."""
    return await desk(machine).prune(backup_schema.BackupNamed(name=name))


@dataclass
class _Doomed:
    running: asyncio.Task[Any]


async def crash_during(world: World, name: str, work: Awaitable[Any], after_s: float) -> bool:
    """Lets a machine work for a while, then crashes it as SIGKILL does; whether it was still at it. It is up again."""
    machine = world[name]
    task: asyncio.Task[Any] = asyncio.ensure_future(work)
    assert machine.run is not None, f"{name} is up"
    machine.run.jobs.append(_Doomed(task))  # type: ignore[arg-type]  # it dies with its machine, as jobs do
    await asyncio.wait({task}, timeout=after_s)
    was_at_it = not task.done()
    await world.restart(name)
    await world.until(world.disunity, within_s=60)
    return was_at_it


def _nobody(files: int, done: int, total: int) -> None:
    """Watches."""
