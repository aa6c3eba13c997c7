"""Values that a peer keeps for whoever is to use them next."""

from __future__ import annotations

from dataclasses import dataclass

from croft.model.ids import PeerId


@dataclass(frozen=True, slots=True)
class Held:
    """A value that a peer keeps, under a token that only those know who may have it."""

    peer: PeerId
    token: bytes
    size: int
