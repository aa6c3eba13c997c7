"""The work socket's side of backups: what takes long and tells how far it has come."""

from __future__ import annotations

from typing import Protocol, assert_never

import msgspec

from croft.control import backup_schema
from croft.control.storage_work import Progress, told, while_listening
from croft.control.work_messages import BackupDone, OpenBackupRestore, OpenBackupRun, OpenBackupVerify
from croft.wire.message_stream import MessageStream


class BackupDesk(Protocol):
    """What is asked of the peer's backups."""

    async def run(self, opening: OpenBackupRun, progress: Progress) -> backup_schema.BackupReport:
        """Runs one, or watches it if it runs already. Raises CroftError."""
        ...

    async def restore(self, opening: OpenBackupRestore, progress: Progress) -> backup_schema.BackupRestored:
        """Writes a snapshot, or part of it, into a folder. Raises CroftError."""
        ...

    async def verify(self, opening: OpenBackupVerify, progress: Progress) -> backup_schema.BackupVerified:
        """Looks whether everything can be restored. Raises CroftError."""
        ...


async def serve_backup(
    desk: BackupDesk, opening: OpenBackupRun | OpenBackupRestore | OpenBackupVerify, messages: MessageStream
) -> None:
    """Does what the program wants, until that is done or the program goes away."""

    async def done() -> msgspec.Struct:
        match opening:
            case OpenBackupRun():
                return await desk.run(opening, told(messages))
            case OpenBackupRestore():
                return await desk.restore(opening, told(messages))
            case OpenBackupVerify():
                return await desk.verify(opening, told(messages))
            case _:
                assert_never(opening)

    async def work() -> None:
        messages.post(BackupDone(msgspec.json.encode(await done())))
        await messages.flush()

    await while_listening(work(), messages)
