"""Cards: what a twin says of itself to a community, who stands in for it, and how to seal something for its devices.

Each device of a twin signs a card of its own; it carries that device's reading key, and what the twin said last. Every
member keeps all cards, so they are read also while their owner is away. They expire, and are made anew before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from croft.errors import PeerMisbehaved
from croft.identity.by_member import CLOCK_AHEAD_S_MAX, Signatory, open_by_member
from croft.model.ids import CommunityId, PeerId, TwinId, is_key_id
from croft.wire.codec import Message
from croft.wire.envelope import sign

CARD_KIND: Final = "card"
LIFETIME_S: Final = 30 * 86_400.0
RENEW_EVERY_S: Final = 5 * 86_400.0
PROFILE_CHARS_MAX: Final = 500
DELEGATES_MAX: Final = 8
KEY_BYTES: Final = 32
STEP: Final = "card"


class CardContent(Message, frozen=True):
    """The signed content. `said_at`: when the owner last changed profile or delegates, Unix seconds."""

    community: str
    grant_chain: list[bytes]
    certificate: bytes
    reading_key: bytes
    profile: str
    delegates: list[str]
    said_at: float
    sequence: int
    expires_at: float


@dataclass(frozen=True, slots=True)
class Said:
    """What a twin said last, of itself and of who stands in for it; of two words the later counts."""

    at: float = 0.0
    profile: str = ""
    delegates: tuple[PeerId, ...] = ()


@dataclass(frozen=True, slots=True)
class Card:
    """A card whose every part holds."""

    community: CommunityId
    peer: PeerId
    twin: TwinId
    reading_key: bytes
    said: Said
    sequence: int
    expires_at: float


def make_card(signatory: Signatory, reading_key: bytes, said: Said, *, now: float, sequence: int) -> bytes:
    """The record of a card that is good for LIFETIME_S."""
    content = CardContent(
        signatory.community,
        list(signatory.grant_chain),
        signatory.certificate,
        reading_key,
        said.profile,
        list(said.delegates),
        said.at,
        sequence,
        now + LIFETIME_S,
    )
    return sign(signatory.device.signer, CARD_KIND, content)


def open_card(community: CommunityId, record: bytes, now: float) -> Card:
    """What a card says to `community`. Raises PeerMisbehaved unless every part of it holds."""
    certified, content = open_by_member(
        record, CARD_KIND, CardContent, community, now, what="a card", lifetime_s_max=LIFETIME_S
    )
    if len(content.reading_key) != KEY_BYTES:
        raise PeerMisbehaved("a card with an impossible key", step=STEP)
    if not is_profile(content.profile):
        raise PeerMisbehaved("a card with too long or unprintable a profile", step=STEP)
    if len(content.delegates) > DELEGATES_MAX or not all(map(is_key_id, content.delegates)):
        raise PeerMisbehaved("a card with too many or impossible delegates", step=STEP)
    if not 0 <= content.said_at <= now + CLOCK_AHEAD_S_MAX:
        raise PeerMisbehaved("a card of the future", step=STEP)
    return Card(
        community,
        certified.peer,
        certified.twin,
        content.reading_key,
        Said(content.said_at, content.profile, tuple(map(PeerId, content.delegates))),
        content.sequence,
        content.expires_at,
    )


def is_profile(text: str) -> bool:
    """Whether it can be shown to others as what somebody says of themselves."""
    return len(text) <= PROFILE_CHARS_MAX and all(letter.isprintable() or letter == "\n" for letter in text)


def newest(cards: Sequence[Card]) -> Said:
    """What a twin said last, by all of its cards."""
    return max((card.said for card in cards), key=lambda said: (said.at, said.profile, said.delegates), default=Said())
