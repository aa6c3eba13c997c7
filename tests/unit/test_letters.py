"""Letters: sealed for their readers alone; a flipped bit, a foreign signer, a bound broken: each is refused."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import pytest

from croft.errors import Busy, PeerMisbehaved
from croft.identity import grants
from croft.identity.by_member import Signatory
from croft.identity.certificates import certify
from croft.identity.keys import SecretKey
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.twins.cards import (
    DELEGATES_MAX,
    LIFETIME_S,
    PROFILE_CHARS_MAX,
    Said,
    make_card,
    newest,
    open_card,
)
from croft.twins.delivery import RETRY_S_MIN, UNDER_WAY_MAX, Delivery, View
from croft.twins.feeds import GAP_S_MAX, WAITING_MAX, Arrived, Feeds, Forked, Looked, Read
from croft.twins.letters import (
    CLASS_BYTES,
    KEYS_PER_LETTER_MAX,
    ROOM_CHARS_MAX,
    Author,
    Body,
    Box,
    Feed,
    Letter,
    digest_of,
    find_key,
    open_body,
    open_letter,
    reading_key,
    sign_letter,
)
from croft.twins.pen import KEY_LETTERS_MAX, KEY_S_MAX, Pen, Written
from croft.twins.shelf import (
    FEEDS_PER_BOX_MAX,
    KEPT_BYTES_MAX,
    KEPT_OF_ONE_BYTES_MAX,
    READ_HERE_BYTES_MAX,
    ROOMS_MAX,
    Shelf,
    within,
)

NOW = 1_000_000.0
COMMUNITY = "ab" * 32


def author(name: str) -> Author:
    keys = Random(name)
    device, twin = SecretKey(keys.randbytes(32)), SecretKey(keys.randbytes(32))
    return Author(device, certify(twin, PeerId(device.public), name, NOW), bytes.fromhex(twin.public))


ADA, BO = author("ada"), author("bo")
INBOX = Box(COMMUNITY, BO.twin.hex())
ROOM = Box(COMMUNITY, "", "garden")


def keys_of(*authors: Author) -> dict[bytes, bytes]:
    return {one.id: reading_key(one.device).public_key().public_bytes_raw() for one in authors}


def pen() -> Pen:
    return Pen(ADA, Random(7).randbytes)


def one_letter(text: str = "hello", box: Box = INBOX) -> Written:
    [written] = pen().write(box, Body("text", text), keys_of(ADA, BO), sequence=1, previous=b"", now=NOW)
    return written


def read(letter: Letter, reader: Author) -> str | None:
    key = find_key(letter, reader.id, reading_key(reader.device))
    return None if key is None else open_body(letter, key).text


# --- letters ---------------------------------------------------------------------------------------------------------


def test_a_letter_opens_for_its_readers_and_for_nobody_else() -> None:
    letter = open_letter(one_letter().record)
    assert (read(letter, BO), read(letter, ADA), read(letter, author("eve"))) == ("hello", "hello", None)


def test_what_a_keeper_sees_does_not_tell_short_letters_apart() -> None:
    sizes = {len(one_letter(text).letter.sealed) for text in ("a", "b" * 50, "c" * 200)}
    assert len(sizes) == 1 and next(iter(sizes)) >= CLASS_BYTES


def test_any_flipped_bit_is_refused() -> None:
    record = one_letter().record
    for at in range(0, len(record), 7):
        flipped = bytearray(record)
        flipped[at] ^= 1
        with pytest.raises(PeerMisbehaved):
            open_letter(bytes(flipped))


def test_a_key_moved_to_another_letter_or_box_does_not_open_there() -> None:
    letter = one_letter().letter
    for moved in (
        msgspec.structs.replace(letter, room="other", to=b""),
        msgspec.structs.replace(letter, owner=BO.twin),
        msgspec.structs.replace(letter, key=2, sequence=2),
    ):
        with pytest.raises(PeerMisbehaved, match="does not open"):
            find_key(moved, BO.id, reading_key(BO.device))
    key = find_key(letter, BO.id, reading_key(BO.device))
    assert key is not None
    with pytest.raises(PeerMisbehaved, match="does not open"):
        open_body(msgspec.structs.replace(letter, sequence=2), key)


BROKEN: dict[str, Callable[[Letter], Letter]] = {
    "no address": lambda letter: msgspec.structs.replace(letter, to=b""),
    "two addresses": lambda letter: msgspec.structs.replace(letter, room="garden"),
    "a long room": lambda letter: msgspec.structs.replace(letter, to=b"", room="x" * (ROOM_CHARS_MAX + 1)),
    "a room of control characters": lambda letter: msgspec.structs.replace(letter, to=b"", room="a\x1bb"),
    "number 0": lambda letter: msgspec.structs.replace(letter, sequence=0, key=0),
    "a key of the future": lambda letter: msgspec.structs.replace(letter, key=2),
    "no predecessor": lambda letter: msgspec.structs.replace(letter, sequence=2),
    "too many keys": lambda letter: msgspec.structs.replace(letter, keys=[(b"k" * 32, b"")] * 257),
    "no community": lambda letter: msgspec.structs.replace(letter, community="x"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_signed_letter_that_breaks_a_bound_is_refused(what: str) -> None:
    broken = BROKEN[what](one_letter().letter)
    with pytest.raises(PeerMisbehaved):
        open_letter(sign_letter(ADA, broken))


def test_a_letter_signed_by_another_device_is_refused() -> None:
    with pytest.raises(PeerMisbehaved, match="device of its owner"):
        open_letter(sign_letter(BO, one_letter().letter))


# --- the pen ---------------------------------------------------------------------------------------------------------


def test_a_key_serves_many_letters_and_changes_with_the_readers() -> None:
    quill, previous, numbers = pen(), b"", []
    readers = [keys_of(ADA, BO)] * 3 + [keys_of(ADA, BO, author("eve"))] + [keys_of(ADA, BO)]
    for sequence, who in enumerate(readers, start=1):
        [written] = quill.write(ROOM, Body("text", "x"), who, sequence=sequence, previous=previous, now=NOW)
        numbers.append((written.letter.key, len(written.letter.keys)))
        previous = written.digest
    assert numbers == [(1, 2), (1, 0), (1, 0), (4, 3), (5, 2)]


def test_a_key_ends_after_a_day_or_so_many_letters() -> None:
    quill = pen()
    quill.write(ROOM, Body("text", "x"), keys_of(BO), sequence=1, previous=b"", now=NOW)
    for sequence, now in ((1 + KEY_LETTERS_MAX, NOW), (2, NOW + KEY_S_MAX)):
        [written] = quill.write(ROOM, Body("text", "x"), keys_of(BO), sequence=sequence, previous=b"p" * 32, now=now)
        assert written.letter.key == sequence


def test_many_readers_take_several_letters_and_all_of_them_can_read_the_last() -> None:
    crowd = {bytes([1]) + number.to_bytes(31, "big"): keys_of(BO)[BO.id] for number in range(KEYS_PER_LETTER_MAX)}
    written = pen().write(ROOM, Body("text", "x"), {**crowd, **keys_of(BO)}, sequence=1, previous=b"", now=NOW)
    letters = [open_letter(one.record) for one in written]
    assert [letter.sequence for letter in letters] == [1, 2]
    assert letters[1].previous == digest_of(written[0].record)
    assert [bool(letter.sealed) for letter in letters] == [False, True]
    keys = [find_key(letter, BO.id, reading_key(BO.device)) for letter in letters]
    assert [open_body(letters[1], key).text for key in keys if key] == ["x"]


def test_after_a_failure_no_other_letter_is_sealed_under_the_same_key() -> None:
    quill = pen()
    [first] = quill.write(ROOM, Body("text", "x"), keys_of(BO), sequence=1, previous=b"", now=NOW)
    quill.forget(ROOM)
    [again] = quill.write(ROOM, Body("text", "y"), keys_of(BO), sequence=1, previous=b"", now=NOW)
    keys = [find_key(one.letter, BO.id, reading_key(BO.device)) for one in (first, again)]
    assert keys[0] != keys[1]


# --- feeds -----------------------------------------------------------------------------------------------------------

FEED = Feed(INBOX, ADA.device.public)


def arrived(sequence: int, *, of: str = "", now: float = NOW) -> Arrived:
    return Arrived(FEED, sequence, _digest(sequence, of), b"" if sequence == 1 else _digest(sequence - 1, ""), now)


def _digest(sequence: int, of: str) -> bytes:
    return digest_of(f"{sequence}{of}".encode())


def test_letters_are_read_in_order_however_they_come() -> None:
    feeds = Feeds()
    assert [list(feeds.handle(arrived(number))) for number in (3, 2, 1, 2)] == [
        [],
        [],
        [Read(FEED, 1), Read(FEED, 2), Read(FEED, 3)],
        [],
    ]


def test_what_never_comes_is_given_up_and_counted() -> None:
    feeds = Feeds()
    feeds.handle(arrived(1))
    feeds.handle(arrived(4))
    assert feeds.handle(Looked(NOW + GAP_S_MAX - 1)) == []
    assert feeds.handle(Looked(NOW + GAP_S_MAX)) == [Read(FEED, 4, missing=2)]
    assert feeds.handle(arrived(2)) == []


def test_a_second_letter_of_one_number_does_not_count() -> None:
    feeds = Feeds()
    feeds.handle(arrived(3))
    assert feeds.handle(arrived(3, of="other")) == [Forked(FEED, 3)]
    feeds.handle(arrived(1))
    after_another = Arrived(FEED, 2, _digest(2, ""), _digest(1, "other"), NOW)
    assert feeds.handle(after_another) == [Forked(FEED, 2)]
    assert feeds.handle(arrived(2)) == [Read(FEED, 2), Read(FEED, 3)]


def test_waiting_letters_are_bounded() -> None:
    feeds = Feeds()
    for number in range(2, 2 * WAITING_MAX):
        feeds.handle(arrived(number))
    assert len(list(feeds.handle(arrived(1)))) == WAITING_MAX + 1


# --- who is told -----------------------------------------------------------------------------------------------------

P = [PeerId(letter * 64) for letter in "abcdef"]


def test_keepers_are_told_while_no_reader_has_it_and_only_so_many() -> None:
    delivery = Delivery()
    delivery.grown(INBOX)
    view = View((), keepers=(P[1], P[2], P[3], P[4]), copies=2)
    told = delivery.look({INBOX: view}, NOW)
    assert [tell.peer for tell in told] == [P[1], P[2]]
    assert delivery.look({INBOX: view}, NOW) == []
    delivery.answered(told[0])
    delivery.failed(told[1], NOW)
    assert [tell.peer for tell in delivery.look({INBOX: view}, NOW)] == [P[3]]


def test_once_a_reader_has_it_nobody_else_need_keep_it() -> None:
    delivery = Delivery()
    delivery.grown(INBOX)
    view = View((P[0],), keepers=(P[1],), copies=1)
    told = delivery.look({INBOX: view}, NOW)
    assert [tell.peer for tell in told] == [P[0], P[1]]
    for tell in told:
        delivery.answered(tell)
    delivery.grown(INBOX)
    (tell,) = delivery.look({INBOX: View((P[0],))}, NOW)
    delivery.answered(tell)
    assert delivery.look({INBOX: view}, NOW) == []


def test_who_failed_is_asked_again_more_and_more_rarely_and_at_once_when_met() -> None:
    delivery, view = Delivery(), View((P[0],))
    delivery.grown(INBOX)
    [tell] = delivery.look({INBOX: view}, NOW)
    delivery.failed(tell, NOW)
    assert delivery.look({INBOX: view}, NOW + RETRY_S_MIN - 0.1) == []
    [tell] = delivery.look({INBOX: view}, NOW + RETRY_S_MIN)
    delivery.failed(tell, NOW + RETRY_S_MIN)
    assert delivery.look({INBOX: view}, NOW + 2 * RETRY_S_MIN) == []
    delivery.met(P[0])
    assert len(delivery.look({INBOX: view}, NOW + 2 * RETRY_S_MIN)) == 1


def test_a_peer_is_told_of_what_came_while_it_was_told() -> None:
    delivery, view = Delivery(), View((P[0],))
    delivery.grown(INBOX)
    [tell] = delivery.look({INBOX: view}, NOW)
    delivery.grown(INBOX)
    delivery.answered(tell)
    assert not delivery.has_newest(P[0], INBOX)
    assert len(delivery.look({INBOX: view}, NOW)) == 1


def test_only_so_many_are_told_at_a_time() -> None:
    delivery = Delivery()
    boxes = [Box(COMMUNITY, f"{number:064x}") for number in range(2 * UNDER_WAY_MAX)]
    for box in boxes:
        delivery.grown(box)
    views = {box: View((P[0],)) for box in boxes}
    assert len(delivery.look(views, NOW)) == UNDER_WAY_MAX
    assert delivery.look(views, NOW) == []


# --- the shelf -------------------------------------------------------------------------------------------------------


def test_what_is_lacking_of_an_offer() -> None:
    shelf = Shelf()
    for number in (2, 3, 6):
        shelf.put(FEED, "ada", number, 100, is_read_here=True)
    assert shelf.parts(FEED) == [(2, 3), (6, 6)]
    assert shelf.lacks(FEED, (1, 8), 1) == [(1, 1), (4, 5), (7, 8)]
    assert shelf.lacks(FEED, (1, 8), 5) == [(5, 5), (7, 8)]
    assert shelf.lacks(FEED, (2, 3), 1) == []
    assert within((4, 5), [(1, 8)]) and not within((4, 9), [(1, 8)])


@pytest.mark.parametrize(("is_read_here", "limit"), [(True, READ_HERE_BYTES_MAX), (False, KEPT_BYTES_MAX)])
def test_one_author_fills_no_box(is_read_here: bool, limit: int) -> None:
    shelf = Shelf()
    shelf.put(FEED, "ada", 1, limit, is_read_here=is_read_here)
    with pytest.raises(Busy):
        shelf.check_room(FEED, "ada", 1, is_read_here=is_read_here)
    shelf.check_room(FEED, "bo", 1, is_read_here=is_read_here)


def test_one_author_does_not_fill_the_room_for_others_with_letters_to_many() -> None:
    shelf = Shelf()
    for number in range(KEPT_OF_ONE_BYTES_MAX // KEPT_BYTES_MAX):
        feed = Feed(Box(COMMUNITY, f"{number:064x}"), ADA.device.public)
        shelf.check_room(feed, "ada", KEPT_BYTES_MAX, is_read_here=False)
        shelf.put(feed, "ada", 1, KEPT_BYTES_MAX, is_read_here=False)
    another = Feed(Box(COMMUNITY, "f" * 64), ADA.device.public)
    with pytest.raises(Busy):
        shelf.check_room(another, "ada", 1, is_read_here=False)
    shelf.check_room(another, "bo", 1, is_read_here=False)


def test_rooms_and_feeds_are_bounded() -> None:
    shelf = Shelf()
    for number in range(ROOMS_MAX):
        shelf.put(Feed(Box(COMMUNITY, "", f"room {number}"), "d"), "ada", 1, 1, is_read_here=True)
    with pytest.raises(Busy):
        shelf.check_room(Feed(ROOM, "d"), "ada", 1, is_read_here=True)
    for number in range(FEEDS_PER_BOX_MAX):
        shelf.put(Feed(INBOX, f"{number}"), "ada", 1, 1, is_read_here=True)
    with pytest.raises(Busy):
        shelf.check_room(Feed(INBOX, "one more"), "ada", 1, is_read_here=True)


# --- cards -----------------------------------------------------------------------------------------------------------


def card(said: Said, *, now: float = NOW) -> tuple[CommunityId, bytes]:
    root = SecretKey(bytes(32))
    community = CommunityId(root.public)
    chain = grants.found(root, TwinId(ADA.twin.hex()))
    key = reading_key(ADA.device).public_key().public_bytes_raw()
    return community, make_card(
        Signatory(ADA.device, ADA.certificate, community, chain), key, said, now=now, sequence=5
    )


def test_a_card_says_to_its_community_what_its_twin_said() -> None:
    said = Said(NOW, "I mend radios", (P[0],))
    community, record = card(said)
    opened = open_card(community, record, NOW)
    assert (opened.said, opened.twin, opened.peer) == (said, ADA.twin.hex(), ADA.device.public)
    with pytest.raises(PeerMisbehaved, match="another community"):
        open_card(CommunityId("cd" * 32), record, NOW)
    with pytest.raises(PeerMisbehaved, match="expired"):
        open_card(community, record, NOW + LIFETIME_S)


@pytest.mark.parametrize(
    "said",
    [
        Said(NOW, "x" * (PROFILE_CHARS_MAX + 1)),
        Said(NOW, "\x1b[2J"),
        Said(NOW, "", (P[0],) * (DELEGATES_MAX + 1)),
        Said(NOW, "", (PeerId("x"),)),
        Said(NOW + 1e6, "from the future"),
    ],
)
def test_a_card_that_breaks_a_bound_is_refused(said: Said) -> None:
    community, record = card(said)
    with pytest.raises(PeerMisbehaved):
        open_card(community, record, NOW)


def test_the_later_of_two_words_counts() -> None:
    cards = []
    for said in (Said(NOW, "new"), Said(NOW - 5, "old")):
        community, record = card(said)
        cards.append(open_card(community, record, NOW))
    assert newest(cards).profile == newest(cards[::-1]).profile == "new"
    assert newest([]) == Said()
