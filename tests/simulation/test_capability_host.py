"""The warm processes of a capability: turns, deaths, and what cannot be loaded; on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from croft.errors import Busy, Failed, Usage
from croft.ports import Stream
from croft.sim import virtual_time
from croft.sim.owners_programs import SimulatedPrograms
from croft.twins.call_messages import AskCall, CallFailed, ToCaller, ToProvider, ValuePart, WorkerReady
from croft.twins.capability_host import BROKEN_S, IDLE_S_MAX, STOP_S_MAX, WAITING_EACH_MAX, CapabilityHost, Running
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream


class Program:
    """Answers each call after a second with its number; `dies` and `broken` as they say."""

    def __init__(self, *, dies_at: int = -1, is_broken: bool = False) -> None:
        self.dies_at = dies_at
        self.is_broken = is_broken
        self.served: list[int] = []

    async def run(self, arguments: Sequence[str], stream: Stream) -> None:
        async with MessageStream(stream, step="test") as messages:
            if self.is_broken:
                messages.post(CallFailed(0, "usage", "able.py cannot be imported"))
                await messages.flush()
                return
            messages.post(WorkerReady())
            while (payload := await messages.receive()) is not None:
                message: ToProvider = decode_union(payload, ToProvider, step="test")
                if isinstance(message, AskCall):
                    if message.call == self.dies_at:
                        return
                    await asyncio.sleep(1)
                    self.served.append(message.call)
                    messages.post(ValuePart(message.call, b"done"))


class Hosted:
    """A host over a program."""

    def __init__(self, program: Program, slots: int = 1) -> None:
        self.programs = SimulatedPrograms(program.run)
        self.host = CapabilityHost("able", self.programs, ["/python"], "/", slots)
        self.heard: list[ToCaller] = []

    async def call(self, number: int, who: str = "ada", time_s_max: float = 60.0) -> None:
        async def deliver(message: ToCaller) -> None:
            self.heard.append(message)

        await self.host.run(Running(AskCall(number, "able", b"")), who, number, time_s_max, deliver)


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    virtual_time.run(lambda _: story())


def test_callers_are_served_in_turn_however_many_calls_one_of_them_makes() -> None:
    async def story() -> None:
        program = Program()
        hosted = Hosted(program)
        async with asyncio.TaskGroup() as tasks:
            for number in range(6):
                tasks.create_task(hosted.call(number))
            await asyncio.sleep(0)
            for number in (100, 101):
                tasks.create_task(hosted.call(number, "bob"))
        assert program.served == [0, 1, 100, 2, 101, 3, 4, 5]
        assert hosted.programs.started == 1
        hosted.host.close()

    play(story)


def test_a_caller_who_floods_is_told_and_nobody_else() -> None:
    async def story() -> None:
        hosted = Hosted(Program(), slots=1)
        async with asyncio.TaskGroup() as tasks:
            flood = [tasks.create_task(hosted.call(number)) for number in range(WAITING_EACH_MAX + 1)]
            await asyncio.sleep(0.1)
            with pytest.raises(Busy):
                await hosted.call(5_000)
            await hosted.call(6_000, "bob")
            for task in flood:
                task.cancel()
        assert ValuePart(6_000, b"done") in hosted.heard
        hosted.host.close()

    play(story)


def test_a_death_fails_one_call_and_the_next_has_another_process() -> None:
    async def story() -> None:
        hosted = Hosted(Program(dies_at=1))
        for number in range(3):
            await hosted.call(number)
        codes = [message.code if isinstance(message, CallFailed) else "ok" for message in hosted.heard]
        assert codes == ["ok", "call_lost", "ok"] and hosted.programs.started == 2
        hosted.host.close()

    play(story)


def test_what_cannot_be_loaded_is_not_tried_for_each_call() -> None:
    async def story() -> None:
        program = Program(is_broken=True)
        hosted = Hosted(program)
        for _ in range(10):
            with pytest.raises(Usage, match="cannot be imported"):
                await hosted.call(1)
        assert hosted.programs.started == 1
        program.is_broken = False
        await asyncio.sleep(BROKEN_S)
        await hosted.call(1)
        assert hosted.heard == [ValuePart(1, b"done")]
        hosted.host.close()

    play(story)


def test_a_call_that_takes_too_long_or_is_not_wanted_frees_its_slot() -> None:
    async def story() -> None:
        hosted = Hosted(Program())
        await hosted.call(1, time_s_max=0.5)
        (late,) = hosted.heard
        assert isinstance(late, CallFailed) and late.code == "timed_out" and late.has_begun
        leaving = asyncio.create_task(hosted.call(2))
        await asyncio.sleep(0.1)
        leaving.cancel()
        await asyncio.sleep(STOP_S_MAX + 0.1)
        assert hosted.host.load == 0.0
        await hosted.call(3)
        assert hosted.heard[-1] == ValuePart(3, b"done")
        hosted.host.close()

    play(story)


def test_what_is_replaced_ends_once_its_calls_are_over() -> None:
    async def story() -> None:
        hosted = Hosted(Program())
        running = asyncio.create_task(hosted.call(1))
        await asyncio.sleep(0.5)
        hosted.host.retire()
        await running
        assert hosted.heard == [ValuePart(1, b"done")]
        with pytest.raises(Failed, match="offered no more"):
            await hosted.call(2)

    play(story)


def test_what_nobody_needs_ends() -> None:
    async def story() -> None:
        hosted = Hosted(Program())
        await hosted.call(1)
        hosted.host.tend(asyncio.get_running_loop().time() + IDLE_S_MAX + 1)
        await hosted.call(2)
        assert hosted.programs.started == 2
        hosted.host.close()

    play(story)
