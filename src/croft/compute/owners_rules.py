"""Decides whether the owner's rules let anything be lent at a moment, and says why not: the owner's work comes first.

A pause, running on battery, and load of the owner's own programs each forbid lending. Load first stops the work of
others where it stands, since it may pass; work of others goes elsewhere if it lasts for MOVE_AFTER_S. It must have been
gone for CALM_S before that work goes on. Sans-IO: times are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

MOVE_AFTER_S = 15.0
CALM_S = 2.0
CALM_SHARE = 0.8
"""What was stopped goes on once the load is below this part of what stopped it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the settings say. `busy_max`: lend only while the owner's programs use less than this share of the
    processors; None: always. `on_battery`: whether to lend on battery."""

    busy_max: float | None = None
    on_battery: bool = True


class OwnersRules:
    """The owner's rules, and what was last seen of the machine.

    `paused_until` in Unix seconds; infinite: until it is resumed.
    """

    def __init__(self, rules: Rules, paused_until: float = 0.0) -> None:
        self._rules = rules
        self._busy = 0.0
        self._is_on_battery = False
        self._busy_since: float | None = None
        self._calm_since: float | None = None
        self.paused_until = paused_until

    def seen(self, busy: float, is_on_battery: bool, now: float) -> None:
        """The owner's programs use this share of the processors now; `now` by a clock that never jumps."""
        self._busy, self._is_on_battery = busy, is_on_battery
        most = self._rules.busy_max
        if most is None:
            return
        if busy >= most:
            self._busy_since = now if self._busy_since is None else self._busy_since
            self._calm_since = None
        elif self._busy_since is not None and busy < most * CALM_SHARE:
            self._calm_since = now if self._calm_since is None else self._calm_since
            if now - self._calm_since >= CALM_S:
                self._busy_since = self._calm_since = None
        else:
            self._calm_since = None

    @property
    def is_holding(self) -> bool:
        """Whether work of others stands still, because the owner's programs want the processors."""
        return self._busy_since is not None

    def refusal(self, wall: float) -> str:
        """Why nobody is let in at Unix time `wall`; empty if nothing forbids it."""
        if reason := self._end_at_once(wall):
            return reason
        return self._load() if self.is_holding else ""

    def end(self, wall: float, now: float) -> str:
        """Why the work of others that is here is to end; empty if it may stay, running or not."""
        if reason := self._end_at_once(wall):
            return reason
        lasts = self._busy_since is not None and now - self._busy_since >= MOVE_AFTER_S
        return self._load() if lasts else ""

    def _end_at_once(self, wall: float) -> str:
        if wall < self.paused_until:
            return "lending is paused"
        return "it runs on battery" if self._is_on_battery and not self._rules.on_battery else ""

    def _load(self) -> str:
        return f"its owner's own programs use {self._busy:.0%} of its processors"
