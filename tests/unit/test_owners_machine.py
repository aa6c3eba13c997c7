"""What the kernel says of the owner's own programs and of the power supply."""

from __future__ import annotations

from pathlib import Path

import pytest

from croft.adapters.owners_machine import SystemMachine


def machine(folder: Path) -> SystemMachine:
    (folder / "power").mkdir(exist_ok=True)
    return SystemMachine(folder, folder / "power")


def ticks(folder: Path, *, user: int = 0, nice: int = 0, system: int = 0, idle: int = 0) -> None:
    (folder / "stat").write_text(f"cpu  {user} {nice} {system} {idle} 0 0 0 0 0 0\ncpu0 1 2 3\n")


def supply(folder: Path, name: str, **facts: str) -> None:
    place = folder / "power" / name
    place.mkdir(parents=True)
    for fact, value in facts.items():
        (place / fact).write_text(value + "\n")


def test_what_boxes_use_is_not_the_owners(tmp_path: Path) -> None:
    ticks(tmp_path)
    watched = machine(tmp_path)

    ticks(tmp_path, nice=900, system=5, idle=95)
    assert watched.busy(0.0) == pytest.approx(0.005, abs=0.005)
    ticks(tmp_path, nice=900, system=905, idle=195)
    assert watched.busy(9.0) == 0.0, "boxes used nine seconds, all of them in the kernel"


def test_what_other_programs_use_is_the_owners(tmp_path: Path) -> None:
    ticks(tmp_path)
    watched = machine(tmp_path)

    ticks(tmp_path, user=70_000, system=10_000, idle=20_000)
    assert watched.busy(0.0) == pytest.approx(0.8, abs=0.01)
    ticks(tmp_path, user=70_000, system=10_000, idle=120_000)
    assert watched.busy(0.0) == 0.0


def test_where_the_kernel_says_nothing_the_owner_is_not_busy(tmp_path: Path) -> None:
    watched = SystemMachine(tmp_path / "none", tmp_path / "none")

    assert watched.busy(0.0) == watched.busy(1.0) == 0.0 and not watched.is_on_battery()


@pytest.mark.parametrize(
    ("supplies", "is_on_battery"),
    [
        ([], False),
        ([{"type": "Mains", "online": "1"}, {"type": "Battery", "status": "Charging"}], False),
        ([{"type": "Mains", "online": "0"}, {"type": "Battery", "status": "Discharging"}], True),
        ([{"type": "USB", "online": "1"}, {"type": "Battery", "status": "Discharging"}], False),
        ([{"type": "Battery", "status": "Discharging"}], True),
        ([{"type": "Battery", "status": "Discharging", "scope": "Device"}], False),
        ([{"type": "Battery", "status": "Full"}], False),
    ],
)
def test_it_runs_on_battery_where_nothing_else_feeds_it(
    tmp_path: Path, supplies: list[dict[str, str]], is_on_battery: bool
) -> None:
    for number, facts in enumerate(supplies):
        supply(tmp_path, f"supply{number}", **facts)

    assert machine(tmp_path).is_on_battery() is is_on_battery
