"""Which seeds simulations run with, and functions for simulated jobs."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from croft.sim.world import World

SEEDS_IN_CI = 3
SEEDS_IN_A_CAMPAIGN = 50
IS_CAMPAIGN = os.environ.get("CROFT_CAMPAIGN") == "long"


Story = Callable[[World], Awaitable[Any]]


class Play(Protocol):
    """Runs a story once; options as of `simulate`."""

    def __call__(self, story: Story, **network: Any) -> Any: ...


def seeds() -> list[int]:
    """`CROFT_SEED` alone if it is set; a handful otherwise, and many in a campaign (`CROFT_CAMPAIGN=long`)."""
    if wanted := os.environ.get("CROFT_SEED"):
        return [int(wanted)]
    return list(range(1, 1 + (SEEDS_IN_A_CAMPAIGN if IS_CAMPAIGN else SEEDS_IN_CI)))


def repeat(node: str, seed: int) -> str:
    """The command that runs one test again with one seed."""
    return f"CROFT_SEED={seed} pytest '{node.partition('[')[0]}'"


def lasting(virtual_s: float, function: Callable[[int], object]) -> Callable[[int], object]:
    """`function`, which takes so long in a simulated sandbox."""

    def task(number: int) -> object:
        return function(number)

    task.virtual_s = virtual_s  # type: ignore[attr-defined]  # how tasks declare it
    return task


def double(number: int) -> int:
    return 2 * number


async def add_device(world: World, name: str, by: str) -> None:
    """A fresh machine that becomes a device of another one's twin."""
    line = (await world[by].parts.admissions.add_device(3600.0)).line
    world.add(name)
    await world.start(name)
    arrival = await world[name].parts.admissions.join(line)
    assert arrival.is_to_start_anew and arrival.twin == world[by].twin
    await world.restart(name)
    world[name].chain = world[by].chain
