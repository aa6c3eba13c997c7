"""How well a peer can hold foreign code, as it found by trying."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Grade(enum.StrEnum):
    """Isolation grades, best first; compare with `holds`.

    A: a box of Linux namespaces with hard cgroup limits. B: the same box, limits kept by a watchdog.
    C: Landlock and seccomp only. D: no isolation of native code.
    """

    A = "A"
    B = "B"
    C = "C"
    D = "D"

    def holds(self, required: Grade) -> bool:
        """Whether a peer of this grade may run what demands `required`."""
        return self.value <= required.value


@dataclass(frozen=True, slots=True)
class Isolation:
    """What a peer's sandbox can do. `reason` says why the grade is not better, with the remedy; empty for A."""

    grade: Grade
    reason: str = ""
