"""What a peer accepts as proof from others: descriptors and hellos."""

from __future__ import annotations

import dataclasses

import pytest

from croft.errors import PeerMisbehaved, Refused
from croft.identity import grants
from croft.identity.certificates import certify
from croft.identity.keys import community_key
from croft.model.ids import CommunityId
from croft.overlay.contacts import ContactBook
from croft.overlay.doorkeeper import Doorkeeper
from croft.overlay.membership import Member
from croft.overlay.messages import VERSION, Descriptor, Hello, Load
from croft.overlay.passport import (
    ADDRESSES_MAX,
    DESCRIPTOR_KIND,
    DESCRIPTOR_LIFETIME_S,
    LABELS_MAX,
    RELAYS_MAX,
    SEQUENCE_MAX,
    SIZE_BYTES_MAX,
    SLOTS_MAX,
    WORD_LENGTH_MAX,
    Lends,
    Membership,
    Own,
    PeerPassport,
    check_load,
    describe,
    open_descriptor,
)
from croft.overlay.records import CLOCK_AHEAD_S_MAX, Claim, Entry, Limits, Published, Received, RecordStore
from croft.wire.envelope import RECORD_BYTES_MAX, open_signed, sign
from support.joining import Somebody

NOW = 1_700_000_000.0
ANNA, BO, STRANGER = Somebody("anna"), Somebody("bo"), Somebody("stranger")
ROOT = community_key(b"r" * 32, b"")
COMMUNITY = CommunityId(ROOT.public)
OTHER_ROOT = community_key(b"r" * 32, b"other")
OTHER = CommunityId(OTHER_ROOT.public)
CHAIN = grants.found(ROOT, ANNA.twin)
LENDS = Lends(2, 1 << 30, 1 << 30, "A", "3.11", "x86_64", "1.0")


def membership(who: Somebody, expires_at: float = grants.FOREVER) -> Membership:
    chain = CHAIN
    if who is not ANNA:
        chain = grants.admit(ANNA.twin_key, CHAIN, COMMUNITY, who.twin, expires_at=expires_at)
    return Membership(COMMUNITY, "the village", tuple(chain))


def own(who: Somebody) -> Own:
    certificate = certify(who.twin_key, who.peer, who.name, NOW)
    return Own(who.device, who.peer, who.twin, who.name, certificate, b"instance")


def record(who: Somebody, now: float = NOW) -> bytes:
    return described(who, now).record


def described(who: Somebody, now: float = NOW) -> Member:
    return describe(own(who), membership(who), LENDS, ["10.0.0.1:1"], now=now, sequence=int(now * 1000))


def altered(who: Somebody, **changes: object) -> bytes:
    """A record of `who` with some fields changed, and signed by `who` as it should be."""
    _, descriptor = open_signed(record(who), DESCRIPTOR_KIND, Descriptor, step="test")
    fields = {name: getattr(descriptor, name) for name in descriptor.__struct_fields__} | changes
    return sign(who.device.signer, DESCRIPTOR_KIND, Descriptor(**fields))


def opened(data: bytes, now: float = NOW) -> Member:
    return open_descriptor(data, {COMMUNITY: membership(ANNA)}, now)


def test_a_record_says_what_its_device_said() -> None:
    said = described(BO)

    assert opened(said.record) == dataclasses.replace(said, path=(ANNA.twin, BO.twin))
    assert opened(said.record).inviter == ANNA.twin


def entry(data: bytes) -> Entry:
    member = opened(data)
    return Entry.of(
        "member", COMMUNITY, Claim(member.peer, member.peer, member.sequence, member.expires_at, member), data
    )


def store() -> RecordStore:
    made = RecordStore(ANNA.peer)
    made.allow("member", Limits(100, 1))
    made.handle(Published(entry(record(ANNA)), NOW))
    return made


def test_every_flipped_bit_of_a_record_is_refused_and_the_list_stays_as_it_was() -> None:
    core = store()
    core.handle(Received(None, [entry(record(BO))], NOW))
    before = core.entries("member")
    newer = record(BO, NOW + 1)
    for bit in range(0, len(newer) * 8, 7):
        damaged = bytearray(newer)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PeerMisbehaved):
            core.handle(Received(None, [entry(bytes(damaged))], NOW))

    assert core.entries("member") == before


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"community": OTHER}, "not in"),
        ({"community": "not an id"}, "not in"),
        ({"certificate": own(STRANGER).certificate}, "not signed by the device"),
        ({"certificate": b""}, "not a valid message"),
        ({"grant_chain": list(membership(STRANGER).chain)}, "somebody else"),
        ({"grant_chain": grants.found(OTHER_ROOT, BO.twin)}, "damaged or forged"),
        ({"grant_chain": []}, "0 tokens"),
        ({"grant_chain": list(membership(BO, expires_at=NOW - 1).chain)}, "expired"),
        ({"addresses": ["10.0.0.1:1"] * (ADDRESSES_MAX + 1)}, "too many"),
        ({"addresses": ["1" * 1000]}, "too long"),
        ({"slots": -1}, "slots"),
        ({"slots": SLOTS_MAX + 1}, "slots"),
        ({"memory_bytes": -1}, "impossible amount"),
        ({"disk_bytes": SIZE_BYTES_MAX + 1}, "impossible amount"),
        ({"sequence": -1}, "sequence"),
        ({"sequence": SEQUENCE_MAX + 1}, "sequence"),
        ({"labels": ["gpu"] * (LABELS_MAX + 1)}, "words"),
        ({"labels": ["\x1b[2J"]}, "unprintable"),
        ({"relays": ["http://relay"] * (RELAYS_MAX + 1)}, "words"),
        ({"nat": "n" * (WORD_LENGTH_MAX + 1)}, "words"),
        ({"expires_at": NOW + DESCRIPTOR_LIFETIME_S + CLOCK_AHEAD_S_MAX + 1}, "expires"),
        ({"expires_at": float("nan")}, "expires"),
        ({"expires_at": float("inf")}, "expires"),
        ({"version": "v" * RECORD_BYTES_MAX}, "bytes"),
    ],
)
def test_a_record_of_which_any_part_does_not_hold_is_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(PeerMisbehaved, match=complaint):
        opened(altered(BO, **changes))


def test_a_record_signed_by_another_device_is_refused() -> None:
    _, descriptor = open_signed(record(BO), DESCRIPTOR_KIND, Descriptor, step="test")

    with pytest.raises(PeerMisbehaved, match="not signed by the device"):
        opened(sign(STRANGER.device.signer, DESCRIPTOR_KIND, descriptor))


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),
        ({"sequence": int((NOW + CLOCK_AHEAD_S_MAX - 1) * 1000)}, True),
        ({"sequence": int((NOW + CLOCK_AHEAD_S_MAX + 1) * 1000)}, False),
        ({"expires_at": NOW - 1}, False),
    ],
    ids=["present", "a little ahead", "future-dated", "expired"],
)
def test_records_from_the_future_and_expired_ones_are_not_taken(changes: dict[str, object], taken: bool) -> None:
    core = store()
    core.handle(Received(None, [entry(altered(BO, **changes))], NOW))

    assert (core.get("member", COMMUNITY, BO.peer) is not None) == taken


@pytest.mark.parametrize(
    "load",
    [Load(-1, 0, 0), Load(SLOTS_MAX + 1, 0, 0), Load(0, -0.1, 0), Load(0, float("nan"), 0), Load(0, 0, float("inf"))],
)
def test_a_load_that_cannot_be_is_refused(load: Load) -> None:
    with pytest.raises(PeerMisbehaved, match="a load of"):
        check_load(load, step="test")


# --- hellos ----------------------------------------------------------------------------------------------------------


def passport(who: Somebody, *memberships: Membership) -> PeerPassport:
    found = PeerPassport(own(who), lambda: NOW, lambda _: frozenset([COMMUNITY]), Doorkeeper(ContactBook(who.twin)))
    found.memberships = {one.community: one for one in memberships or (membership(who),)}
    return found


def hello(who: Somebody) -> Hello:
    return passport(who).hello(frozenset([COMMUNITY]))


def changed(what: Hello, **changes: object) -> Hello:
    return Hello(**{name: getattr(what, name) for name in what.__struct_fields__} | changes)


def test_a_hello_proves_device_twin_and_shared_communities() -> None:
    greeted = passport(ANNA).check(BO.peer, hello(BO))

    assert (greeted.peer, greeted.twin, greeted.name) == (BO.peer, BO.twin, "bo")
    assert greeted.communities == {COMMUNITY}


def test_a_hello_names_only_the_communities_that_it_is_asked_for() -> None:
    second = Membership(OTHER, "a secret club", tuple(grants.found(OTHER_ROOT, ANNA.twin)))
    both = passport(ANNA, membership(ANNA), second)

    assert [name for name, _ in both.hello(frozenset([COMMUNITY])).memberships] == [COMMUNITY]
    assert both.hello(frozenset()).memberships == []


@pytest.mark.parametrize(
    ("offered", "reason"),
    [
        (changed(hello(BO), version=VERSION + 1), "version"),
        (changed(hello(BO), certificate=own(STRANGER).certificate), "another device"),
        (changed(hello(BO), certificate=b"junk"), "certificate is not valid"),
        (changed(hello(BO), memberships=[]), "no grant"),
        (changed(hello(BO), memberships=[(OTHER, list(CHAIN))]), "no grant"),
        (changed(hello(BO), memberships=[(COMMUNITY, list(CHAIN))]), "somebody else"),
        (changed(hello(BO), memberships=[(COMMUNITY, list(membership(BO, NOW - 1).chain))]), "expired"),
    ],
)
def test_a_hello_that_proves_too_little_is_refused_with_the_reason(offered: Hello, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        passport(ANNA).check(BO.peer, offered)


def test_one_bad_grant_does_not_spoil_a_good_one() -> None:
    memberships = [(OTHER, [b"junk"]), *hello(BO).memberships]

    assert passport(ANNA).check(BO.peer, changed(hello(BO), memberships=memberships)).communities == {COMMUNITY}
