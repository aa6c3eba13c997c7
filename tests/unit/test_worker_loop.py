"""The worker's loop: whose callback is called for what."""

from __future__ import annotations

import os
from collections.abc import Callable

from croft.compute.worker_loop import Loop


def readable() -> int:
    """A descriptor that can be read at once."""
    reader, writer = os.pipe()
    os.write(writer, b"x")
    os.close(writer)
    return reader


def test_a_descriptor_that_takes_over_the_number_of_a_closed_one_does_not_get_its_event() -> None:
    loop = Loop()
    called: list[str] = []
    first, second = readable(), readable()
    silent, kept = os.pipe()

    def replace(own: int, other: int, name: str) -> Callable[[], None]:
        def callback() -> None:
            called.append(name)
            loop.forget(own)
            loop.forget(other)
            os.dup2(silent, other)
            loop.watch(other, lambda: called.append("the newcomer, which cannot be read"))

        return callback

    loop.watch(first, replace(first, second, "first"))
    loop.watch(second, replace(second, first, "second"))

    loop.turn(0.0)
    loop.turn(0.0)

    assert called in (["first"], ["second"])
    for descriptor in (first, second, silent, kept):
        os.close(descriptor)


def test_a_descriptor_forgotten_in_this_turn_is_not_called() -> None:
    loop = Loop()
    called: list[int] = []
    pair = [readable(), readable()]

    def forget_both(own: int) -> Callable[[], None]:
        def callback() -> None:
            called.append(own)
            for descriptor in pair:
                loop.forget(descriptor)

        return callback

    for descriptor in pair:
        loop.watch(descriptor, forget_both(descriptor))

    loop.turn(0.0)

    assert len(called) == 1
    for descriptor in pair:
        os.close(descriptor)
