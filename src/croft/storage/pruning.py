"""Decides which packs of a backup go, and which are written anew without what nothing needs. Sans-IO.

A pack without a live chunk goes. One of which more than DEAD_SHARE_MAX is dead is written anew: what lives moves to a
new pack, and the old one goes in the same change of the list. Many small packs, as small changes leave them, become
few large ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DEAD_SHARE_MAX: Final = 1 / 3
SMALL_SHARE: Final = 1 / 4
"""A pack that holds less than this share of a full one is small."""
SMALL_PACKS_MAX: Final = 24


@dataclass(frozen=True, slots=True)
class PackUse:
    """A pack, and how many of its bytes some snapshot needs."""

    number: int
    size_bytes: int
    live_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """`drop`: packs that go as they are; `rewrite`: those whose live chunks move first."""

    drop: tuple[int, ...]
    rewrite: tuple[int, ...]


def plan(packs: Sequence[PackUse], full_bytes: int) -> Plan:
    """What to do about each pack. `full_bytes`: the size of a full one."""
    drop = [pack.number for pack in packs if not pack.live_bytes]
    alive = [pack for pack in packs if pack.live_bytes]
    rewrite = [pack for pack in alive if pack.size_bytes - pack.live_bytes > pack.size_bytes * DEAD_SHARE_MAX]
    small = [pack for pack in alive if pack not in rewrite and pack.size_bytes < full_bytes * SMALL_SHARE]
    if len(small) > SMALL_PACKS_MAX:
        rewrite += small
    return Plan(tuple(drop), tuple(pack.number for pack in rewrite))
