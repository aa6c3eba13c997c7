"""Offers: what a peer lends to a community, how much of it, and until when; signed by the device, spread as records.

An offer stands for itself: it carries the certificate and the grant by which anybody in the community checks that a
member made it. It expires soon and is renewed while it stands, so that what a dead peer offered is forgotten. An amount
of 0 takes it back.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from croft.errors import PeerMisbehaved
from croft.identity.by_member import SEQUENCE_MAX, Signatory, open_by_member
from croft.model.amounts import Amounts
from croft.model.ids import CommunityId, PeerId, TwinId, is_key_id
from croft.wire.codec import Message
from croft.wire.envelope import sign

OFFER_KIND: Final = "offer"
LIFETIME_S: Final = 900.0
RENEW_EVERY_S: Final = 300.0
LIFETIME_S_MAX: Final = 86_400.0
PLACES_MAX: Final = 4
PLACE_CHARS_MAX: Final = 128
AMOUNT_MAX: Final = 1e12
AMOUNT_MAX_WHOLE: Final = 1 << 60
RESOURCES_MAX: Final = 16
RESOURCE_CHARS_MAX: Final = 32
TWINS_MAX: Final = 64
LENDING_LIFETIME_S: Final = 3_600.0
LENDING_RENEW_EVERY_S: Final = 1_200.0
STEP: Final = "offer"


class What(enum.StrEnum):
    """What is offered. RELAY: bytes per second passed on for others, at `places`, which are URLs. LEND: what `lent`
    says."""

    RELAY = "relay"
    LEND = "lend"


class OfferContent(Message, frozen=True):
    """The signed content of an offer.

    Attributes:
        community, grant_chain, certificate: who offers, and that it is a member.
        what: see `What`; a kind that the reader does not know is left out. amount: in that kind's unit; 0: withdrawn.
        places: where it is to be had, if it has places.
        sequence: milliseconds of wall time; the highest wins. expires_at: Unix seconds.
        number: tells several offers of one kind apart. lent: how much of each resource, in whole units.
        to: twin ids of whom it is for; empty: every member of the community.
        when: the part of the week, as people write it, by the offerer's own clock; empty: always.
        is_standing: whether it stands at this moment.
    """

    community: str
    grant_chain: list[bytes]
    certificate: bytes
    what: str
    amount: float
    places: list[str]
    sequence: int
    expires_at: float
    number: int = 0
    lent: Mapping[str, int] = {}
    to: Sequence[str] = ()
    when: str = ""
    is_standing: bool = True


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
    number: int = 0
    lent: Amounts = field(default_factory=Amounts)
    to: tuple[str, ...] = ()
    when: str = ""
    is_standing: bool = True

    @property
    def key(self) -> str:
        """One offer per device, kind and number: the newest counts."""
        return f"{self.peer}/{self.what}/{self.number}" if self.number else f"{self.peer}/{self.what}"

    def is_for(self, twin: TwinId) -> bool:
        """Whether somebody in its community is meant."""
        return not self.to or twin in self.to


@dataclass(frozen=True, slots=True)
class Lent:
    """What an offer of LEND says besides; see `OfferContent`."""

    number: int
    amounts: Amounts
    to: tuple[str, ...]
    when: str
    is_standing: bool


def make_offer(
    offerer: Signatory, what: What, amount: float, places: Sequence[str], *, now: float, sequence: int
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


def make_lending_offer(offerer: Signatory, lent: Lent, *, is_withdrawn: bool, now: float, sequence: int) -> bytes:
    """The record of an offer of resources that is good for LENDING_LIFETIME_S, or of its end."""
    content = OfferContent(
        offerer.community,
        list(offerer.grant_chain),
        offerer.certificate,
        What.LEND,
        0.0 if is_withdrawn else 1.0,
        [],
        sequence,
        now + LENDING_LIFETIME_S,
        lent.number,
        dict(lent.amounts.pairs),
        list(lent.to)[:TWINS_MAX],
        lent.when,
        lent.is_standing,
    )
    return sign(offerer.device.signer, OFFER_KIND, content)


def open_offer(community: CommunityId, record: bytes, now: float) -> Offer:
    """What a record offers to `community`. Raises PeerMisbehaved unless every part of it holds."""
    certified, content = open_by_member(
        record, OFFER_KIND, OfferContent, community, now, what="an offer", lifetime_s_max=LIFETIME_S_MAX
    )
    if not 0 <= content.amount <= AMOUNT_MAX:
        raise PeerMisbehaved("an offer of an impossible amount", step=STEP)
    if len(content.places) > PLACES_MAX or not all(_is_short(text) for text in (content.what, *content.places)):
        raise PeerMisbehaved("an offer with too many or too long places", step=STEP)
    if len(content.to) > TWINS_MAX or not all(map(is_key_id, content.to)) or len(content.when) > PLACE_CHARS_MAX:
        raise PeerMisbehaved("an offer to impossible people or at impossible hours", step=STEP)
    if len(content.lent) > RESOURCES_MAX or not all(map(_is_possible, content.lent.items())):
        raise PeerMisbehaved("an offer of impossible resources", step=STEP)
    if not 0 <= content.number <= SEQUENCE_MAX or not (content.when or "x").isprintable():
        raise PeerMisbehaved("an offer with an impossible number or hours", step=STEP)
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
        content.number,
        Amounts.of(content.lent),
        tuple(content.to),
        content.when,
        content.is_standing,
    )


def _is_possible(pair: tuple[str, int]) -> bool:
    name, amount = pair
    return _is_short(name) and len(name) <= RESOURCE_CHARS_MAX and 0 < amount <= AMOUNT_MAX_WHOLE


def _is_short(text: str) -> bool:
    return 0 < len(text) <= PLACE_CHARS_MAX and text.isprintable()
