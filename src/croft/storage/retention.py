"""Decides which snapshots are kept: the last ones, and one of each hour, day, week, month or year. Sans-IO.

As in restic: of each period the newest snapshot stands for it, and so many of the newest periods that have one are
kept. What any part of the policy wants is kept, and so is the newest snapshot, always. Periods are those of UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from croft.errors import Usage
from croft.wire.codec import Message

COUNT_MAX: Final = 100_000


class Policy(Message, frozen=True):
    """How many of each to keep. All of them 0: everything is kept."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    @property
    def keeps_everything(self) -> bool:
        """Whether nothing is ever forgotten."""
        return self == Policy()

    def check(self) -> None:
        """Raises Usage for numbers that mean nothing."""
        if not all(0 <= getattr(self, name) <= COUNT_MAX for name in self.__struct_fields__):
            raise Usage("a number of snapshots to keep is impossible", remedy=f"Say 0 to {COUNT_MAX}.")


_PERIODS: Final[Mapping[str, Callable[[datetime], tuple[int, ...]]]] = {
    "hourly": lambda at: (at.year, at.month, at.day, at.hour),
    "daily": lambda at: (at.year, at.month, at.day),
    "weekly": lambda at: at.isocalendar()[:2],
    "monthly": lambda at: (at.year, at.month),
    "yearly": lambda at: (at.year,),
}


def kept(policy: Policy, times: Mapping[int, float]) -> set[int]:
    """The numbers of the snapshots that stay. `times`: when each was made, Unix seconds."""
    newest_first = sorted(times, key=lambda number: (times[number], number), reverse=True)
    if policy.keeps_everything:
        return set(newest_first)
    keep = set(newest_first[: max(1, policy.last)])
    for name, period_of in _PERIODS.items():
        seen: set[tuple[int, ...]] = set()
        for number in newest_first:
            period = period_of(datetime.fromtimestamp(times[number], UTC))
            if len(seen) == getattr(policy, name):
                break
            if period not in seen:
                seen.add(period)
                keep.add(number)
    return keep
