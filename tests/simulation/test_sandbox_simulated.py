"""The simulated sandbox: results, durations and faults in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import cloudpickle
import pytest

from croft.compute.worker_messages import (
    CancelChunk,
    ChunkDone,
    ChunkResults,
    FromWorker,
    LoadFunction,
    Outcome,
    Ready,
    RunChunk,
    Status,
    ToWorker,
)
from croft.errors import ConnectionLost
from croft.ports import Box, BoxSpec, Sandbox
from croft.sim import virtual_time
from croft.sim.sandbox import PYTHON, SimulatedSandbox
from croft.wire import frames
from croft.wire.codec import decode, encode
from croft.wire.values import decode_value

DIGEST = b"d" * 32


async def said(box: Box) -> AsyncIterator[FromWorker]:
    reader = frames.FrameReader(step="test")
    kind: Any = FromWorker
    while data := await box.read(1 << 16):
        for payload in reader.feed(data):
            yield decode(payload, kind, step="test")


async def tell(box: Box, *messages: ToWorker) -> None:
    await box.write(b"".join(frames.frame(encode(message)) for message in messages))


def chunk(*arguments: object, task_s_max: float = 0.0, number: int = 1) -> RunChunk:
    return RunChunk(number, DIGEST, [cloudpickle.dumps(((one,), {})) for one in arguments], task_s_max)


async def outcomes(sandbox: SimulatedSandbox, function: Any, run: RunChunk) -> list[Outcome]:
    box = await sandbox.open(BoxSpec("box", ("worker",)))
    await tell(box, LoadFunction(DIGEST, cloudpickle.dumps(function), PYTHON), run)
    found: list[Outcome] = []
    async for message in said(box):
        match message:
            case Ready():
                pass
            case ChunkResults():
                found += message.outcomes
            case ChunkDone():
                break
            case _:
                raise AssertionError(message)
    await box.close()
    return found


def test_results_come_back_in_order_after_the_time_that_the_function_declares() -> None:
    async def main(_: Random) -> None:
        def double(number: int) -> int:
            return 2 * number

        double.virtual_s = lambda number: float(number)  # type: ignore[attr-defined]  # how tests declare it
        started = asyncio.get_running_loop().time()
        found = await outcomes(SimulatedSandbox(), double, chunk(1, 2, 3))
        assert [decode_value(payload) for _, _, payload in found] == [2, 4, 6]
        assert asyncio.get_running_loop().time() - started == pytest.approx(6, abs=0.2)

    virtual_time.run(main)


def test_a_task_that_raises_exits_or_returns_the_uncarriable_says_so() -> None:
    async def main(_: Random) -> None:
        def trouble(kind: str) -> object:
            if kind == "raise":
                raise ValueError("no")
            if kind == "exit":
                raise SystemExit(3)
            return object()

        found = await outcomes(SimulatedSandbox(), trouble, chunk("raise", "exit", "return"))
        assert [status for _, status, _ in found] == [Status.RAISED, Status.DIED, Status.UNCARRIED]

    virtual_time.run(main)


def test_a_slow_machine_runs_into_the_limit_of_time() -> None:
    async def main(_: Random) -> None:
        sandbox = SimulatedSandbox(duration=lambda function, *args: 1.0)
        sandbox.slowness = 10
        found = await outcomes(sandbox, str, chunk(1, task_s_max=5))
        assert [status for _, status, _ in found] == [Status.TIMED_OUT]

    virtual_time.run(main)


def test_a_crash_ends_the_box_and_says_why() -> None:
    async def main(_: Random) -> None:
        sandbox = SimulatedSandbox(duration=lambda function, *args: 100.0)
        box = await sandbox.open(BoxSpec("box", ("worker",)))
        await tell(box, LoadFunction(DIGEST, cloudpickle.dumps(str), PYTHON), chunk(1))
        asyncio.get_running_loop().call_later(5, sandbox.crash, "out of memory")
        assert [message async for message in said(box)] == [Ready(PYTHON)]
        assert box.usage().death == "out of memory"
        with pytest.raises(ConnectionLost, match="out of memory"):
            await tell(box, chunk(2))

    virtual_time.run(main)


def test_a_cancelled_chunk_is_answered_at_once() -> None:
    async def main(_: Random) -> None:
        sandbox: Sandbox = SimulatedSandbox(duration=lambda function, *args: 100.0)
        box = await sandbox.open(BoxSpec("box", ("worker",)))
        await tell(box, LoadFunction(DIGEST, cloudpickle.dumps(str), PYTHON), chunk(1), CancelChunk(1))
        async for message in said(box):
            if isinstance(message, ChunkDone):
                break
        assert asyncio.get_running_loop().time() < 1

    virtual_time.run(main)
