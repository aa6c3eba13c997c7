"""What the owner does with this machine: how busy the owner's own programs keep it, and whether it runs on battery.

Boxes run at a low priority, and the kernel accounts for such programs apart; what runs so gives way by itself.
"""

from __future__ import annotations

import os
from pathlib import Path

PROCESSES = Path("/proc")
SUPPLIES = Path("/sys/class/power_supply")
NICE_FIELD = 1
"""Position in the first line of /proc/stat, see proc(5)."""
IDLE_FIELDS = (3, 4)
FIELDS = 8


class SystemMachine:
    """See `croft.ports.OwnersMachine`."""

    def __init__(self, processes: Path = PROCESSES, supplies: Path = SUPPLIES) -> None:
        self._processes = processes
        self._supplies = supplies
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._before = self._sample(0.0)

    def busy(self, lent_cpu_s: float) -> float:
        now = self._sample(lent_cpu_s)
        before, self._before = self._before, now
        if now is None or before is None:
            return 0.0
        used, nice, total, own, lent = (after - earlier for after, earlier in zip(now, before, strict=True))
        if total <= 0:
            return 0.0
        # Boxes are nice; what they use in the kernel is not accounted as such.
        return min(1.0, max(0.0, used - own - max(nice, lent)) / total)

    def is_on_battery(self) -> bool:
        supplies = [_facts(folder) for folder in _folders(self._supplies)]
        if any(facts.get("type") != "Battery" and facts.get("online") == "1" for facts in supplies):
            return False
        return any(
            facts.get("type") == "Battery"
            and facts.get("status") == "Discharging"
            and facts.get("scope", "System") == "System"
            for facts in supplies
        )

    def _sample(self, lent_cpu_s: float) -> tuple[float, float, float, float, float] | None:
        """Ticks since the start: used, nice, all; those of this process, and those of boxes."""
        try:
            line = (self._processes / "stat").read_text(encoding="ascii").split("\n", 1)[0]
            ticks = [int(field) for field in line.split()[1 : FIELDS + 1]]
        except (OSError, ValueError):
            return None
        total = sum(ticks)
        used = total - sum(ticks[at] for at in IDLE_FIELDS)
        own = os.times()
        return (
            used,
            ticks[NICE_FIELD],
            total,
            (own.user + own.system) * self._ticks_per_s,
            lent_cpu_s * self._ticks_per_s,
        )


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(parent.iterdir())
    except OSError:
        return []


def _facts(supply: Path) -> dict[str, str]:
    facts: dict[str, str] = {}
    for name in ("type", "online", "status", "scope"):
        try:
            facts[name] = (supply / name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
    return facts
