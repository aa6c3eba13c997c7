"""Backups from a program: define, run, restore and look after them. `grid.backup` is one of these."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from croft.client.local_api import LocalApi
from croft.client.stored_files import ENDED
from croft.client.work_connection import WorkConnection
from croft.control import backup_schema
from croft.control.home import Home
from croft.control.work_messages import (
    BackupDone,
    OpenBackupRestore,
    OpenBackupRun,
    OpenBackupVerify,
    StorageProgress,
)

A = TypeVar("A", bound=msgspec.Struct)

Path = str | bytes | os.PathLike[str]
OnProgress = Callable[[StorageProgress], None]
EVERYTHING = backup_schema.RetentionPolicy()


class Backups:
    """The backups of this peer's owner. Every method may be called from any thread.

    All raise Unreachable if the daemon is not running.
    """

    def __init__(self, home: Home, api: LocalApi) -> None:
        self._work_socket = home.work_socket
        self._api = api

    def add(
        self,
        *paths: Path,
        name: str = "",
        to: Sequence[str] = (),
        keep: str = "",
        every_s: float = 0.0,
        exclude: Sequence[str] = (),
        policy: backup_schema.RetentionPolicy = EVERYTHING,
    ) -> backup_schema.Backup:
        """Defines a backup of files and folders of this machine.

        Args:
            name: what to call it; by default as the first path ends.
            to: who may hold it: `friends`, names of communities and of peers; by default whoever lends disk.
            keep: `4of8`: any 4 of 8 shares are enough; `copies=3`; by default as the number of peers suggests.
            every_s: how often it runs by itself; 0: only when it is told to.
            exclude: patterns, as of a shell, of names that are left out, or with a / of whole paths.
            policy: how many snapshots are kept; by default all of them.

        Raises:
            Usage: a path is not there. Busy: there is one of this name. NotFound: nobody is called so.
        """
        whole = [os.path.abspath(os.fsencode(path)) for path in paths]
        wanted = backup_schema.BackupWanted(
            name=name or (os.path.basename(whole[0]).decode(errors="replace") if whole else ""),
            paths_hex=[path.hex() for path in whole],
            to=list(to),
            keep=keep,
            every_s=every_s,
            exclude=list(exclude),
            policy=policy,
        )
        return self._api.add_backup(wanted)

    def change(
        self,
        name: str,
        *,
        to: Sequence[str] | None = None,
        keep: str | None = None,
        every_s: float | None = None,
        exclude: Sequence[str] | None = None,
        policy: backup_schema.RetentionPolicy | None = None,
    ) -> backup_schema.Backup:
        """Changes a backup of this device; what is not given stays as it is. See `add`.

        What is stored already stays where it is. Raises Usage, NotFound, Refused.
        """
        return self._api.change_backup(
            backup_schema.BackupChange(
                name=name,
                to=None if to is None else [*to],
                keep=keep,
                every_s=every_s,
                exclude=None if exclude is None else [*exclude],
                policy=policy,
            )
        )

    def list(self) -> list[backup_schema.Backup]:
        """Every backup of the owner, those of this device first."""
        return self._api.backups()

    def run(
        self, name: str, *, is_anew: bool = False, progress: OnProgress = lambda _: None
    ) -> backup_schema.BackupReport:
        """Runs one to its end; if it runs already, waits for that. Raises CroftError if it fails.

        `is_anew`: everything is read and sent, as if nothing were stored: for when holders lost some of it for good.
        """
        return self._work(OpenBackupRun(name, is_anew), backup_schema.BackupReport, progress)

    def snapshots(self, name: str) -> Sequence[backup_schema.BackupSnapshot]:
        """What runs found, oldest first. Raises NotFound."""
        return self._api.backup_snapshots(name)

    def restore(
        self,
        name: str,
        into: Path,
        *,
        snapshot: int = 0,
        inside: str | bytes = b"",
        replaces: bool = False,
        progress: OnProgress = lambda _: None,
    ) -> backup_schema.BackupRestored:
        """Writes a snapshot into a folder.

        Args:
            snapshot: its number; 0: the newest. inside: only this part of it, as `photos/2024`.
            replaces: files that are there already and differ; those that are right are left in any case.

        Raises:
            NotFound: there is no such backup, snapshot or part. Refused: something is in the way; nothing was written.
            Unreachable: too few holders are up.
        """
        place = os.path.abspath(os.fsencode(into))
        opening = OpenBackupRestore(name, place, snapshot, os.fsencode(inside), replaces)
        return self._work(opening, backup_schema.BackupRestored, progress)

    def verify(
        self, name: str, *, reads: bool = False, progress: OnProgress = lambda _: None
    ) -> backup_schema.BackupVerified:
        """Asks all holders whether everything is there, and how many of them may be lost; `reads`: reads all of it."""
        return self._work(OpenBackupVerify(name, reads), backup_schema.BackupVerified, progress)

    def prune(self, name: str) -> backup_schema.BackupPruned:
        """Forgets the snapshots that the policy lets go, and frees what only they needed. Raises NotFound, Busy."""
        return self._api.prune_backup(name)

    def adopt(self, name: str, *paths: Path, own_name: str = "") -> backup_schema.Backup:
        """Goes on, from this machine, with the backup of a device that is gone; nothing is sent again.

        Args:
            paths: what it backs up from now on; by default what it did. They must be here: restore them first.
            own_name: what to call it from now on; by default as before.

        Raises:
            NotFound: there is no such backup. Refused: its device is up. Usage: a path is not there.
            Busy: there is one of this name here.
        """
        places = [os.path.abspath(os.fsencode(path)).hex() for path in paths]
        return self._api.adopt_backup(backup_schema.BackupAdoption(name=name, own_name=own_name, paths_hex=places))

    def rm(self, name: str) -> backup_schema.BackupRemoved:
        """Drops a backup, with all its snapshots. Raises NotFound, Busy, Refused."""
        return self._api.remove_backup(name)

    def _work(
        self, opening: OpenBackupRun | OpenBackupRestore | OpenBackupVerify, kind: type[A], progress: OnProgress
    ) -> A:
        work = WorkConnection(self._work_socket, ENDED)
        try:
            work.send(opening)
            while True:
                match work.receive():
                    case StorageProgress() as told:
                        progress(told)
                    case BackupDone(answer):
                        return msgspec.json.decode(answer, type=kind)
                    case other:
                        raise AssertionError(f"{type(other).__name__} in the work on a backup")
        finally:
            work.close()


class AsyncBackups:
    """The asyncio twin of `Backups`: the same calls, awaited."""

    def __init__(self, backups: Backups) -> None:
        self._backups = backups

    async def add(
        self,
        *paths: Path,
        name: str = "",
        to: Sequence[str] = (),
        keep: str = "",
        every_s: float = 0.0,
        exclude: Sequence[str] = (),
        policy: backup_schema.RetentionPolicy = EVERYTHING,
    ) -> backup_schema.Backup:
        """See `Backups.add`."""
        add = partial(self._backups.add, *paths, name=name, to=to, keep=keep)
        return await asyncio.to_thread(add, every_s=every_s, exclude=exclude, policy=policy)

    async def change(
        self,
        name: str,
        *,
        to: Sequence[str] | None = None,
        keep: str | None = None,
        every_s: float | None = None,
        exclude: Sequence[str] | None = None,
        policy: backup_schema.RetentionPolicy | None = None,
    ) -> backup_schema.Backup:
        """See `Backups.change`."""
        change = partial(self._backups.change, name, to=to, keep=keep, every_s=every_s)
        return await asyncio.to_thread(change, exclude=exclude, policy=policy)

    async def list(self) -> Sequence[backup_schema.Backup]:
        """See `Backups.list`."""
        return await asyncio.to_thread(self._backups.list)

    async def run(self, name: str, *, is_anew: bool = False) -> backup_schema.BackupReport:
        """See `Backups.run`."""
        return await asyncio.to_thread(self._backups.run, name, is_anew=is_anew)

    async def snapshots(self, name: str) -> Sequence[backup_schema.BackupSnapshot]:
        """See `Backups.snapshots`."""
        return await asyncio.to_thread(self._backups.snapshots, name)

    async def restore(
        self, name: str, into: Path, *, snapshot: int = 0, inside: str | bytes = b"", replaces: bool = False
    ) -> backup_schema.BackupRestored:
        """See `Backups.restore`."""
        restore = partial(self._backups.restore, name, into, snapshot=snapshot)
        return await asyncio.to_thread(restore, inside=inside, replaces=replaces)

    async def verify(self, name: str, *, reads: bool = False) -> backup_schema.BackupVerified:
        """See `Backups.verify`."""
        return await asyncio.to_thread(self._backups.verify, name, reads=reads)

    async def prune(self, name: str) -> backup_schema.BackupPruned:
        """See `Backups.prune`."""
        return await asyncio.to_thread(self._backups.prune, name)

    async def adopt(self, name: str, *paths: Path, own_name: str = "") -> backup_schema.Backup:
        """See `Backups.adopt`."""
        return await asyncio.to_thread(self._backups.adopt, name, *paths, own_name=own_name)

    async def rm(self, name: str) -> backup_schema.BackupRemoved:
        """See `Backups.rm`."""
        return await asyncio.to_thread(self._backups.rm, name)
