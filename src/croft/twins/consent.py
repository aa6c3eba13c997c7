"""Decides whether a call of a capability may run: at once, after its owner was asked, or not. Sans-IO."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from croft.model.ids import CommunityId, TwinId

MEMBERS: Final = "members"
FRIENDS: Final = "friends"
MINE: Final = "mine"


class Verdict(enum.StrEnum):
    """What becomes of a call."""

    AUTO = "auto"
    ASK = "ask"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Asker:
    """Who calls: a person, in which communities, and what the owner holds of that person."""

    twin: TwinId
    communities: frozenset[CommunityId]
    is_own: bool = False
    is_friend: bool = False

    def is_among(self, to: Sequence[str]) -> bool:
        """Whether somebody is meant by a list of recipients; the owner's own devices always are."""
        return (
            self.is_own
            or MEMBERS in to
            or (FRIENDS in to and self.is_friend)
            or self.twin in to
            or any(community in to for community in self.communities)
        )
