"""A line for a device: what the joiner believes, and what a revocation proves."""

from __future__ import annotations

import dataclasses

import pytest

from croft.errors import PeerMisbehaved
from croft.identity.certificates import certify
from croft.identity.grants import admit
from croft.identity.revocations import open_revocation, revoke
from croft.model.ids import CommunityId
from croft.overlay.contacts import Contact, Trust
from croft.overlay.invitation import Admit, Received
from croft.overlay.invitation_code import Line, line_text, parse_code
from croft.overlay.join_messages import Admitted, DeviceAdmitted
from croft.overlay.joining import DeviceJoiner, LineJoiner
from support.joining import (
    ALICE,
    ALICES_CHAIN,
    BOB,
    CAROL,
    COMMUNITY,
    MALLORY,
    NOW,
    OTHER_COMMUNITY,
    Somebody,
    inviter,
    seed,
)

FRESH = Somebody("fresh machine")
ALICE_AS_COMMUNITY = CommunityId(ALICE.twin)


def device_line() -> Line:
    made = inviter().create(ALICE_AS_COMMUNITY, addresses=[], now=NOW, lifetime_s=60, is_spoken=False, seed=seed("d"))
    line = parse_code(made.line)
    assert isinstance(line, Line)
    return line


def joiner(line: Line | None = None) -> DeviceJoiner:
    return DeviceJoiner(line or device_line(), FRESH.peer, FRESH.certificate)


ANSWER = DeviceAdmitted(
    certify(ALICE.twin_key, FRESH.peer, "phone", NOW),
    ALICE.certificate,
    [(COMMUNITY, "home", list(ALICES_CHAIN), [b"descriptor"])],
    [(BOB.twin, "bob", "low", True)],
)


def test_a_line_for_a_device_looks_otherwise_than_an_invitation() -> None:
    line = device_line()

    assert line.is_for_device
    assert line_text(line).startswith("croft-device:")
    assert parse_code(line_text(line)) == line


def test_the_answer_makes_a_device_with_memberships_and_contacts() -> None:
    welcome = joiner().admitted(ANSWER, NOW)

    assert welcome.inviter.twin == ALICE.twin
    assert [(one.community, one.name, one.members) for one in welcome.memberships] == [
        (COMMUNITY, "home", (b"descriptor",))
    ]
    assert welcome.contacts == (Contact(BOB.twin, "bob", Trust.LOW, is_blocked=True, added_at=NOW),)


def test_the_core_admits_one_device_by_one_line() -> None:
    core = inviter()
    made = core.create(ALICE_AS_COMMUNITY, addresses=[], now=NOW, lifetime_s=60, is_spoken=False, seed=seed("d"))
    line = parse_code(made.line)
    assert isinstance(line, Line)

    effects = core.handle(Received(FRESH.peer, joiner(line).start(), NOW, seed(1)))
    [admitted] = [effect for effect in effects if isinstance(effect, Admit)]
    other = DeviceJoiner(line, CAROL.peer, CAROL.certificate)
    again = core.handle(Received(CAROL.peer, other.start(), NOW, seed(2)))

    assert core.is_for_device(admitted.community)
    assert not core.is_for_device(COMMUNITY)
    assert not [effect for effect in again if isinstance(effect, Admit)]


@pytest.mark.parametrize(
    "answer",
    [
        {"certificate": certify(MALLORY.twin_key, FRESH.peer, "phone", NOW)},
        {"certificate": certify(ALICE.twin_key, CAROL.peer, "phone", NOW)},
        {"certificate": b"nothing"},
        {"inviter_certificate": MALLORY.certificate},
        {"inviter_certificate": certify(MALLORY.twin_key, ALICE.peer, "alice", NOW)},
        {"memberships": []},
        {"memberships": [(OTHER_COMMUNITY, "home", list(ALICES_CHAIN), [])]},
        {"memberships": [(COMMUNITY, "home", [], [])]},
        {"memberships": [(COMMUNITY, "home", list(ALICES_CHAIN), [])] * 65},
        {"contacts": [("bob", "bob", "low", False)]},
        {"contacts": [(BOB.twin, "bob", "boundless", False)]},
    ],
    ids=str,
)
def test_an_answer_that_is_not_from_the_twin_of_the_line_is_refused(answer: dict[str, object]) -> None:
    fields = {name: getattr(ANSWER, name) for name in ANSWER.__struct_fields__}

    with pytest.raises(PeerMisbehaved):
        joiner().admitted(DeviceAdmitted(**{**fields, **answer}), NOW)


def test_no_invitation_to_a_community_takes_a_machine_over() -> None:
    line = dataclasses.replace(device_line(), is_for_device=False)

    with pytest.raises(PeerMisbehaved, match="device of somebody else"):
        LineJoiner(line, FRESH.twin, FRESH.certificate).admitted(ANSWER, NOW)


def test_a_member_is_no_device() -> None:
    chain = admit(ALICE.twin_key, ALICES_CHAIN, COMMUNITY, FRESH.twin)

    with pytest.raises(PeerMisbehaved, match="member instead"):
        joiner().admitted(Admitted(COMMUNITY, "home", chain, ALICE.certificate, []), NOW)


# --- revocations -----------------------------------------------------------------------------------------------------


def test_a_revocation_says_whose_device_is_revoked() -> None:
    revoked = open_revocation(revoke(ALICE.twin_key, FRESH.peer, COMMUNITY, ALICES_CHAIN, NOW), COMMUNITY, NOW)

    assert (revoked.twin, revoked.peer, revoked.revoked_at) == (ALICE.twin, FRESH.peer, NOW)


def test_it_counts_at_any_time_and_only_from_a_member_whole_and_in_its_community() -> None:
    record = revoke(ALICE.twin_key, FRESH.peer, COMMUNITY, ALICES_CHAIN, NOW)

    open_revocation(record, COMMUNITY, 0.0)
    with pytest.raises(PeerMisbehaved):
        open_revocation(record, OTHER_COMMUNITY, NOW)
    with pytest.raises(PeerMisbehaved):
        open_revocation(revoke(MALLORY.twin_key, FRESH.peer, COMMUNITY, ALICES_CHAIN, NOW), COMMUNITY, NOW)
    for at in range(0, len(record), 7):
        with pytest.raises(PeerMisbehaved):
            open_revocation(record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :], COMMUNITY, NOW)
