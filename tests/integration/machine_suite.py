"""What every database, clock, entropy and offload promises: real and simulated ones must pass all of it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest

from croft.ports import Clock, Database, Entropy, Offload


class Machine(Protocol):
    """Where the parts under test come from. `database` opens the same one each time."""

    async def database(self) -> Database: ...

    def clock(self) -> Clock: ...

    def entropy(self) -> Entropy: ...

    def offload(self) -> Offload: ...


RunOn = Callable[[Callable[[Machine], Awaitable[None]]], None]


def put(name: str, value: bytes) -> Callable[[sqlite3.Connection], None]:
    def work(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))

    return work


def names(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT name FROM setting ORDER BY name")]


class MachineSuite:
    """Subclass it and provide the fixture `run_on`."""

    def test_what_was_written_is_there_after_a_reopening(self, run_on: RunOn) -> None:
        async def story(machine: Machine) -> None:
            database = await machine.database()
            await database.run(put("colour", b"green"))
            await database.close()
            await database.close()
            database = await machine.database()
            assert await database.run(names) == ["colour"]
            await database.close()

        run_on(story)

    def test_work_that_raises_leaves_nothing_behind(self, run_on: RunOn) -> None:
        async def story(machine: Machine) -> None:
            database = await machine.database()

            def work(connection: sqlite3.Connection) -> None:
                put("half", b"")(connection)
                raise ValueError("changed my mind")

            with pytest.raises(ValueError, match="changed my mind"):
                await database.run(work)
            assert await database.run(names) == []
            await database.close()

        run_on(story)

    def test_a_wrong_statement_is_the_programs_fault_and_comes_through(self, run_on: RunOn) -> None:
        async def story(machine: Machine) -> None:
            database = await machine.database()
            with pytest.raises(sqlite3.IntegrityError):
                await database.run(
                    lambda connection: connection.execute(
                        "INSERT INTO invitation (id, community, created_at, expires_at, state, guesses_left) "
                        "VALUES ('i', 'c', 0.0, 0.0, 'lost', 3)"
                    )
                )
            with pytest.raises(sqlite3.IntegrityError):
                await database.run(lambda connection: connection.execute("INSERT INTO setting VALUES (NULL, 1)"))
            await database.close()

        run_on(story)

    def test_many_callers_at_once_are_served_one_after_the_other(self, run_on: RunOn) -> None:
        async def story(machine: Machine) -> None:
            database = await machine.database()
            await database.run(put("count", b"0"))

            def increment(connection: sqlite3.Connection) -> None:
                value = connection.execute("SELECT value FROM setting").fetchone()[0]
                put("count", str(int(value) + 1).encode())(connection)

            await asyncio.gather(*(database.run(increment) for _ in range(50)))
            value = await database.run(lambda connection: connection.execute("SELECT value FROM setting").fetchone())
            assert value == (b"50",)
            await database.close()

        run_on(story)

    def test_a_cancelled_call_is_whole_or_absent(self, run_on: RunOn) -> None:
        async def story(machine: Machine) -> None:
            database = await machine.database()

            def both(number: int) -> Callable[[sqlite3.Connection], None]:
                def work(connection: sqlite3.Connection) -> None:
                    put(f"a{number:02}", b"")(connection)
                    put(f"b{number:02}", b"")(connection)

                return work

            calls = [asyncio.create_task(database.run(both(number))) for number in range(20)]
            await asyncio.sleep(0.005)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            found = await database.run(names)
            assert [name[1:] for name in found if name[0] == "a"] == [name[1:] for name in found if name[0] == "b"]
            await database.close()

        run_on(story)

    def test_the_clock_moves_forward_with_time(self, run_on: RunOn) -> None:
        async def story(machine: Machine) -> None:
            clock = machine.clock()
            before = clock.now()
            assert before > 1_700_000_000
            await asyncio.sleep(0.05)
            assert 0.04 < clock.now() - before < 5

        run_on(story)

    def test_tokens_have_their_size_and_differ(self, run_on: RunOn) -> None:
        async def story(machine: Machine) -> None:
            entropy = machine.entropy()
            tokens = {entropy.token(16) for _ in range(100)}
            assert len(tokens) == 100
            assert {len(token) for token in tokens} == {16}
            assert entropy.random().random() != entropy.random().random()

        run_on(story)

    def test_offloaded_work_returns_or_raises_to_its_caller(self, run_on: RunOn) -> None:
        async def story(machine: Machine) -> None:
            offload = machine.offload()
            assert await asyncio.gather(*(offload.run(pow, 2, number) for number in range(40))) == [
                2**number for number in range(40)
            ]
            with pytest.raises(ZeroDivisionError):
                await offload.run(lambda: 1 // 0)

        run_on(story)
