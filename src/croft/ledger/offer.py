"""Offers: what a peer lends to a community, how much of it, and until when; signed by the device, spread as records.

An offer stands for itself: it carries the certificate and the grant by which anybody in the community checks that a
member made it. It expires soon and is renewed while it stands, so that what a dead peer offered is forgotten. An amount
of 0 takes it back.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from croft.errors import PeerMisbehaved, Refused
from croft.identity.certificates import open_certificate
from croft.identity.grants import verify_chain
from croft.identity.keys import SecretKey
from croft.model.ids import CommunityId, PeerId, TwinId, is_key_id
from croft.wire.codec import Message
from croft.wire.envelope import open_signed, sign

OFFER_KIND: Final = "offer"
LIFETIME_S: Final = 900.0
RENEW_EVERY_S: Final = 300.0
LIFETIME_S_MAX: Final = 86_400.0
CLOCK_AHEAD_S_MAX: Final = 600.0
PLACES_MAX: Final = 4
PLACE_CHARS_MAX: Final = 128
AMOUNT_MAX: Final = 1e12
SEQUENCE_MAX: Final = 1 << 53
STEP: Final = "offer"


class What(enum.StrEnum):
    """What is offered. RELAY: bytes per second passed on for others, at `places`, which are URLs."""

    RELAY = "relay"


class OfferContent(Message, frozen=True):
    """The signed content of an offer.

    Attributes:
        community, grant_chain, certificate: who offers, and that it is a member.
        what: see `What`; a kind that the reader does not know is left out. amount: in that kind's unit; 0: withdrawn.
        places: where it is to be had, if it has places.
        sequence: milliseconds of wall time; the highest wins. expires_at: Unix seconds.
    """

    community: str
    grant_chain: list[bytes]
    certificate: bytes
    what: str
    amount: float
    places: list[str]
    sequence: int
    expires_at: float


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer whose every part holds."""

    community: CommunityId
    peer: PeerId
    twin: TwinId
    name: str
    what: str
    amount: float
    places: tuple[str, ...]
    sequence: int
    expires_at: float

    @property
    def key(self) -> str:
        """One offer per device and kind: the newest counts."""
        return f"{self.peer}/{self.what}"


@dataclass(frozen=True, slots=True)
class Offerer:
    """Who signs: a device, what its twin says of it, and its grant in the community."""

    device: SecretKey
    certificate: bytes
    community: CommunityId
    grant_chain: Sequence[bytes]


def make_offer(
    offerer: Offerer, what: What, amount: float, places: Sequence[str], *, now: float, sequence: int
) -> bytes:
    """The record of an offer that is good for LIFETIME_S."""
    content = OfferContent(
        offerer.community,
        list(offerer.grant_chain),
        offerer.certificate,
        what,
        amount,
        list(places)[:PLACES_MAX],
        sequence,
        now + LIFETIME_S,
    )
    return sign(offerer.device.signer, OFFER_KIND, content)


def open_offer(community: CommunityId, record: bytes, now: float) -> Offer:
    """What a record offers to `community`. Raises PeerMisbehaved unless every part of it holds."""
    signer, content = open_signed(record, OFFER_KIND, OfferContent, step=STEP)
    if content.community != community or not is_key_id(content.community):
        raise PeerMisbehaved("an offer to another community", step=STEP)
    certified = open_certificate(content.certificate, step=STEP)
    if certified.peer != signer:
        raise PeerMisbehaved("an offer that is not signed by the device it names", step=STEP)
    if not 0 <= content.amount <= AMOUNT_MAX or not 0 <= content.sequence <= SEQUENCE_MAX:
        raise PeerMisbehaved("an offer of an impossible amount or sequence", step=STEP)
    if len(content.places) > PLACES_MAX or not all(_is_short(text) for text in (content.what, *content.places)):
        raise PeerMisbehaved("an offer with too many or too long places", step=STEP)
    if not now < content.expires_at <= now + LIFETIME_S_MAX + CLOCK_AHEAD_S_MAX:
        raise PeerMisbehaved("an offer that has expired, or expires too late", step=STEP)
    try:
        verify_chain(community, content.grant_chain, certified.twin, now)
    except Refused as refusal:
        raise PeerMisbehaved(f"an offer with {refusal.message}", step=STEP) from None
    return Offer(
        community,
        certified.peer,
        certified.twin,
        certified.name,
        content.what,
        content.amount,
        tuple(content.places),
        content.sequence,
        content.expires_at,
    )


def _is_short(text: str) -> bool:
    return 0 < len(text) <= PLACE_CHARS_MAX and text.isprintable()
