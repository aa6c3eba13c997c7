"""What people are called, how far they are trusted, and who is kept out."""

from __future__ import annotations

import pytest

from croft.control import schema
from croft.control.naming import find_peer, find_person
from croft.errors import Busy, NotFound, PeerMisbehaved, Refused, Usage
from croft.model.ids import PeerId, TwinId
from croft.overlay.contacts import CONTACTS_MAX, Contact, ContactBook, Device, Names, Trust
from croft.overlay.doorkeeper import Doorkeeper

ME, BOB, CYD = (TwinId(digit * 64) for digit in "abc")
NOW = 1_000.0


def device(name: str, twin: TwinId, peer: str) -> Device:
    return Device(PeerId(peer), twin, name)


MINE = device("laptop", ME, "1" * 64)
BOBS = device("laptop", BOB, "2" * 64)
BOBS_PHONE = device("phone", BOB, "3" * 64)
CYDS = device("laptop", CYD, "4" * 64)


def book(**petnames: str) -> ContactBook:
    made = ContactBook(ME)
    for name, twin in petnames.items():
        made.name(TwinId(twin), name, NOW)
    return made


# --- names -----------------------------------------------------------------------------------------------------------


def test_without_contacts_devices_have_the_names_they_give_themselves() -> None:
    assert book().shown([BOBS_PHONE], MINE.peer) == {BOBS_PHONE.peer: "phone"}


def test_two_who_call_themselves_alike_are_told_apart_and_this_peer_keeps_its_name() -> None:
    shown = book().shown([MINE, BOBS, CYDS], MINE.peer)

    assert shown == {MINE.peer: "laptop", BOBS.peer: "laptop~2222", CYDS.peer: "laptop~4444"}


def test_a_petname_stands_above_what_a_device_calls_itself() -> None:
    assert book(bob=BOB).shown([BOBS], MINE.peer) == {BOBS.peer: "bob"}


def test_several_devices_of_a_contact_are_told_apart_by_their_own_names() -> None:
    assert book(bob=BOB).shown([BOBS, BOBS_PHONE], MINE.peer) == {BOBS.peer: "bob/laptop", BOBS_PHONE.peer: "bob/phone"}


def test_nobody_gets_the_name_of_a_contact_by_calling_himself_so() -> None:
    impostor = device("Bob", CYD, "5" * 64)

    assert book(bob=BOB).shown([BOBS, impostor], MINE.peer) == {BOBS.peer: "bob", impostor.peer: "Bob~5555"}


def test_as_many_digits_of_an_id_are_shown_as_tell_it_apart() -> None:
    one, two = device("x", BOB, "77777" + "1" * 59), device("x", CYD, "77777" + "2" * 59)

    assert sorted(book().shown([one, two], MINE.peer).values()) == ["x~777771", "x~777772"]


def test_names_follow_what_becomes_known() -> None:
    contacts = book()
    names = Names(contacts, MINE.peer)
    names.learn(BOBS)
    assert names.of(BOBS.peer) == "laptop"

    contacts.name(BOB, "bob", NOW)
    assert names.of(BOBS.peer) == "bob"

    names.learn(BOBS_PHONE)
    assert names.of(BOBS.peer) == "bob/laptop"

    names.forget(BOBS_PHONE.peer)
    assert names.of(BOBS.peer) == "bob"
    assert names.of(BOBS_PHONE.peer) == ""


@pytest.mark.parametrize("name", ["", " bob", "bob ", "b/b", "b~b", "b\nb", "x" * 65, "nameless"])
def test_what_is_no_petname_is_refused(name: str) -> None:
    with pytest.raises(Usage):
        book().name(BOB, name, NOW)


def test_a_petname_means_one_person() -> None:
    contacts = book(bob=BOB)

    with pytest.raises(Usage, match="another contact"):
        contacts.name(CYD, "BOB", NOW)
    contacts.name(BOB, "Bob", NOW)
    contacts.remove(BOB, NOW)
    contacts.name(CYD, "bob", NOW)


# --- trust and blocks ------------------------------------------------------------------------------------------------


def test_a_stranger_is_trusted_as_usual_and_oneself_in_full() -> None:
    contacts = book()
    assert (contacts.trust_of(BOB), contacts.trust_of(ME)) == (Trust.NORMAL, Trust.HIGH)

    contacts.trust(BOB, Trust.LOW, NOW)

    assert contacts.trust_of(BOB) is Trust.LOW
    assert contacts.get(BOB).added_at == NOW


def test_a_block_keeps_a_person_out_until_it_is_undone_and_nobody_else() -> None:
    contacts = book(bob=BOB)
    door = Doorkeeper(contacts)
    contacts.block(BOB, NOW)

    with pytest.raises(Refused, match="has blocked you"):
        door.admit(BOBS.peer, BOB)
    with pytest.raises(Refused, match=r"bob .* is blocked here"):
        door.seek(BOBS.peer, BOB, "bob")
    door.admit(CYDS.peer, CYD)
    door.seek(CYDS.peer, CYD, "cyd")

    unblocked = contacts.unblock(BOB, NOW)
    assert (unblocked.petname, unblocked.is_blocked, unblocked.added_at) == ("bob", False, NOW)
    door.admit(BOBS.peer, BOB)
    with pytest.raises(NotFound):
        contacts.unblock(BOB, NOW)


def test_nobody_blocks_himself() -> None:
    with pytest.raises(Usage, match="yourself"):
        book().block(ME, NOW)
    with pytest.raises(Usage, match="yourself"):
        book().trust(ME, Trust.NONE, NOW)


def test_contacts_are_bounded() -> None:
    contacts = ContactBook(ME, [Contact(TwinId(f"{number:064x}")) for number in range(CONTACTS_MAX)])

    with pytest.raises(Busy):
        contacts.name(BOB, "bob", NOW)


# --- which peer or person is meant -----------------------------------------------------------------------------------


def peer(name: str, device: Device, petname: str = "") -> schema.Peer:
    return schema.Peer(
        peer=device.peer,
        twin=device.twin,
        name=name,
        communities=[],
        is_self=False,
        link="direct",
        self_name=device.name,
        petname=petname,
    )


PEERS = [peer("bob/laptop", BOBS, "bob"), peer("bob/phone", BOBS_PHONE, "bob"), peer("cyd", CYDS, "cyd")]


def test_a_peer_is_found_by_all_its_names() -> None:
    for name in ("bob/phone", "BOB/phone", "phone", "3333", BOBS_PHONE.peer):
        assert find_peer(PEERS, name).peer == BOBS_PHONE.peer
    assert find_peer(PEERS, "cyd").peer == CYDS.peer


def test_a_name_of_several_peers_is_an_error_that_lists_them() -> None:
    with pytest.raises(Usage, match=r"bob/laptop \(2222222222\), bob/phone \(3333333333\)"):
        find_peer(PEERS, "bob")
    with pytest.raises(Usage, match="laptop"):
        find_peer(PEERS, "laptop")
    with pytest.raises(NotFound):
        find_peer(PEERS, "dot")


def test_a_person_is_found_by_petname_device_and_id() -> None:
    contacts = [schema.Contact(twin=BOB, petname="bob", trust="normal", is_blocked=False, added_at=0.0)]

    for name in ("bob", "bob/phone", "phone", "3333", "bbbb", BOB):
        assert find_person(contacts, PEERS, name) == BOB
    assert find_person(contacts, PEERS, "e" * 64) == "e" * 64
    with pytest.raises(NotFound):
        find_person(contacts, PEERS, "dot")


# --- notes of the owner's other devices ------------------------------------------------------------------------------


def test_a_later_note_of_another_device_counts_and_an_earlier_one_does_not() -> None:
    here = book(bob=BOB)

    assert here.merge(Contact(BOB, "robert", changed_at=NOW - 1), NOW + 9) is None
    assert here.get(BOB).petname == "bob"
    assert here.merge(Contact(BOB, "robert", Trust.LOW, changed_at=NOW + 1), NOW + 9) is not None
    assert (here.get(BOB).petname, here.trust_of(BOB)) == ("robert", Trust.LOW)


def test_a_removal_is_a_note_that_travels_and_is_undone_by_a_later_one() -> None:
    here, there = book(bob=BOB), book(bob=BOB)

    assert there.merge(here.remove(BOB, NOW + 1), NOW + 2) is not None
    assert there.all() == [] and there.get(BOB) == Contact(BOB)
    with pytest.raises(NotFound):
        there.remove(BOB, NOW + 2)
    here.merge(there.name(BOB, "bob", NOW + 3), NOW + 4)
    assert [one.petname for one in here.all()] == ["bob"]


def test_a_change_counts_although_the_clock_was_set_back_and_a_clock_that_is_ahead_wins_nothing_for_ever() -> None:
    here = book(bob=BOB)

    assert here.trust(BOB, Trust.LOW, NOW - 500).changed_at > NOW
    here.merge(Contact(BOB, "from tomorrow", changed_at=NOW + 86_400), NOW + 1)
    assert here.get(BOB).changed_at == NOW + 1
    assert here.merge(Contact(BOB, "from now", changed_at=NOW + 2), NOW + 2) is not None


def test_nobody_is_kept_out_of_his_own_machine_by_a_note() -> None:
    here = book()
    here.merge(Contact(ME, "me", Trust.NONE, is_blocked=True, changed_at=NOW), NOW)

    assert not here.is_blocked(ME)
    assert here.trust_of(ME) is Trust.HIGH


@pytest.mark.parametrize(
    "note",
    [
        Contact(TwinId("nobody"), "x", changed_at=NOW),
        Contact(BOB, "b/b", changed_at=NOW),
        Contact(BOB, "bob", changed_at=float("nan")),
        Contact(BOB, "bob", added_at=-1.0),
    ],
    ids=["no twin", "no petname", "no time", "a time before all others"],
)
def test_a_note_that_no_device_would_make_is_refused(note: Contact) -> None:
    with pytest.raises(PeerMisbehaved):
        book().merge(note, NOW)


def test_removals_make_room_for_contacts_and_notes_do_not_grow_without_bound() -> None:
    full = ContactBook(ME)
    for number in range(CONTACTS_MAX):
        full.merge(Contact(TwinId(f"{number:064x}"), is_forgotten=number < 2, changed_at=NOW + number), NOW * 9)

    full.name(BOB, "bob", NOW * 9)
    assert full.merge(Contact(CYD, "cyd", changed_at=NOW), NOW * 9) is not None
    assert full.merge(Contact(TwinId("d" * 64), "dan", changed_at=NOW), NOW * 9) is None
    assert len(full.notes()) == CONTACTS_MAX
