"""Decides whether the owner's rules let anything be lent at a moment, and says why not.

Sans-IO: the time is an argument.
"""

from __future__ import annotations


class LendingTime:
    """The owner's rules. `paused_until` in Unix seconds; infinite: until it is resumed."""

    def __init__(self, paused_until: float = 0.0) -> None:
        self.paused_until = paused_until

    def at(self, now: float) -> str:
        """Why nothing is lent at Unix time `now`; empty if nothing forbids it."""
        return "lending is paused" if now < self.paused_until else ""
