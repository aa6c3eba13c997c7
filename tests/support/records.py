"""Records as the store sees them, without keys."""

from __future__ import annotations

from croft.model.ids import CommunityId
from croft.overlay.records import Claim, Entry
from support.members import VILLAGE

KIND = "word"


def entry(
    key: str,
    sequence: int = 1,
    *,
    kind: str = KIND,
    community: CommunityId = VILLAGE,
    origin: str = "",
    expires_at: float = 1e9,
    size: int = 0,
    said: str = "",
) -> Entry:
    """A record that stands for itself, made by `origin` or by its key."""
    record = f"{kind}/{community}/{key}/{sequence}/{said}".encode() + bytes(size)
    return Entry.of(kind, community, Claim(key, origin or key, sequence, expires_at, None), record)
