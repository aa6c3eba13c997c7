"""Brings a database to the present schema: the files `NNNN_what.sql` beside this one, in order.

Each runs in one transaction together with the `PRAGMA user_version` that records it. They are for ever: a
change of schema is a new file.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from croft.errors import Failed

_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema. `version` is what `PRAGMA user_version` says after it."""

    version: int
    name: str
    script: str


@cache
def migrations() -> tuple[Migration, ...]:
    """All of them, in order; their numbers have no gap."""
    found = []
    for file in resources.files(__name__).iterdir():
        match = _FILE_NAME.fullmatch(file.name)
        if match:
            found.append(Migration(int(match[1]), file.name, file.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.version)
    assert [migration.version for migration in found] == list(range(1, len(found) + 1)), "a number is missing"
    return tuple(found)


def version_of(connection: sqlite3.Connection) -> int:
    """The number of the last migration that a database has seen; 0 for a new one."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def refuse_newer(connection: sqlite3.Connection, where: str) -> None:
    """Raises Failed if a later version of Croft has written this database. Reads only."""
    found, known = version_of(connection), len(migrations())
    if found > known:
        raise Failed(
            f"{where} was written by a newer version of Croft (schema {found}, this one knows {known})",
            remedy="Update Croft on this machine; the file has not been touched.",
        )


def migrate(connection: sqlite3.Connection, where: str) -> None:
    """Runs what is missing. `connection` must be in autocommit mode.

    Raises:
        Failed: a later version of Croft has written this database.
    """
    refuse_newer(connection, where)
    for migration in migrations()[version_of(connection) :]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            if version_of(connection) < migration.version:  # another process may have been faster
                for statement in _statements(migration.script):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {migration.version}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise


def _statements(script: str) -> Iterator[str]:
    """Cuts a script into statements: `executescript` would commit the transaction that is open."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    assert not statement.strip(), "a migration ends with a semicolon"
