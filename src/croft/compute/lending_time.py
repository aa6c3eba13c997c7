"""Decides how many slots the owner lends at a moment: all in the hours that were set, none while lending is paused.

Sans-IO: the time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass

from croft.model.hours import Hours, show_hours


@dataclass(frozen=True, slots=True)
class Verdict:
    """Slots to lend now; if they are none, why, for the owner and for those who ask."""

    slots: int
    reason: str = ""


class LendingTime:
    """The owner's rules. `paused_until` in Unix seconds; infinite: until it is resumed."""

    def __init__(self, slots: int, hours: Hours | None, paused_until: float = 0.0) -> None:
        self._slots = slots
        self._hours = hours
        self.paused_until = paused_until

    def at(self, now: float, minute: int) -> Verdict:
        """What is lent at Unix time `now`, `minute` minutes after local midnight."""
        if self._slots == 0:
            return Verdict(0, "no processors are lent")
        if now < self.paused_until:
            return Verdict(0, "lending is paused")
        if self._hours is not None and minute not in self._hours:
            return Verdict(0, f"lent only at {show_hours(self._hours)}")
        return Verdict(self._slots)
