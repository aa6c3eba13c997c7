"""Lets the simulated implementations use the test suites that the real ones have to pass, and plays worlds."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from support.worlds import repeat, seeds

from croft.sim.world import World, simulate

sys.path.insert(0, str(Path(__file__).parent.parent / "integration"))

Story = Callable[[World], Awaitable[Any]]


class Play(Protocol):
    """Runs a story once; options as of `simulate`."""

    def __call__(self, story: Story, **network: Any) -> Any: ...


@pytest.fixture(params=seeds(), ids=lambda seed: f"seed{seed}")
def play(request: pytest.FixtureRequest) -> Play:
    """Plays a story once per seed; a failure names the command that plays it again."""

    def run(story: Story, **network: Any) -> Any:
        return simulate(story, seed=request.param, repeat=repeat(request.node.nodeid, request.param), **network)

    return run
