"""Values of tasks go from peer to peer: the submitter receives what it asks for, and nothing is lost with a keeper."""

from __future__ import annotations

import concurrent.futures
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import croft
from support import peers
from support.moved import settled_bytes
from support.peers import RealPeer, until

VALUE_BYTES = 8_000_000
MOVED_BYTES_MAX = 1_000_000
ROUNDS = 4
COPIES_MAX = 2.2


@dataclass
class Sealed:
    """Something whose class no other peer knows."""

    data: Any


@pytest.fixture
def trio() -> Iterator[list[RealPeer]]:
    """Ada submits, and lends nothing."""
    with peers.homes() as base:
        three = peers.start(base, ["bob", "cyd"])
        ada = peers.make(base, "ada", settings={"lend.cpus": "0"}).start()
        for other in three:
            other.api.join(ada.api.invite(is_spoken=False).line)
        peers.await_links([ada, *three])
        yield [ada, *three]


def disk_bytes(peer: RealPeer) -> int:
    """What a peer's chunks take on its disk."""
    return sum(path.stat().st_blocks * 512 for path in (peer.home / "chunks").glob("*.seg"))


def make(seed: int) -> Any:
    return np.full(VALUE_BYTES // 8, seed, dtype=np.int64)


def plus_one(array: Any) -> Any:
    return array + 1


def first(array: Any) -> int:
    return int(array[0])


def add(one: Any, other: Any) -> Any:
    return one + other


def test_values_go_from_peer_to_peer_and_the_submitter_gets_what_it_asks_for(trio: list[RealPeer]) -> None:
    ada = trio[0]
    on_bob, on_cyd = croft.task(on="bob")(make), croft.task(on="cyd")(plus_one)
    with ada.grid() as grid:
        assert grid.submit(first, grid.submit(make, 1)).result() == 1
        before = settled_bytes(ada)

        chain = grid.submit(on_bob, 0)
        for step in range(ROUNDS):
            chain = grid.submit(on_cyd if step % 2 == 0 else plus_one, chain)
        assert grid.submit(first, chain).result() == ROUNDS
        both = [grid.submit(on_bob, 20), grid.submit(on_cyd, grid.submit(on_bob, 21))]
        assert grid.submit(first, grid.submit(add, *both)).result() == 42
        total = grid.map(make, range(20)).reduce(add)

        assert total[0] == sum(range(20)) and total.nbytes == VALUE_BYTES
        moved = settled_bytes(ada) - before
        # What is late at the end may be sent by two; all that was made is ten times as much.
        assert VALUE_BYTES < moved < VALUE_BYTES * COPIES_MAX + MOVED_BYTES_MAX, f"{moved:,} bytes passed the submitter"


def test_a_value_is_made_again_when_the_peer_that_keeps_it_is_killed(trio: list[RealPeer]) -> None:
    ada, bob, cyd = trio
    with ada.grid() as grid:
        fetched, kept = grid.submit(make, 5), grid.submit(plus_one, grid.submit(make, 7))
        concurrent.futures.wait([fetched, kept])
        assert fetched.result()[0] == 5

        # Both keepers die, one after the other; whoever is left makes it again.
        bob.kill()
        first_again = grid.submit(first, kept)
        assert first_again.result(60) == 8
        bob.start()
        peers.await_links(trio)
        concurrent.futures.wait([kept])
        cyd.kill()

        assert grid.submit(first, grid.submit(plus_one, kept)).result(60) == 9
        assert kept.result(60)[0] == 8
        assert fetched.result()[0] == 5


def test_what_nobody_stands_for_any_more_is_dropped_where_it_was_kept(trio: list[RealPeer]) -> None:
    ada, *lenders = trio
    empty = sum(disk_bytes(peer) for peer in lenders)
    with ada.grid() as grid:
        value = grid.submit(make, 1)
        assert grid.submit(first, value).result() == 1
        assert sum(disk_bytes(peer) for peer in lenders) >= empty + VALUE_BYTES

        del value
        gc.collect()
        until(lambda: sum(disk_bytes(peer) for peer in lenders) < empty + VALUE_BYTES // 2, "the value is dropped")


def test_a_value_of_a_class_that_only_the_program_has_reaches_the_next_task_all_the_same(trio: list[RealPeer]) -> None:
    def seal(size: int) -> Any:
        return Sealed(np.ones(size))

    def total(sealed: Any) -> float:
        return float(sealed.data.sum())

    with trio[0].grid() as grid:
        sealed = grid.submit(seal, 500_000)

        assert grid.submit(total, sealed).result(60) == 500_000
        assert grid.submit(total, sealed).result(60) == 500_000
