"""Native objects are freed on the loop's thread and never from within the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from iroh import iroh_ffi

from croft.adapters import native_calls, native_release
from croft.identity.keys import SecretKey

KEY = SecretKey(bytes(32)).public


@pytest.fixture(autouse=True)
def installed() -> None:
    native_calls.install()
    native_release.free_dead()


def test_every_class_of_the_binding_that_frees_something_is_covered() -> None:
    kinds = [kind for kind in vars(iroh_ffi).values() if isinstance(kind, type) and "__del__" in vars(kind)]

    assert len(kinds) > 10
    assert [kind.__name__ for kind in kinds if not hasattr(vars(kind)["__del__"], "is_late")] == []
    assert native_release.install() == 0, "a second time there is nothing left to change"


def test_what_the_garbage_collector_finds_is_only_noted() -> None:
    cycle: list[object] = [iroh_ffi.EndpointId.from_string(KEY)]
    cycle.append(cycle)
    del cycle
    before = native_release.waiting()

    collector = threading.Thread(target=gc.collect)
    collector.start()
    collector.join()

    assert native_release.waiting() == before + 1
    native_release.free_dead()
    assert native_release.waiting() == 0


def test_the_next_native_call_frees_it() -> None:
    async def main() -> None:
        options = iroh_ffi.EndpointOptions(
            preset=iroh_ffi.preset_minimal(), relay_mode=iroh_ffi.RelayMode.disabled(), bind_addr="127.0.0.1:0"
        )
        endpoint = await iroh_ffi.Endpoint.bind(options)
        native_release.free_dead()
        iroh_ffi.EndpointId.from_string(KEY)
        assert native_release.waiting() == 1
        await endpoint.close()
        assert native_release.waiting() == 0

    asyncio.run(main())


def test_a_call_that_was_closed_midway_is_freed_late_too() -> None:
    async def main() -> None:
        freed: list[int] = []
        call = native_calls._call(7, lambda *_: None, None, freed.append, None, None)
        call.send(None)
        call.close()
        assert freed == []
        native_release.free_dead()
        assert freed == [7]

    asyncio.run(main())


def test_a_cancelled_call_is_freed_at_once() -> None:
    async def main() -> None:
        freed: list[int] = []
        call = native_calls.NativeCall(native_calls._call(7, lambda *_: None, None, freed.append, None, None))
        call.cancel()
        assert freed == [7]

    asyncio.run(main())
