"""What several policies make of the same bags of tasks: a table, or JSON.

Started as `python -m croft.sim.makespan_report PEERS TASKS RUNS [--json]`; people start it by `croft sim jobs`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

import msgspec

from croft.sim.makespan import POLICIES, Outcome, Setting, play

SCHEMA = 1
LOSSES = (0.0, 0.1)
"""Shares of the peers that vanish in a minute."""


@dataclass(frozen=True, slots=True)
class Row:
    """A policy under one rate of losses: makespan over bound, and work in vain as a share of what was needed."""

    policy: str
    lost_per_minute: float
    ratio_median: float
    ratio_p95: float
    wasted: float


def row(policy: str, lost_per_minute: float, outcomes: Sequence[Outcome]) -> Row:
    """What came of some runs."""
    ratios = sorted(outcome.ratio for outcome in outcomes)
    return Row(
        policy,
        lost_per_minute,
        median(ratios),
        ratios[min(len(ratios) - 1, int(len(ratios) * 0.95))],
        mean(outcome.wasted for outcome in outcomes),
    )


def report(peers: int, tasks: int, runs: int) -> list[Row]:
    """All policies, without losses and with them."""
    return [
        row(policy, lost, [play(Setting(peers, tasks, lost_per_minute=lost), policy, seed) for seed in range(runs)])
        for lost in LOSSES
        for policy in POLICIES
    ]


def main() -> None:
    """Prints the report."""
    peers, tasks, runs = map(int, sys.argv[1:4])
    rows = report(peers, tasks, runs)
    if "--json" in sys.argv:
        sys.stdout.write(msgspec.json.encode({"schema": SCHEMA, "policies": rows}).decode() + "\n")
        return
    sys.stdout.write("LOST A MINUTE  POLICY     MEDIAN / BOUND  95 % / BOUND  IN VAIN\n")
    for one in rows:
        sys.stdout.write(
            f"{one.lost_per_minute:11.0%}    {one.policy:<10} {one.ratio_median:14.3f}  {one.ratio_p95:12.3f}"
            f"  {one.wasted:6.1%}\n"
        )


if __name__ == "__main__":
    main()
