"""Names of things: peers, twins, communities, jobs, and how they are written for people."""

from __future__ import annotations

import re
from typing import NewType

PeerId = NewType("PeerId", str)
"""An Ed25519 public key as 64 lower-case hex digits; equal to the iroh endpoint id of the device."""

TwinId = NewType("TwinId", str)
"""An Ed25519 public key as 64 lower-case hex digits: the person or organisation."""

CommunityId = NewType("CommunityId", str)
"""An Ed25519 public key as 64 lower-case hex digits: the root that grants are checked against."""

JobId = NewType("JobId", str)
"""16 lower-case hex digits, unique at the peer that submitted the job."""

_KEY = re.compile(r"[0-9a-f]{64}")
SHORT_LENGTH = 10


def is_key_id(text: str) -> bool:
    """Whether `text` has the form of a peer, twin or community id."""
    return _KEY.fullmatch(text) is not None


def short(identifier: str) -> str:
    """The first digits of an id, as shown to people. Not unique: never use it as a key."""
    return identifier[:SHORT_LENGTH]
