"""Measures how stored data fares among peers at home, beside what the binomial formula says, and draws it.

Started as `python -m croft.sim.storage_report PEERS DAYS SEED [--json] [--plot FILE]`; people start it by
`croft sim storage`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from croft.sim.storage_year import Day, Year
from croft.storage.placement import Layout, default_layout

UPTIME: Final = (0.75, 0.90)
STRIPES: Final = 100
TABLE_LAYOUTS: Final = (Layout(4, 6), Layout(4, 8), Layout(10, 20), Layout(3, 10))
TABLE_UPTIMES: Final = (0.90, 0.75)
TABLE_DAYS: Final = 20
TABLE_STRIPES: Final = 150
STEADY_AFTER: Final = 1 / 4
"""Of the time: what comes before is told apart, as data that was just put gets its spare shares then."""


@dataclass(frozen=True)
class Chance:
    """How often something cannot be read at a given moment: by the formula, and found without anybody looking after."""

    layout: str
    uptime: float
    expected: float
    found: float


@dataclass
class Report:
    """What was found. `..._per_gb_day`: bytes brought per stored byte of a file and day."""

    peers: int
    days: int
    seed: int
    layout: str
    stripes: int
    departures: int = 0
    lost: int = 0
    lost_untended: int = 0
    unreadable: float = 0.0
    unreadable_to_owner: float = 0.0
    unreadable_untended: float = 0.0
    traffic_per_gb_day_first: float = 0.0
    traffic_per_gb_day: float = 0.0
    room_per_gb: float = 0.0
    room_per_gb_of_layout: float = 0.0
    chances: list[Chance] = field(default_factory=list)
    took_s: float = 0.0


def measure(
    peers: int, days: int, seed: int, *, stripes: int = STRIPES, with_table: bool = True
) -> tuple[Report, Year]:
    """The whole report, and the year that it tells of."""
    started = time.monotonic()
    layout = default_layout(peers)
    tended = Year(peers, stripes, layout, UPTIME, seed)
    untended = Year(peers, stripes, layout, UPTIME, seed, repairs=False)
    tended.run(days)
    untended.run(days)
    report = Report(peers, days, seed, str(layout), stripes, tended.home.departures)
    report.lost, report.lost_untended = tended.days[-1].lost, untended.days[-1].lost
    report.unreadable = _share(tended.days)
    report.unreadable_untended = _share(untended.days)
    to_owner = sum(day.unreadable_to_owner for day in tended.days)
    report.unreadable_to_owner = to_owner / max(1, sum(day.owner_looks for day in tended.days))
    steady = max(1, round(days * STEADY_AFTER))
    report.traffic_per_gb_day_first = _traffic(tended.days[:steady], layout, stripes)
    report.traffic_per_gb_day = _traffic(tended.days[steady:] or tended.days, layout, stripes)
    report.room_per_gb = tended.days[-1].kept / stripes * layout.n / layout.k
    report.room_per_gb_of_layout = layout.n / layout.k
    if with_table:
        report.chances = [
            _chance(one, uptime, seed, min(days, TABLE_DAYS)) for one in TABLE_LAYOUTS for uptime in TABLE_UPTIMES
        ]
    report.took_s = time.monotonic() - started
    return report, tended


def unavailable(layout: Layout, uptime: float) -> float:
    """The chance that fewer than k of n are up, if each is so by itself."""
    return math.fsum(math.comb(layout.n, up) * uptime**up * (1 - uptime) ** (layout.n - up) for up in range(layout.k))


def _chance(layout: Layout, uptime: float, seed: int, days_max: int) -> Chance:
    year = Year(TABLE_STRIPES, TABLE_STRIPES, layout, (uptime, uptime), seed, repairs=False, leave=False, nights=False)
    # Who takes a share is up at first: the first days say too much good.
    days = year.run(2 * days_max)[days_max:]
    return Chance(str(layout), uptime, unavailable(layout, uptime), _share(days))


def _share(days: Sequence[Day]) -> float:
    return sum(day.unreadable for day in days) / max(1, sum(day.looks for day in days))


def _traffic(days: Sequence[Day], layout: Layout, stripes: int) -> float:
    return sum(day.fetched + day.rebuilt for day in days) / layout.k / stripes / len(days)


def shown(report: Report) -> str:
    """The report for people."""
    lines = [
        f"seed      {report.seed}",
        f"peers     {report.peers}, {UPTIME[0]:.0%} to {UPTIME[1]:.0%} of the time up, for {report.days} days; "
        f"{report.departures} left for good, and others came; took {report.took_s:.0f} s",
        f"lost      {report.lost} of {report.stripes} stripes of {report.layout}; {report.lost_untended} if nobody "
        "looks after them",
        f"unread    {report.unreadable:.1e} of the time, {report.unreadable_to_owner:.1e} while the owner is up; "
        f"{report.unreadable_untended:.1e} if nobody looks after them",
        f"repair    {report.traffic_per_gb_day:.3f} GB a day per stored GB; "
        f"{report.traffic_per_gb_day_first:.3f} in the first quarter of the time",
        f"room      {report.room_per_gb:.1f} GB per stored GB; {report.room_per_gb_of_layout:.1f} when it is put",
    ]
    if report.chances:
        lines += ["", "layout   up     formula   found (nobody looks after it, nobody leaves)"]
        lines += [f"{one.layout:<8} {one.uptime:.0%}    {one.expected:.1e}   {one.found:.1e}" for one in report.chances]
    return "\n".join(lines) + "\n"


# --- the plot --------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, GAP = 720, 130, 60, 40


def drawn(year: Year) -> str:
    """Repair, room, and the least that a stripe bore, day by day, as SVG."""
    layout, stripes = year.layout, len(year.stored)
    curves = [
        ("repair, GB a day per stored GB", [(day.fetched + day.rebuilt) / layout.k / stripes for day in year.days]),
        ("room, GB per stored GB", [day.kept / stripes * layout.n / layout.k for day in year.days]),
        ("the least margin of any stripe, shares", [float(day.margin_min) for day in year.days]),
    ]
    height = len(curves) * (HEIGHT + GAP) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    parts += [_curve(title, values, number) for number, (title, values) in enumerate(curves)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _curve(title: str, values: Sequence[float], number: int) -> str:
    top, low, high = GAP + number * (HEIGHT + GAP), min(0.0, *values), max(*values, 1e-9)
    across = (WIDTH - LEFT - 10) / max(1, len(values) - 1)

    def y(value: float) -> float:
        return top + HEIGHT * (1 - (value - low) / (high - low))

    points = " ".join(f"{LEFT + at * across:.1f},{y(value):.1f}" for at, value in enumerate(values))
    return (
        f'<text x="{LEFT}" y="{top - 10}">{title}</text>'
        f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{LEFT - 6}" y="{top + HEIGHT}" text-anchor="end">{low:.3g}</text>'
        f'<path d="M{LEFT},{top} V{top + HEIGHT} H{WIDTH - 10}" fill="none" stroke="#999"/>'
        f'<polyline points="{points}" fill="none" stroke="#1565c0" stroke-width="1.5"/>'
        f'<text x="{WIDTH - 10}" y="{top + HEIGHT + 14}" text-anchor="end">day {len(values)}</text>'
    )


def main() -> None:
    """Measures and prints."""
    peers, days, seed = map(int, sys.argv[1:4])
    report, year = measure(peers, days, seed)
    if "--plot" in sys.argv:
        Path(sys.argv[sys.argv.index("--plot") + 1]).write_text(drawn(year), encoding="utf-8")
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps({"schema": 1, **dataclasses.asdict(report)}) + "\n")
    else:
        sys.stdout.write(shown(report))


if __name__ == "__main__":
    main()
