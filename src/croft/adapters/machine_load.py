"""How busy this machine is: processors and disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

STAT = Path("/proc/stat")
IDLE_FIELDS = (3, 4)
"""Positions of idle and iowait in the first line of /proc/stat, see proc(5)."""


class MachineLoad:
    """Shares from 0 to 1; `cpu` is measured from one call to the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = _processor_times()

    def cpu(self) -> float:
        """Share of processor time in use since the last call; the load average where there is no /proc."""
        if self._before is None:
            return min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        now = _processor_times() or self._before
        busy, total = (after - before for after, before in zip(now, self._before, strict=True))
        self._before = now
        return min(1.0, busy / total) if total > 0 else 0.0

    def disk(self) -> float:
        """Share of the disk that holds the peer's home."""
        usage = shutil.disk_usage(self._folder)
        return usage.used / usage.total if usage.total else 0.0

    def disk_free_bytes(self) -> int:
        """Room left on that disk."""
        return shutil.disk_usage(self._folder).free


def _processor_times() -> tuple[int, int] | None:
    """Busy and total ticks since the machine started."""
    try:
        fields = [int(field) for field in STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    total = sum(fields[:8])
    return total - sum(fields[at] for at in IDLE_FIELDS), total
