"""The real machine: the shared suite, and what only real files and threads can suffer."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from machine_suite import Machine, MachineSuite, RunOn, names, put

from croft.adapters.migrations import migrations
from croft.adapters.sqlite_database import SqliteDatabase
from croft.adapters.system import SystemClock, SystemEntropy, ThreadOffload
from croft.errors import Failed
from croft.ports import Clock, Database, Entropy, Offload


class ThisMachine:
    """Files in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def database(self) -> Database:
        return await SqliteDatabase.open(self._folder / "state.sqlite")

    def clock(self) -> Clock:
        return SystemClock()

    def entropy(self) -> Entropy:
        return SystemEntropy()

    def offload(self) -> Offload:
        return ThreadOffload(2)


@pytest.fixture
def run_on(tmp_path: Path) -> RunOn:
    def start(story: Callable[[Machine], Awaitable[None]]) -> None:
        async def main() -> None:
            await story(ThisMachine(tmp_path))

        asyncio.run(main())

    return start


class TestRealMachine(MachineSuite):
    """On files and threads."""


WRITER = """
import asyncio, sys
from pathlib import Path
from croft.adapters.sqlite_database import SqliteDatabase
async def main():
    database = await SqliteDatabase.open(Path(sys.argv[1]))
    for number in range(1_000_000):
        row = (f"{number:07}", bytes(2000))
        await database.run(lambda c: c.execute("INSERT INTO setting VALUES (?, ?)", row))
        print(number, flush=True)
asyncio.run(main())
"""


def test_rows_that_were_acknowledged_survive_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    acknowledged = -1
    for _ in range(3):
        path.unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                acknowledged = int(line)
                if acknowledged == 40:
                    child.send_signal(signal.SIGKILL)
        assert acknowledged >= 40

        async def main() -> list[str]:
            database = await SqliteDatabase.open(path)
            found = await database.run(names)
            await database.close()
            return found

        found = asyncio.run(main())
        assert found[: acknowledged + 1] == [f"{number:07}" for number in range(acknowledged + 1)]


def test_a_file_of_a_newer_version_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE future (x)")
        connection.execute(f"PRAGMA user_version = {len(migrations()) + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(Failed, match="newer version of Croft") as caught:
        asyncio.run(SqliteDatabase.open(path))
    assert "Update Croft" in caught.value.remedy
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state.sqlite"]


def test_what_is_not_a_database_is_named_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"dear diary, " * 1_000)
    with pytest.raises(Failed, match="not a database") as caught:
        asyncio.run(SqliteDatabase.open(path))
    assert caught.value.remedy
    with pytest.raises(Failed, match="cannot use") as caught:
        asyncio.run(SqliteDatabase.open(tmp_path / "nowhere" / "state.sqlite"))
    assert "folder" in caught.value.remedy


def test_a_full_disk_fails_the_call_with_a_remedy_and_keeps_the_rest(tmp_path: Path) -> None:
    async def main() -> None:
        database = await SqliteDatabase.open(tmp_path / "state.sqlite")
        await database.run(put("before", b""))

        def cap(connection: sqlite3.Connection) -> None:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")

        await database.run(cap)
        with pytest.raises(Failed, match="disk is full") as caught:
            await database.run(put("big", bytes(1 << 20)))
        assert caught.value.remedy
        assert await database.run(names) == ["before"]
        await database.close()

    asyncio.run(main())


def test_a_read_only_connection_fails_the_call_with_a_remedy(tmp_path: Path) -> None:
    async def main() -> None:
        database = await SqliteDatabase.open(tmp_path / "state.sqlite")
        database._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(Failed, match="cannot be written"):
            await database.run(put("x", b""))
        await database.close()

    asyncio.run(main())


def test_the_file_is_private_durable_and_strict(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"

    async def main() -> None:
        database = await SqliteDatabase.open(path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600

        def settings(connection: sqlite3.Connection) -> list[object]:
            pragmas = ("journal_mode", "synchronous", "foreign_keys", "user_version")
            return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]

        assert await database.run(settings) == ["wal", 2, 1, len(migrations())]

        def loose_tables(connection: sqlite3.Connection) -> list[object]:
            return connection.execute(
                "SELECT name FROM pragma_table_list WHERE schema = 'main' AND NOT strict AND name NOT LIKE 'sqlite_%'"
            ).fetchall()

        assert await database.run(loose_tables) == []
        await database.close()

    asyncio.run(main())


def test_offload_runs_no_more_at_once_than_it_has_threads() -> None:
    async def main() -> None:
        offload = ThreadOffload(2)
        gate, running, most = threading.Event(), 0, 0
        lock = threading.Lock()

        def work() -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            gate.wait(5)
            with lock:
                running -= 1

        calls = [asyncio.create_task(offload.run(work)) for _ in range(10)]
        await asyncio.sleep(0.1)
        calls[0].cancel()
        await asyncio.sleep(0.1)
        gate.set()
        await asyncio.gather(*calls, return_exceptions=True)
        assert most == 2
        offload.close()

    asyncio.run(main())
