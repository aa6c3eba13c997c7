"""A thousand strangers at the door: what it costs a peer and its members."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespaces import Lab, bridged

import croft
from support import peers
from support.peers import RealPeer, until

STRANGERS = 1000
AT_ONCE = 400
MEMORY_BYTES_MAX = 50 << 20
SLOWDOWN_MAX = 2.0
FLOODER = Path(__file__).parents[1] / "support" / "strangers.py"


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Two members' machines, and the strangers'."""
    with bridged(3) as made:
        yield made


def resident_bytes(peer: RealPeer) -> int:
    return int(Path(f"/proc/{peer.process}/statm").read_text().split()[1]) * 4096


def nothing(number: int) -> int:
    return number


def latencies_s(grid: croft.Grid, count: int) -> list[float]:
    taken = []
    for number in range(count):
        began = time.monotonic()
        assert list(grid.map(nothing, [number], on=["ada"])) == [number]
        taken.append(time.monotonic() - began)
    return taken


def test_a_thousand_strangers_cost_little_memory_and_members_little_time(lab: Lab) -> None:
    """I3: 1,000 identities from one machine dial a peer: none comes in, memory grows < 50 MB, latency < 2×."""
    with peers.homes() as base:
        ada, bob = peers.community(base, ["ada", "bob"], lab.hosts[:2])
        status = ada.api.status()
        addresses = [address for address in status.addresses if address.startswith(lab[0].address)]
        with bob.grid() as grid:
            latencies_s(grid, 20)
            before_s, before_bytes = latencies_s(grid, 100), resident_bytes(ada)
            flood = lab[2].start(
                *(sys.executable, str(FLOODER), status.peer, str(STRANGERS), str(AT_ONCE), *addresses),
                environment={"PYTHONPATH": str(peers.SOURCE)},
            )
            during_s: list[float] = []
            peak_bytes = before_bytes
            while flood.poll() is None:
                during_s += latencies_s(grid, 10)
                peak_bytes = max(peak_bytes, resident_bytes(ada))
            said, complaint = flood.communicate(timeout=30)
        ends = json.loads(said)
        until(lambda: peers.linked(ada) == {"bob"}, "ada is linked to bob alone")

    assert sum(ends.values()) == STRANGERS, complaint
    assert "LET IN" not in ends
    assert ends["no connection"] > STRANGERS / 2, "most never get as far as a handshake"
    assert peak_bytes - before_bytes < MEMORY_BYTES_MAX
    assert statistics.median(during_s) < SLOWDOWN_MAX * statistics.median(before_s)
