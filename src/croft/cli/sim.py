"""`croft sim`: a community in simulation, under random faults.

The simulation runs in a process of its own, because its clock and its event loop are not those of this program.
"""

from __future__ import annotations

import subprocess
import sys

import click

from croft.cli.output import say
from croft.errors import Failed

PROGRAM = "croft.sim.drill"
PEERS_MAX = 50
MINUTES_MAX = 1_440


@click.command()
@click.option("--peers", type=click.IntRange(2, PEERS_MAX), default=5, show_default=True, help="How many peers.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same run.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, MINUTES_MAX),
    default=10.0,
    show_default=True,
    help="Virtual minutes of faults; they take seconds.",
)
def sim(peers: int, seed: int, minutes: float) -> None:
    """Rehearse faults: simulated peers crash, are cut off and come back while they work on a job.

    Whole peers run in one process on virtual time. After the faults they must find each other again, and every task
    of the job must have been recorded exactly once.
    """
    say(f"Simulating {peers} peers for {minutes:g} minutes of faults, seed {seed}.")
    command = [sys.executable, "-m", PROGRAM, str(peers), str(seed), f"{minutes:g}"]
    if subprocess.run(command, check=False).returncode:
        raise Failed(
            "the simulation found a fault; it is described above",
            remedy=f"To repeat it: croft sim --peers {peers} --seed {seed} --minutes {minutes:g}",
        )
