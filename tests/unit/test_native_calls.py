"""Calls that nobody can cancel: driven by what they wait for."""

from __future__ import annotations

import asyncio

import pytest

from croft.adapters.native_calls import NativeCall


def test_a_call_that_is_ready_at_once_takes_no_turn_of_the_loop() -> None:
    async def ready() -> int:
        return 7

    async def main() -> None:
        call = NativeCall(ready())
        assert call.is_done
        assert call.result() == 7

    asyncio.run(main())


def test_cancelling_the_waiter_leaves_the_call_running() -> None:
    async def main() -> None:
        gate: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def wait() -> str:
            return await gate

        call = NativeCall(wait())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call.settled(), 0.01)
        gate.set_result("kept")
        await asyncio.gather(call.settled(), call.settled())
        assert call.result() == "kept"

    asyncio.run(main())


def test_what_a_call_raises_goes_to_whoever_asks_for_its_result() -> None:
    async def main() -> None:
        async def refuse() -> None:
            raise ValueError("no")

        call = NativeCall(refuse())
        with pytest.raises(ValueError, match="no"):
            call.result()

    asyncio.run(main())


def test_a_dropped_call_wakes_its_waiters_and_cleans_up() -> None:
    async def main() -> None:
        cleaned: list[bool] = []

        async def wait() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                cleaned.append(True)

        call = NativeCall(wait())
        waiting = asyncio.create_task(call.settled())
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait_for(waiting, 1)
        with pytest.raises(asyncio.CancelledError):
            call.result()
        assert cleaned == [True]

    asyncio.run(main())
