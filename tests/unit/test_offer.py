"""Offers: signed, checked in every part, and good for a while."""

from __future__ import annotations

import msgspec
import pytest

from croft.errors import PeerMisbehaved
from croft.identity.by_member import Signatory
from croft.identity.certificates import certify
from croft.identity.grants import admit, found
from croft.identity.keys import SecretKey
from croft.ledger.offer import (
    LENDING_LIFETIME_S,
    LIFETIME_S,
    OFFER_KIND,
    PLACES_MAX,
    TWINS_MAX,
    Lent,
    OfferContent,
    What,
    make_lending_offer,
    make_offer,
    open_offer,
)
from croft.model.amounts import Amounts
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.wire.envelope import sign

NOW = 1_750_000_000.0
ROOT, TWIN, DEVICE, OTHER = (SecretKey(bytes([number]) * 32) for number in range(1, 5))
VILLAGE = CommunityId(ROOT.public)
CHAIN = tuple(found(ROOT, TwinId(TWIN.public)))
CERTIFICATE = certify(TWIN, PeerId(DEVICE.public), "anna", NOW)
PLACES = ["http://198.51.100.7:3340"]


OFFERER = Signatory(DEVICE, CERTIFICATE, VILLAGE, CHAIN)


def test_an_offer_says_who_offers_what_where_and_until_when() -> None:
    record = make_offer(OFFERER, What.RELAY, 2.5e6, PLACES, now=NOW, sequence=7)

    offer = open_offer(VILLAGE, record, NOW)

    assert (offer.peer, offer.twin, offer.name) == (DEVICE.public, TWIN.public, "anna")
    assert (offer.what, offer.amount, offer.places) == ("relay", 2.5e6, tuple(PLACES))
    assert (offer.sequence, offer.expires_at) == (7, NOW + LIFETIME_S)
    assert offer.key == f"{DEVICE.public}/relay"


def test_an_offer_of_resources_says_how_much_of_what_to_whom_and_when() -> None:
    amounts = Amounts.of({"cpu": 4, "mem": 8 << 30, "camera": 1})
    lent = Lent(3, amounts, (TWIN.public,), "sat,sun", is_standing=False)

    record = make_lending_offer(OFFERER, lent, is_withdrawn=False, now=NOW, sequence=7)
    offer = open_offer(VILLAGE, record, NOW)

    assert (offer.what, offer.number, offer.lent, offer.when) == ("lend", 3, amounts, "sat,sun")
    assert offer.is_for(TwinId(TWIN.public)) and not offer.is_for(TwinId(OTHER.public)) and not offer.is_standing
    assert (offer.key, offer.expires_at) == (f"{DEVICE.public}/lend/3", NOW + LENDING_LIFETIME_S)
    gone = make_lending_offer(OFFERER, lent, is_withdrawn=True, now=NOW, sequence=8)
    assert open_offer(VILLAGE, gone, NOW).amount == 0


def content(**changes: object) -> bytes:
    plain = OfferContent(VILLAGE, list(CHAIN), CERTIFICATE, "relay", 1.0, PLACES, 1, NOW + 60)
    return sign(DEVICE.signer, OFFER_KIND, msgspec.structs.replace(plain, **changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"community": CommunityId(OTHER.public)}, "another community"),
        ({"grant_chain": list(admit(OTHER, CHAIN, VILLAGE, TwinId(TWIN.public)))}, "damaged or forged"),
        ({"grant_chain": []}, "0 tokens"),
        ({"certificate": certify(TWIN, PeerId(OTHER.public), "bo", NOW)}, "not signed by the device"),
        ({"amount": -1.0}, "impossible amount"),
        ({"amount": float("nan")}, "impossible amount"),
        ({"sequence": -1}, "impossible sequence"),
        ({"expires_at": NOW - 1}, "expired"),
        ({"expires_at": NOW + 1e7}, "expires too late"),
        ({"expires_at": float("inf")}, "expires too late"),
        ({"places": PLACES * (PLACES_MAX + 1)}, "too many"),
        ({"places": ["x" * 1000]}, "too long"),
        ({"what": ""}, "too long"),
        ({"to": ["nobody"]}, "impossible people"),
        ({"to": [TWIN.public] * (TWINS_MAX + 1)}, "impossible people"),
        ({"when": "x" * 1000}, "impossible hours"),
        ({"when": "\n"}, "number or hours"),
        ({"number": -1}, "number or hours"),
        ({"lent": {"cpu": 0}}, "impossible resources"),
        ({"lent": {"cpu": 1 << 62}}, "impossible resources"),
        ({"lent": {"x" * 100: 1}}, "impossible resources"),
        ({"lent": {f"thing{number}": 1 for number in range(99)}}, "impossible resources"),
    ],
)
def test_an_offer_with_a_part_that_does_not_hold_is_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(PeerMisbehaved, match=complaint):
        open_offer(VILLAGE, content(**changes), NOW)


def test_an_edited_offer_has_a_bad_signature() -> None:
    record = content()

    for at in range(0, len(record), 37):
        with pytest.raises(PeerMisbehaved):
            open_offer(VILLAGE, record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :], NOW)


def test_what_a_later_version_offers_is_let_through_for_those_who_know_it() -> None:
    assert open_offer(VILLAGE, content(what="gpu"), NOW).what == "gpu"
