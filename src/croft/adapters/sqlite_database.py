"""The peer's state in one SQLite file; see `croft.ports.Database`.

Guarantees: what `run` has returned from is on disk (WAL, synchronous=FULL) and survives SIGKILL and power
loss; a transaction is whole or absent; one thread does all the work, in the order of the calls.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from croft.adapters.migrations import migrate, refuse_newer
from croft.errors import Failed

T = TypeVar("T")

BUSY_S_MAX = 10.0
PRIVATE_MODE = 0o600
_PRIMARY_CODE = 0xFF

_EXPLANATIONS = {
    sqlite3.SQLITE_FULL: ("the disk is full", "Free some space there, then try again."),
    sqlite3.SQLITE_READONLY: ("it cannot be written", "Check who owns the file and its folder."),
    sqlite3.SQLITE_PERM: ("it cannot be written", "Check who owns the file and its folder."),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "Check that its folder exists and is writable."),
    sqlite3.SQLITE_IOERR: ("the disk reports an error", "Check the disk's health and free space."),
    sqlite3.SQLITE_BUSY: ("another program keeps it locked", "Stop the other program that uses it."),
    sqlite3.SQLITE_NOTADB: ("it is not a database", "Move the file away; a new one will be made."),
    sqlite3.SQLITE_CORRUPT: ("it is damaged", "Restore it from a backup, or move it away to start anew."),
}


def explained(error: sqlite3.Error, where: str) -> Failed | None:
    """What a failure of the machine below means to the user; None if the statement was at fault."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None or (code & _PRIMARY_CODE) not in _EXPLANATIONS:
        return None
    what, remedy = _EXPLANATIONS[code & _PRIMARY_CODE]
    return Failed(f"cannot use {where}: {what}", remedy=remedy)


def transact(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T], where: str) -> T:
    """Runs `work` in one transaction: committed if it returns, rolled back if it raises."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # some failures have rolled back already
                connection.execute("ROLLBACK")
            raise
    except sqlite3.Error as error:
        failure = explained(error, where)
        if failure is None:
            raise
        raise failure from error
    return result


class SqliteDatabase:
    """One file, one thread, one writer. Made by `open`, ended by `close`."""

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor, where: str) -> None:
        self._connection = connection
        self._thread = thread
        self._where = where
        self._is_closed = False

    @classmethod
    async def open(cls, path: Path) -> SqliteDatabase:
        """Opens or makes the file, readable by its owner only, and brings it to the present schema.

        Raises:
            Failed: it cannot be used, or a newer version of Croft has written it; then it is left as it was.
        """
        thread = ThreadPoolExecutor(1, "croft.database")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _open, path)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(connection, thread, str(path))

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work` in one transaction; a cancelled call is carried out whole or not at all.

        Raises:
            Failed: the disk is full, cannot be written or is damaged.
            Exception: what `work` raises comes through as it is.
        """
        assert not self._is_closed, "the database is closed"
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, transact, self._connection, work, self._where)

    async def close(self) -> None:
        """Waits for the work under way, then closes the file. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()


def _open(path: Path) -> sqlite3.Connection:
    where = str(path)
    try:
        if path.exists():
            # Read-only first: not even the journal mode of a newer file may change.
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as probe:
                refuse_newer(probe, where)
        else:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, PRIVATE_MODE))
        connection = sqlite3.connect(path, timeout=BUSY_S_MAX, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise explained(error, where) or error from error
    except OSError as error:
        raise Failed(
            f"cannot use {where}: {error.strerror}", remedy="Check that its folder exists and is writable."
        ) from error
    try:
        prepare(connection, where)
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(connection: sqlite3.Connection, where: str) -> None:
    """Sets up a connection in autocommit mode: durable, strict about references, at the present schema."""
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        migrate(connection, where)
    except sqlite3.Error as error:
        raise explained(error, where) or error from error
