"""`croft sim`: communities in simulation, under random faults or at great size.

The simulation runs in a process of its own, because its clock and its event loop are not those of this program.
"""

from __future__ import annotations

import subprocess
import sys

import click

from croft.cli.output import say
from croft.errors import Failed

PROGRAM = "croft.sim.drill"
OVERLAY_PROGRAM = "croft.sim.overlay_report"
STORAGE_PROGRAM = "croft.sim.storage_report"
JOBS_PROGRAM = "croft.sim.makespan_report"
PEERS_MAX = 50
VIRTUAL_PEERS_MIN, VIRTUAL_PEERS_MAX = 20, 200_000
MINUTES_MAX = 1_440


@click.group(invoke_without_command=True)
@click.pass_context
@click.option("--peers", type=click.IntRange(2, PEERS_MAX), default=5, show_default=True, help="How many peers.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same run.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, MINUTES_MAX),
    default=10.0,
    show_default=True,
    help="Virtual minutes of faults; they take seconds.",
)
def sim(context: click.Context, peers: int, seed: int, minutes: float) -> None:
    """Rehearse faults: simulated peers crash, are cut off and come back while they work on a job.

    Whole peers run in one process on virtual time. After the faults they must find each other again, and every task
    of the job must have been recorded exactly once.
    """
    if context.invoked_subcommand is not None:
        return
    say(f"Simulating {peers} peers for {minutes:g} minutes of faults, seed {seed}.")
    command = [sys.executable, "-m", PROGRAM, str(peers), str(seed), f"{minutes:g}"]
    if subprocess.run(command, check=False).returncode:
        raise Failed(
            "the simulation found a fault; it is described above",
            remedy=f"To repeat it: croft sim --peers {peers} --seed {seed} --minutes {minutes:g}",
        )


@sim.command()
@click.option(
    "--peers",
    type=click.IntRange(VIRTUAL_PEERS_MIN, VIRTUAL_PEERS_MAX),
    default=1_000,
    show_default=True,
    help="How many virtual peers.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same figures.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def overlay(peers: int, seed: int, as_json: bool) -> None:
    """Measure membership, failure detection, gossip and lookups among thousands of virtual peers.

    They consist of the overlay's decisions alone, on virtual time. The report says how fast news and deaths get around,
    what an idle peer sends, who is held for dead wrongly, and how lookups fare when many die at once.
    """
    say(f"Simulating the overlay of {peers:,} peers, seed {seed}.")
    command = [sys.executable, "-m", OVERLAY_PROGRAM, str(peers), str(seed), *(["--json"] if as_json else [])]
    if subprocess.run(command, check=False).returncode:
        raise Failed(
            "the simulation found a fault; it is described above",
            remedy=f"To repeat it: croft sim overlay --peers {peers} --seed {seed}",
        )


@sim.command()
@click.option("--peers", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many peers.")
@click.option("--tasks", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True, help="How many tasks.")
@click.option(
    "--runs", type=click.IntRange(1, 1_000), default=10, show_default=True, help="How often, with other seeds."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def jobs(peers: int, tasks: int, runs: int, as_json: bool) -> None:
    """Measure how long a bag of tasks takes on many unequal peers that vanish, under several policies.

    Tasks take a second on average, and peers are of unequal speed, both lognormal. For each policy the report says how
    many times longer it took than could not be beaten, and how much work was done in vain.
    """
    say(f"Simulating {tasks:,} tasks on {peers:,} peers, {runs} runs of each policy.")
    command = [sys.executable, "-m", JOBS_PROGRAM, str(peers), str(tasks), str(runs), *(["--json"] if as_json else [])]
    if subprocess.run(command, check=False).returncode:
        raise Failed("the simulation ended early; why is said above")


@sim.command()
@click.option("--peers", type=click.IntRange(21, 2_000), default=500, show_default=True, help="How many peers.")
@click.option("--days", type=click.IntRange(1, 3_650), default=365, show_default=True, help="Virtual days.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same figures.")
@click.option("--plot", type=click.Path(dir_okay=False, writable=True), default="", help="Draw it: an SVG file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def storage(peers: int, days: int, seed: int, plot: str, as_json: bool) -> None:
    """Measure how stored data fares among machines at home that come, go, and leave for good.

    They are up for 75 to 90 % of the time, in sessions of very unequal length, some off by night. The report says what
    was lost, how often something could not be read, and what repair costs; and, for several layouts, how often the
    formula says so and how often it was found.
    """
    say(f"Simulating data stored at {peers} peers for {days} days, seed {seed}; a year of 500 takes some minutes.")
    command = [sys.executable, "-m", STORAGE_PROGRAM, str(peers), str(days), str(seed)]
    command += [*(["--json"] if as_json else []), *(["--plot", plot] if plot else [])]
    if subprocess.run(command, check=False).returncode:
        raise Failed("the simulation ended early; why is said above")
