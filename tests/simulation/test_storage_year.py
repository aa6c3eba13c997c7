"""Data stored at home peers for months: nothing is lost, repair stays cheap, and no worse than it was."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from croft.sim.storage_report import TABLE_UPTIMES, Report, measure, unavailable
from croft.sim.storage_year import Year
from croft.storage.placement import Layout
from support.worlds import IS_CAMPAIGN

BASELINE = Path(__file__).parent / "storage_baseline.json"
SEED = 7
SIZE = "500 peers, 365 days" if IS_CAMPAIGN else "60 peers, 30 days"
PEERS, DAYS, STRIPES = (500, 365, 100) if IS_CAMPAIGN else (60, 30, 40)
WORSE_BY_MAX = 1.15
LESS_IS_BETTER = ("unreadable", "traffic_per_gb_day_first", "traffic_per_gb_day", "room_per_gb")


@pytest.fixture(scope="module")
def report() -> Report:
    return measure(PEERS, DAYS, SEED, stripes=STRIPES, with_table=False)[0]


@pytest.mark.timeout(1_800)
def test_nothing_is_lost_and_hardly_anything_cannot_be_read(report: Report) -> None:
    assert report.lost == 0
    assert report.departures > 0, "some left for good"
    assert report.unreadable < unavailable(Layout(10, 20), 0.75)
    assert report.unreadable < report.unreadable_untended / 10


def test_repair_costs_no_more_than_it_did(report: Report) -> None:
    known = json.loads(BASELINE.read_text())[SIZE]
    now = dataclasses.asdict(report)
    worse = {name: (known[name], now[name]) for name in LESS_IS_BETTER if now[name] > known[name] * WORSE_BY_MAX}

    assert worse == {}, "to accept these: write them into the baseline"


@pytest.mark.parametrize("uptime", TABLE_UPTIMES)
def test_without_repair_as_much_cannot_be_read_as_the_formula_says(uptime: float) -> None:
    """If peers come and go each by itself, and stay, once it is forgotten that holders were up at first."""
    layout = Layout(4, 6)
    year = Year(100, 150, layout, (uptime, uptime), SEED, repairs=False, leave=False, nights=False)
    days = year.run(45)[15:]

    found = sum(day.unreadable for day in days) / sum(day.looks for day in days)
    assert found == pytest.approx(unavailable(layout, uptime), rel=0.25)


def test_a_year_without_repair_loses_what_a_year_with_it_keeps() -> None:
    untended = Year(60, 40, Layout(4, 8), (0.75, 0.9), SEED, repairs=False)
    for _ in range(365):
        untended.home.advance(untended.home.now + 24)
    left = [sum(any(not peer.is_gone for peer in some) for some in one.holders) for one in untended.stored]

    assert min(left) < 4, "so much leaves in a year that repair is needed"


def test_the_command_prints_its_report_and_draws_it(tmp_path: Path) -> None:
    plot = tmp_path / "year.svg"
    command = [sys.executable, "-m", "croft.sim.storage_report", "24", "3", "3", "--json", "--plot", str(plot)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)

    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert (told["schema"], told["peers"], told["days"], len(told["chances"])) == (1, 24, 3, 8)
    assert plot.read_text().count("<polyline") == 3
