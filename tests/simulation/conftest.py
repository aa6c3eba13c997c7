"""Lets the simulated implementations use the test suites that the real ones have to pass, and plays worlds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from croft.sim.world import simulate
from support.worlds import Play, Story, repeat, seeds

sys.path.insert(0, str(Path(__file__).parent.parent / "integration"))


@pytest.fixture(params=seeds(), ids=lambda seed: f"seed{seed}")
def play(request: pytest.FixtureRequest) -> Play:
    """Plays a story once per seed; a failure names the command that plays it again."""

    def run(story: Story, **network: Any) -> Any:
        return simulate(story, seed=request.param, repeat=repeat(request.node.nodeid, request.param), **network)

    return run
