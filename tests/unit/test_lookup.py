"""Where records about a key belong, and how they are found."""

from __future__ import annotations

from random import Random

from croft.model.ids import PeerId, TwinId
from croft.overlay.lookup import (
    ALPHA,
    ASKED_MAX,
    BUCKET_MAX,
    KEEPERS,
    SLOW_S,
    SPONSORED_MAX,
    Buckets,
    Contact,
    Lookup,
    nearest,
    place_of,
)

FOUNDER = TwinId("founder")
KEY = place_of(b"blob:x")


def contact(number: int, twin: str = "", path: tuple[str, ...] = ()) -> Contact:
    own = TwinId(twin or f"t{number}")
    return Contact.of(PeerId(f"p{number}"), own, (FOUNDER, *map(TwinId, path), own))


def many(count: int) -> list[Contact]:
    return [contact(number) for number in range(count)]


def test_all_who_know_the_same_members_choose_the_same_keepers_in_any_order() -> None:
    members = many(100)
    shuffled = Random(1).sample(members, len(members))

    assert nearest(KEY, members) == nearest(KEY, shuffled)
    assert len(nearest(KEY, members)) == KEEPERS
    assert len(nearest(KEY, members[:3])) == 3


def test_a_death_moves_no_key_but_those_that_the_dead_kept() -> None:
    members = many(50)
    before = nearest(KEY, members)
    after = nearest(KEY, [m for m in members if m != before[2]])

    assert [m for m in before if m != before[2]] == after[:-1]


def test_one_twin_or_one_sponsor_cannot_be_most_of_the_keepers() -> None:
    honest = many(40)
    devices = [contact(1_000 + n, twin="mallory") for n in range(200)]
    sybils = [contact(2_000 + n, path=("mallory", f"helper{n % 20}")) for n in range(200)]

    for target in (place_of(f"key{n}".encode()) for n in range(50)):
        keepers = nearest(target, [*honest, *devices, *sybils])
        assert sum(k in devices for k in keepers) <= 1
        assert sum(k in sybils for k in keepers) <= SPONSORED_MAX


def test_where_there_is_no_choice_anybody_will_do() -> None:
    devices = [contact(n, twin="mallory") for n in range(20)]

    assert len(nearest(KEY, devices)) == KEEPERS


def run(lookup: Lookup, network: dict[PeerId, list[Contact]], dead: frozenset[PeerId] = frozenset()) -> None:
    """Answers every question from `network`."""
    while asked := lookup.to_ask(0.0):
        for one in asked:
            if one.peer in dead:
                lookup.failed(one.peer)
            else:
                lookup.answered(one.peer, network.get(one.peer, []))
    assert lookup.is_over


def test_who_knows_all_asks_the_keepers_and_nobody_else() -> None:
    members = many(100)
    lookup = Lookup.begin(KEY, members, is_iterative=False)

    run(lookup, {m.peer: members for m in members})

    assert lookup.found() == nearest(KEY, members)
    assert (lookup.messages, lookup.hops) == (KEEPERS, 1)


def test_who_knows_a_part_gets_nearer_with_every_answer() -> None:
    members = sorted(many(300), key=lambda c: -(c.place ^ KEY))
    network = {m.peer: members[at + 1 : at + 40] for at, m in enumerate(members)}
    lookup = Lookup.begin(KEY, members[:1], is_iterative=True)

    run(lookup, network)

    assert lookup.found() == nearest(KEY, members)
    assert 1 < lookup.hops < 15


def test_the_dead_are_passed_over() -> None:
    members = many(100)
    dead = frozenset(m.peer for m in nearest(KEY, members)[:5])
    lookup = Lookup.begin(KEY, members, is_iterative=False)

    run(lookup, {}, dead)

    assert lookup.found() == nearest(KEY, [m for m in members if m.peer not in dead])


def test_few_are_asked_at_a_time_and_slow_ones_hold_up_nobody() -> None:
    lookup = Lookup.begin(KEY, many(100), is_iterative=False)

    first = lookup.to_ask(0.0)
    assert len(first) == ALPHA
    assert lookup.to_ask(SLOW_S / 2) == []
    assert len(lookup.to_ask(SLOW_S)) == ALPHA
    lookup.answered(first[0].peer)
    assert lookup.found() == first[:1], "a slow answer counts all the same"


def test_whoever_always_names_somebody_nearer_is_not_followed_for_ever() -> None:
    lookup = Lookup.begin(KEY, many(1), is_iterative=True)
    number = 0
    while asked := lookup.to_ask(0.0):
        for one in asked:
            number += 1
            place = KEY ^ (1 << (255 - number % 250))
            lookup.answered(one.peer, [Contact(PeerId(f"n{number}"), place, TwinId(f"n{number}"))])

    assert lookup.messages <= ASKED_MAX


def test_an_answer_of_somebody_who_was_not_asked_counts_nothing() -> None:
    lookup = Lookup.begin(KEY, many(20), is_iterative=True)

    lookup.answered(PeerId("mallory"), many(500))

    assert lookup.found() == []
    assert all(c in many(20) for c in lookup.to_ask(0.0))


def test_buckets_hold_all_that_is_near_and_a_bounded_part_of_what_is_far() -> None:
    members = many(3_000)
    own = members[0]
    buckets = Buckets(own.place)
    for member in members:
        buckets.add(member)

    assert len(buckets) < 14 * BUCKET_MAX
    near = sorted(members[1:], key=lambda c: c.place ^ own.place)[:BUCKET_MAX]
    assert set(near[: BUCKET_MAX // 2]) <= set(buckets.contacts())
    assert not buckets.has_room(own)
    full = next(m for m in members[1:] if m not in buckets.contacts())
    assert not buckets.add(full)
    same_distance = next(
        c for c in buckets.contacts() if (c.place ^ own.place).bit_length() == (full.place ^ own.place).bit_length()
    )
    buckets.remove(same_distance)
    assert buckets.add(full)
