"""Rows of the feature table about members that lie: as a relay, and as an observer of addresses. Real daemons."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from namespaces import NamespaceHost, Nat, behind, bridged
from test_rows_paths import DIRECT_S_MAX, Net, link, nat_of, way

from support import peers
from support.peers import SOURCE, RealPeer, until

LYING = Path(__file__).parents[1] / "support" / "lying_peer"
LIE_PORT = 4_242
LINES = 40_000
PACKETS_TO_VICTIM_MAX = 200
"""Two members that try an address which one liar names: bursts of a few packets per dial, and no connection."""


class Liars(Net):
    """The members `cleo`, who is honest, and `dora`, who offers the one relay and lies; the last host is nobody."""

    @property
    def routers(self) -> Sequence[NamespaceHost]:
        return self.lab.hosts[2:4]

    @property
    def lie(self) -> str:
        return f"{self.lab[4].address}:{LIE_PORT}"


@pytest.fixture(scope="module")
def net() -> Iterator[Liars]:
    with bridged(5) as lab, peers.homes() as base:
        cleo = peers.make(base, "cleo", lab[0]).start()
        twisted = {"PYTHONPATH": f"{LYING}{os.pathsep}{SOURCE}", "LIE": f"{lab[4].address}:{LIE_PORT}"}
        dora = peers.make(base, "dora", lab[1], environment=twisted).start()
        dora.api.join(cleo.api.invite(is_spoken=False).line)
        peers.await_links([cleo, dora])
        dora.ok("offer", "relay", "800Mbit")
        until(lambda: cleo.api.net().relays, "the offer has spread")
        yield Liars(lab, base, cleo, dora)


def outside(peer: RealPeer) -> list[str]:
    shown = peer.api.net()
    return [*shown.outside, *shown.addresses]


def goes_to(port: int, frame: bytes) -> bool:
    """Whether an Ethernet frame carries an IPv4 packet of UDP to that port."""
    header = 14 + 4 * (frame[14] & 15) if frame[12:14] == b"\x08\x00" else 0
    return (
        bool(header)
        and frame[23] == socket.IPPROTO_UDP
        and int.from_bytes(frame[header + 2 : header + 4], "big") == port
    )


def test_what_a_relay_delays_reorders_changes_and_forges_does_no_harm_but_to_its_speed(net: Liars) -> None:
    """C3, I4: a copy by a relay that lies: every byte once, in order; nobody is mistaken."""
    with (
        behind(net.routers[0], Nat.SYMMETRIC) as left,
        behind(net.routers[1], Nat.SYMMETRIC) as right,
        net.pair(left[0], right[0]) as (anna, bert),
    ):
        until(lambda: link(anna, bert) == link(bert, anna) == "relayed", "the way is relayed", DIRECT_S_MAX)
        assert way(anna, bert).relay_by == "dora"
        numbers = anna.ok("run", "--on", bert.name, "--", "seq", str(LINES))
        known = {peer.name for peer in anna.api.peers()}

    assert numbers == "".join(f"{number}\n" for number in range(1, LINES + 1))
    assert known == {"cleo", "dora", anna.name, bert.name}


def test_an_observer_that_lies_is_not_believed_and_keeps_nobody_from_a_direct_way(net: Liars) -> None:
    """C2, I4: one of two observers lies about where it sees others: its address is not told, the way is direct."""
    with (
        net.lab.capture(net.lab[4]) as seen,
        behind(net.routers[0]) as left,
        behind(net.routers[1]) as right,
        net.pair(left[0], right[0]) as (anna, bert),
    ):
        until(lambda: link(anna, bert) == link(bert, anna) == "direct", "the way is direct", DIRECT_S_MAX)
        told = [address for peer in (anna, bert, net.cleo) for address in outside(peer)]
        nats = nat_of(anna), nat_of(bert)
        heard = anna.log()

    assert f"others see this peer at {net.lie}" in heard, "the lie was heard, and tried"
    assert told and net.lie not in told
    assert all(nat in ("unknown", Nat.PORT_RESTRICTED.value, Nat.SYMMETRIC.value) for nat in nats)
    assert sum(goes_to(LIE_PORT, frame) for frame in seen.each_frame()) <= PACKETS_TO_VICTIM_MAX
