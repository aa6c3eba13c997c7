"""Members as the membership core sees them, without keys."""

from __future__ import annotations

from croft.model.ids import CommunityId, PeerId, TwinId
from croft.overlay.membership import Member

VILLAGE, CHOIR = CommunityId("village"), CommunityId("choir")


def member(
    name: str,
    sequence: int = 1,
    *,
    community: CommunityId = VILLAGE,
    expires_at: float = 1e9,
    instance: bytes = b"",
    size: int = 0,
) -> Member:
    """A member whose record stands for itself."""
    return Member(
        community=community,
        peer=PeerId(name),
        twin=TwinId(name),
        name=name,
        addresses=(f"{name}:{sequence}",),
        sequence=sequence,
        instance=instance,
        expires_at=expires_at,
        slots=1,
        memory_bytes=0,
        disk_bytes=0,
        grade="A",
        python="3.11",
        machine="x86_64",
        version="1.0",
        record=f"{community}/{name}/{sequence}".encode() + bytes(size),
    )
