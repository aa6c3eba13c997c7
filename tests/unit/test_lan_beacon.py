"""Beacons: understood by members, and noise to everybody else."""

from __future__ import annotations

import itertools

import pytest

from croft.model.ids import CommunityId, PeerId
from croft.overlay.lan_beacon import (
    COMMUNITIES_MAX,
    EARLIER_KEYS_MAX,
    FORGET_S,
    NEAR_MAX,
    ROTATE_S,
    SEALED_BYTES,
    SEED_BYTES,
    Announce,
    Beacon,
    Dial,
    Heard,
    LanBeacons,
    Tick,
    beacon_keys,
    key_of,
    seal,
    unseal,
)
from support.joining import ALICE, ALICES_CHAIN, BOB, COMMUNITY, seed

[KEY], [OTHER_KEY] = beacon_keys(ALICES_CHAIN[0]), beacon_keys(b"another community")
ADDRESSES = ("192.168.1.20:4433", "[fd00::1]:4433")
CHANCE = b"".join(seed(number) for number in range(10))[: COMMUNITIES_MAX * SEED_BYTES]


def beacon(key: bytes = KEY, peer: PeerId = ALICE.peer, number: int = 1) -> Beacon:
    return seal(key, peer, ADDRESSES, seed(number)[:SEED_BYTES])


def tick(
    now: float,
    *,
    addresses: tuple[str, ...] = ADDRESSES,
    number: int = 0,
    keys: tuple[bytes, ...] = (KEY,),
) -> Tick:
    chance = (CHANCE * 2)[number : number + len(CHANCE)]
    return Tick({COMMUNITY: keys}, addresses, now, chance)


def test_a_member_understands_it() -> None:
    assert unseal([OTHER_KEY, KEY], beacon()) == (ALICE.peer, ADDRESSES)


def test_a_stranger_learns_nothing_from_it() -> None:
    one, two = beacon(number=1), beacon(number=2)

    assert unseal([OTHER_KEY], one) is None
    assert key_of(beacon_keys(bytes.fromhex(COMMUNITY)), one.name) is None, "the community's id is no key"
    seen = one.name.encode() + one.sealed
    for told in (ALICE.peer.encode(), bytes.fromhex(ALICE.peer), COMMUNITY.encode(), *map(str.encode, ADDRESSES)):
        assert told not in seen
    assert one.name != two.name and one.sealed[:64] != two.sealed[:64]


def test_all_are_of_one_size() -> None:
    sizes = {len(seal(KEY, ALICE.peer, addresses, bytes(SEED_BYTES)).sealed) for addresses in ((), ADDRESSES * 9)}

    assert sizes == {SEALED_BYTES}


def test_whatever_is_changed_on_the_way_is_not_understood() -> None:
    good = beacon()

    for at in range(0, SEALED_BYTES, 17):
        sealed = good.sealed[:at] + bytes([good.sealed[at] ^ 1]) + good.sealed[at + 1 :]
        assert unseal([KEY], Beacon(good.name, sealed)) is None
    assert unseal([KEY], Beacon(beacon(number=2).name, good.sealed)) is None
    assert unseal([KEY], Beacon(good.name, good.sealed + b"x")) is None
    for name in ("", "zz" * 16, good.name[:-2], good.name + "00"):
        assert unseal([KEY], Beacon(name, good.sealed)) is None


def test_it_is_shown_anew_when_addresses_change_and_when_it_is_old() -> None:
    core = LanBeacons(ALICE.peer)

    [first] = core.handle(tick(0.0))
    assert core.handle(tick(1.0)) == []
    [moved] = core.handle(tick(2.0, addresses=("10.0.0.1:1",), number=1))
    [rotated] = core.handle(tick(2.0 + ROTATE_S, addresses=("10.0.0.1:1",), number=2))

    shown = [effect.beacons[0].name for effect in (first, moved, rotated) if isinstance(effect, Announce)]
    assert len(set(shown)) == 3
    assert core.handle(tick(3.0 + ROTATE_S, addresses=(), number=3)) == [Announce(())]


def test_who_is_heard_is_dialled_and_again_with_longer_pauses_until_forgotten() -> None:
    core = LanBeacons(BOB.peer)
    core.handle(tick(0.0))

    assert core.is_ours(beacon().name)
    assert core.handle(Heard(beacon(), 1.0)) == [Dial(ALICE.peer, ADDRESSES)]
    tried = [
        now
        for now in range(1, int(FORGET_S) + 200)
        for effect in core.handle(tick(float(now)))
        if isinstance(effect, Dial)
    ]
    assert tried[0] == 2
    assert max(later - sooner for sooner, later in itertools.pairwise(tried)) <= 61
    assert tried[-1] <= FORGET_S + 1


def test_own_beacons_and_those_of_strangers_lead_nowhere() -> None:
    core = LanBeacons(ALICE.peer)
    core.handle(tick(0.0))

    assert core.handle(Heard(beacon(), 1.0)) == []
    assert core.handle(Heard(beacon(OTHER_KEY, BOB.peer), 1.0)) == []
    assert not core.is_ours(beacon(OTHER_KEY).name)


def test_the_list_of_those_heard_is_bounded() -> None:
    core = LanBeacons(ALICE.peer)
    core.handle(tick(0.0))

    dialled = [core.handle(Heard(beacon(peer=PeerId(f"{number:064x}")), 1.0)) for number in range(1, NEAR_MAX + 10)]

    assert sum(map(len, dialled)) == NEAR_MAX


@pytest.mark.parametrize("count", [1, COMMUNITIES_MAX])
def test_each_community_sees_a_beacon_of_its_own(count: int) -> None:
    keys = {CommunityId(f"{number:064x}"): beacon_keys(bytes([number])) for number in range(count)}

    [shown] = LanBeacons(ALICE.peer).handle(Tick(keys, ADDRESSES, 0.0, CHANCE))

    assert isinstance(shown, Announce)
    newest = [some[0] for some in keys.values()]
    assert [key_of(newest, one.name) for one in shown.beacons] == newest


def test_a_revoked_device_understands_nothing_that_is_made_after_its_revocation() -> None:
    before, after = beacon_keys(ALICES_CHAIN[0], [b"first"]), beacon_keys(ALICES_CHAIN[0], [b"first", b"second"])
    revoked = LanBeacons(BOB.peer)
    revoked.handle(tick(0.0, keys=before))

    [shown] = LanBeacons(ALICE.peer).handle(tick(0.0, keys=after))

    assert isinstance(shown, Announce)
    assert not revoked.is_ours(shown.beacons[0].name)
    assert revoked.handle(Heard(shown.beacons[0], 1.0)) == []


def test_a_member_that_has_not_heard_of_the_newest_revocations_is_understood_and_so_hears_of_them() -> None:
    known = [bytes([number]) for number in range(EARLIER_KEYS_MAX + 2)]
    core = LanBeacons(BOB.peer)
    core.handle(tick(0.0, keys=beacon_keys(ALICES_CHAIN[0], known)))

    understood = [
        behind
        for behind in range(len(known) + 1)
        if core.is_ours(beacon(beacon_keys(ALICES_CHAIN[0], known[: len(known) - behind])[0]).name)
    ]

    assert understood == list(range(EARLIER_KEYS_MAX + 1))
