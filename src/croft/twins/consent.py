"""Decides whether a call of a capability may run: at once, after its owner was asked, or not. Sans-IO.

Rules are tried from the most to the least specific: rules of one capability before those of all, a person before a
role, a role before a community, a community before friends, friends before everybody. The first that fits decides;
without one, what the capability was offered with. The owner's own devices may always call.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from croft.model.ids import CommunityId, TwinId, is_key_id

MEMBERS: Final = "members"
FRIENDS: Final = "friends"
MINE: Final = "mine"
ROLE: Final = "role:"
"""Begins the name of those who have a role in a community: `role:admin`."""
MEMBER_ROLE: Final = "member"
RULES_MAX: Final = 256
PER_DAY_MAX: Final = 1_000_000
DAY_S: Final = 86_400.0


class Verdict(enum.StrEnum):
    """What becomes of a call."""

    AUTO = "auto"
    ASK = "ask"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Asker:
    """Who calls: a person, in which communities, with which roles there, and what the owner holds of that person."""

    twin: TwinId
    communities: frozenset[CommunityId]
    is_own: bool = False
    is_friend: bool = False
    roles: frozenset[str] = frozenset({MEMBER_ROLE})

    def is_among(self, to: Sequence[str]) -> bool:
        """Whether somebody is meant by a list of recipients; the owner's own devices always are."""
        return self.is_own or any(map(self.is_meant, to))

    def is_meant(self, who: str) -> bool:
        """Whether somebody is meant by a word, a role, or the id of a person or community."""
        if who.startswith(ROLE):
            return who.removeprefix(ROLE) in self.roles
        return (
            (who == MEMBERS and bool(self.communities))
            or (who == FRIENDS and self.is_friend)
            or (who == MINE and self.is_own)
            or who == self.twin
            or who in self.communities
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """What the owner decided beforehand.

    Attributes:
        number: what it is called by. capability: its name; empty: all. who: see `Asker.is_meant`.
        verdict: what becomes of calls. per_day: how many of one person a day, more are denied; 0: any number.
        is_community: whether an id in `who` is that of a community.
    """

    number: int
    capability: str
    who: str
    verdict: Verdict
    per_day: int = 0
    is_community: bool = False

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Rules are tried from the lowest to the highest."""
        return not self.capability, self._breadth, self.number

    @property
    def _breadth(self) -> int:
        if is_key_id(self.who):
            return 2 if self.is_community else 0
        return 1 if self.who.startswith(ROLE) else 3 if self.who in (FRIENDS, MINE) else 4

    def show(self) -> str:
        """In words, for whoever is refused by it or reads the log; ids say nothing to people."""
        whom = ("this community" if self.is_community else "this person") if is_key_id(self.who) else self.who
        much = f", {self.per_day} a day" if self.per_day else ""
        return f"rule {self.number} ({self.capability or 'all'}, {whom}: {self.verdict}{much})"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a call, and why. `rule`: which counts it; None: what the capability was offered with."""

    verdict: Verdict
    why: str
    rule: Rule | None = None


@dataclass
class Consent:
    """The owner's rules, and how often they let somebody in today."""

    rules: dict[int, Rule] = field(default_factory=dict)
    used: dict[tuple[int, TwinId], int] = field(default_factory=dict)
    """Calls by rule and person, of `day`."""
    day: int = 0

    def in_order(self, capability: str = "") -> list[Rule]:
        """As they are tried; all, or those that count for one capability."""
        rules = [rule for rule in self.rules.values() if not capability or rule.capability in ("", capability)]
        return sorted(rules, key=lambda rule: rule.rank)

    def same_as(self, capability: str, who: str) -> Rule | None:
        """The rule about just these: a new one takes its place."""
        return next((one for one in self.rules.values() if (one.capability, one.who) == (capability, who)), None)

    def decide(self, capability: str, default: Verdict, asker: Asker, now: float) -> Decision:
        """What becomes of a call. It is not counted yet."""
        if asker.is_own:
            return Decision(Verdict.AUTO, "the owner's own device")
        for rule in self.in_order(capability):
            if asker.is_meant(rule.who):
                if rule.per_day and self.count(rule, asker.twin, now) >= rule.per_day:
                    return Decision(Verdict.DENY, f"{rule.per_day} calls a day are used up, by {rule.show()}", rule)
                return Decision(rule.verdict, rule.show(), rule)
        return Decision(default, f"offered as {default}")

    def count(self, rule: Rule, twin: TwinId, now: float) -> int:
        """How many calls of a person a rule has let in today (UTC)."""
        self._turn(now)
        return self.used.get((rule.number, twin), 0)

    def counted(self, rule: Rule, twin: TwinId, now: float) -> None:
        """One more was let in."""
        self._turn(now)
        self.used[rule.number, twin] = self.used.get((rule.number, twin), 0) + 1

    def _turn(self, now: float) -> None:
        day = int(now // DAY_S)
        if day != self.day:
            self.day = day
            self.used.clear()
