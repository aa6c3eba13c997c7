"""Which records are held, announced, asked for and compared."""

from __future__ import annotations

import pytest

from croft.errors import PeerMisbehaved
from croft.model.ids import PeerId
from croft.overlay.record_messages import (
    RECORD_BYTES_PER_PUSH_MAX,
    RECORDS_PER_PUSH_MAX,
    Branches,
    Have,
    Push,
    Roots,
    Wanted,
)
from croft.overlay.records import (
    ASK_AGAIN_S,
    CLOCK_AHEAD_S_MAX,
    COMPARE_EVERY_S,
    UPDATES_BURST,
    Dropped,
    Entry,
    Gone,
    Learned,
    Left,
    Limits,
    LinkDown,
    LinkUp,
    MessageReceived,
    Overtaken,
    Published,
    Received,
    RecordStore,
    Send,
    Tick,
)
from support.members import CHOIR, VILLAGE
from support.records import KIND, entry

ANNA, BO, CLEO, SELF = (PeerId(name) for name in ("anna", "bo", "cleo", "self"))
HERE = frozenset([VILLAGE])
MAX = 40


def store(*linked: PeerId) -> RecordStore:
    made = RecordStore(SELF)
    made.allow(KIND, Limits(MAX, 10))
    made.enter(VILLAGE)
    for peer in linked:
        made.handle(LinkUp(peer, HERE))
    return made


def held(made: RecordStore) -> list[str]:
    return sorted(one.claim.key for one in made.entries(KIND))


def have(*entries: Entry, ranges: int = 0) -> Have:
    return Have(VILLAGE, KIND, ranges, 0, [(one.slot, one.version) for one in entries])


def test_news_is_announced_to_all_links_but_its_sender() -> None:
    made, news = store(ANNA, BO, CLEO), entry("x")

    effects = made.handle(Received(ANNA, [news], 0.0))

    assert effects == [Learned(news), Send(BO, have(news)), Send(CLEO, have(news))]


def test_an_announcement_of_what_is_missing_is_answered_by_asking_once() -> None:
    made, news = store(ANNA, BO), entry("x", 5)

    asked = made.handle(MessageReceived(ANNA, have(news), 0.0))

    assert asked == [Send(ANNA, Wanted(VILLAGE, KIND, [news.slot]))]
    assert made.handle(MessageReceived(BO, have(news), 0.5)) == []
    assert made.handle(MessageReceived(BO, have(news), ASK_AGAIN_S)) == [
        Send(BO, Wanted(VILLAGE, KIND, [news.slot]))
    ], "the first one did not give it"
    made.handle(Received(BO, [news], 3.0))
    assert made.handle(MessageReceived(ANNA, have(news, entry("x", 4)), 9.0)) == []


def test_what_is_asked_for_is_given() -> None:
    made, news = store(ANNA), entry("x")
    made.handle(Published(news, 0.0))

    given = made.handle(MessageReceived(ANNA, Wanted(VILLAGE, KIND, [news.slot, 77]), 0.0))

    assert given == [Send(ANNA, Push(VILLAGE, [(KIND, news.record)]))]


@pytest.mark.parametrize(
    "wrong",
    [
        entry("x", expires_at=99.0),
        entry("x", int((100 + CLOCK_AHEAD_S_MAX + 1) * 1000)),
        entry("x", community=CHOIR),
        entry("x", kind="unheard of"),
    ],
    ids=["expired", "from the future", "of another community", "of an unknown kind"],
)
def test_what_cannot_be_is_not_taken(wrong: Entry) -> None:
    made = store(ANNA)

    assert made.handle(Received(ANNA, [wrong], 100.0)) == []
    assert held(made) == []


@pytest.mark.parametrize("sequence", [0, 1, 2])
def test_what_is_old_or_known_is_not_taken_and_not_passed_on(sequence: int) -> None:
    made = store(ANNA, BO)
    made.handle(Received(ANNA, [entry("x", 2)], 0.0))

    assert made.handle(Received(BO, [entry("x", sequence)], 0.0)) == []


def test_of_two_records_with_one_sequence_all_keep_the_same() -> None:
    one, other = entry("x", 1, said="yes"), entry("x", 1, said="no")
    left, right = store(ANNA), store(ANNA)
    for made, order in ((left, [one, other]), (right, [other, one])):
        for word in order:
            made.handle(Received(ANNA, [word], 0.0))

    assert left.entries(KIND) == right.entries(KIND)


def test_records_of_somebody_without_a_link_are_taken_only_about_itself() -> None:
    made = store()

    assert made.handle(Received(ANNA, [entry("x")], 0.0)) == []
    assert made.handle(Received(ANNA, [entry("anna")], 0.0)) == [Learned(entry("anna"))]


def test_there_is_room_for_a_bounded_number_and_for_fewer_of_one_origin() -> None:
    made = store(ANNA)

    made.handle(Received(ANNA, [entry(f"m{n}", origin="mallory") for n in range(30)], 0.0))
    assert len(held(made)) == 10
    made.handle(Received(ANNA, [entry(f"x{n}") for n in range(100)], 0.0))
    assert len(held(made)) == MAX
    assert made.handle(Received(ANNA, [entry("x1", 2)], 0.0)) == [Learned(entry("x1", 2))], "what is known may change"


def test_one_record_changes_at_a_bounded_pace() -> None:
    made = store(ANNA)

    for sequence in range(1, 50):
        made.handle(Received(ANNA, [entry("x", sequence)], 0.0))

    assert made.entries(KIND)[0].claim.sequence == UPDATES_BURST
    made.handle(Received(ANNA, [entry("x", 60)], 10.0))
    assert made.entries(KIND)[0].claim.sequence == 60


def test_ones_own_words_that_come_back_change_nothing_and_newer_ones_are_told() -> None:
    made = store(ANNA)
    made.handle(Published(entry("self", 5), 0.0))

    assert made.handle(Received(ANNA, [entry("self", 4)], 0.0)) == []
    assert made.handle(Received(ANNA, [entry("self", 6)], 0.0)) == [Overtaken(entry("self", 6))]
    assert made.entries(KIND) == [entry("self", 5)]


def test_what_expires_is_gone_and_a_renewed_record_stays() -> None:
    made = store(ANNA)
    made.handle(Received(ANNA, [entry("x", expires_at=50.0), entry("y", expires_at=50.0)], 0.0))
    made.handle(Received(ANNA, [entry("y", 2, expires_at=90.0)], 0.0))

    gone = [e for e in made.handle(Tick(51.0)) if isinstance(e, Gone)]

    assert gone == [Gone(entry("x", expires_at=50.0))]
    assert held(made) == ["y"]


def test_leaving_forgets_all_of_a_community_and_nothing_else() -> None:
    made = store(ANNA)
    made.enter(CHOIR)
    made.handle(Published(entry("self"), 0.0))
    made.handle(Published(entry("self", community=CHOIR), 0.0))

    assert made.handle(Left(CHOIR)) == [Gone(entry("self", community=CHOIR))]
    assert held(made) == ["self"]


def test_a_dropped_record_is_gone_and_may_come_again() -> None:
    made = store(ANNA)
    made.handle(Received(ANNA, [entry("x")], 0.0))

    assert made.handle(Dropped(entry("x"))) == [Gone(entry("x"))]
    assert made.handle(Received(ANNA, [entry("x")], 1.0)) == [Learned(entry("x"))]


def test_a_new_link_and_later_each_link_in_turn_gets_the_roots() -> None:
    made = store()
    made.handle(Published(entry("self"), 0.0))
    [sent] = made.handle(LinkUp(ANNA, HERE))
    assert isinstance(sent, Send) and isinstance(sent.message, Roots)
    assert [(kind, count) for kind, _, count in sent.message.roots] == [(KIND, 1)]
    made.handle(LinkUp(BO, HERE))

    turns = [made.handle(Tick(COMPARE_EVERY_S * n + 0.1)) for n in range(1, 5)]

    assert {effect.peer for turn in turns for effect in turn if isinstance(effect, Send)} == {ANNA, BO}


def test_a_peer_is_told_nothing_of_a_community_that_its_link_does_not_serve() -> None:
    made = store(ANNA)
    made.enter(CHOIR)
    hidden = entry("self", community=CHOIR)

    assert made.handle(Published(hidden, 0.0)) == [Learned(hidden)]
    assert made.handle(MessageReceived(ANNA, Wanted(CHOIR, KIND, [hidden.slot]), 0.0)) == []
    assert made.handle(MessageReceived(ANNA, Roots(CHOIR, []), 0.0)) == []
    assert made.handle(MessageReceived(BO, Roots(VILLAGE, []), 0.0)) == []


def exchange(one: RecordStore, other: RecordStore) -> int:
    """Lets two stores talk until they have nothing more to say; the bytes of records that crossed."""
    stores, names = {SELF: one, ANNA: other}, {SELF: ANNA, ANNA: SELF}
    catalogue = {e.record: e for made in (one, other) for e in made.entries(KIND)}
    pending = [(SELF, effect) for effect in one.handle(LinkUp(ANNA, HERE))]
    pending += [(ANNA, effect) for effect in other.handle(LinkUp(SELF, HERE))]
    crossed = 0
    for _ in range(10_000):
        if not pending:
            return crossed
        sender, effect = pending.pop(0)
        if not isinstance(effect, Send):
            continue
        receiver = names[sender]
        if isinstance(effect.message, Push):
            entries = [catalogue[record] for _, record in effect.message.records]
            crossed += sum(len(e.record) for e in entries)
            answers = stores[receiver].handle(Received(sender, entries, 0.0))
        else:
            answers = stores[receiver].handle(MessageReceived(sender, effect.message, 0.0))
        pending += [(receiver, answer) for answer in answers]
    raise AssertionError("they never come to an end")


@pytest.mark.parametrize("count", [0, 3, 40, 2_000])
def test_two_stores_become_equal_and_only_what_differs_crosses(count: int) -> None:
    one, other = RecordStore(SELF), RecordStore(ANNA)
    for made in (one, other):
        made.allow(KIND, Limits(10_000, 10))
        made.enter(VILLAGE)
    shared = [entry(f"s{n}", size=100) for n in range(count)]
    one.handle(Received(None, [*shared, entry("only here"), entry("both", 2)], 0.0))
    other.handle(Received(None, [*shared, entry("only there"), entry("both", 1)], 0.0))

    crossed = exchange(one, other)

    assert sorted(e.record for e in one.entries(KIND)) == sorted(e.record for e in other.entries(KIND))
    assert len(one.entries(KIND)) == count + 3
    assert crossed < 500


def test_pushes_are_bounded_in_number_and_in_bytes() -> None:
    made = RecordStore(SELF)
    made.allow(KIND, Limits(1_000, 10))
    made.enter(VILLAGE)
    entries = [entry(f"m{n}", size=20_000) for n in range(200)]
    made.handle(Received(None, entries, 0.0))
    made.handle(LinkUp(ANNA, HERE))

    sent = made.handle(MessageReceived(ANNA, Wanted(VILLAGE, KIND, [e.slot for e in entries]), 0.0))

    batches = [
        effect.message.records for effect in sent if isinstance(effect, Send) and isinstance(effect.message, Push)
    ]
    assert sum(map(len, batches)) == 200
    assert all(len(batch) <= RECORDS_PER_PUSH_MAX for batch in batches)
    assert all(sum(len(record) for _, record in batch) <= RECORD_BYTES_PER_PUSH_MAX for batch in batches)


@pytest.mark.parametrize(
    "message",
    [
        Branches(VILLAGE, "unheard of", [0]),
        Have(VILLAGE, KIND, 3, 1, []),
        Have(VILLAGE, KIND, 4, 9, []),
        Roots(VILLAGE, [("unheard of", 1, 1)]),
    ],
)
def test_senseless_messages_are_not_answered(message: Branches | Have | Wanted | Roots) -> None:
    made = store(ANNA)

    assert made.handle(MessageReceived(ANNA, message, 0.0)) == []


@pytest.mark.parametrize(
    "message",
    [
        Branches(VILLAGE, KIND, [0] * 7),
        Have(VILLAGE, KIND, 0, 0, [(n, 1) for n in range(10_000)]),
        Wanted(VILLAGE, KIND, list(range(10_000))),
        Roots(VILLAGE, [(KIND, 1, 1)] * 10_000),
    ],
)
def test_messages_over_their_bounds_are_a_breach(message: Branches | Have | Wanted | Roots) -> None:
    made = store(ANNA)

    with pytest.raises(PeerMisbehaved, match="over its bounds"):
        made.handle(MessageReceived(ANNA, message, 0.0))


def test_a_link_that_ended_is_told_no_more() -> None:
    made = store(ANNA)
    made.handle(LinkDown(ANNA))

    assert made.handle(Published(entry("self"), 0.0)) == [Learned(entry("self"))]
