"""Random faults for minutes, then healing: nothing may be lost. A failure says which `croft sim` repeats it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from croft.sim.drill import drill
from support.worlds import IS_CAMPAIGN, seeds

MINUTES = 30 if IS_CAMPAIGN else 5


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("peers", [2, 5, 9])
def test_a_community_under_random_faults_heals_and_loses_nothing(peers: int, seed: int) -> None:
    report = drill(peers, seed, MINUTES)

    assert sum(report.done_by.values()) == report.tasks


def test_the_command_reports_what_it_simulated_and_the_seed() -> None:
    command = [sys.executable, "-m", "croft.cli.main", "sim", "--peers", "3", "--seed", "4", "--minutes", "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)

    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("seed     4\n")
    assert "each recorded once" in run.stdout
