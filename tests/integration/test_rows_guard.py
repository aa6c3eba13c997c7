"""Rows of the feature table about security, on machines of their own: strangers at the door, listeners on the wire."""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from namespaces import Lab, NamespaceHost, bridged

import croft
from croft.overlay.links import DIAL_TIMEOUT_S
from support import peers
from support.peers import RealPeer, until
from support.quic_handshake import SUPPORTED_VERSIONS, TLS_1_3, datagrams, handshakes, is_early_data

STRANGERS = 1000
AT_ONCE = 400
FRAME_BYTES_MAX = 1514
MEMORY_BYTES_MAX = 50 << 20
DIAL_S_MAX = DIAL_TIMEOUT_S + 1.0
SLOWDOWN_MAX = 2.0
FLOODER = Path(__file__).parents[1] / "support" / "strangers.py"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two members' machines, and the strangers'."""
    with bridged(3) as made:
        yield made


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
            before_s, before_bytes = latencies_s(grid, 100), ada.resident_bytes
            flood = lab[2].start(
                *(sys.executable, str(FLOODER), status.peer, str(STRANGERS), str(AT_ONCE), *addresses),
                environment={"PYTHONPATH": str(peers.SOURCE)},
            )
            during_s: list[float] = []
            peak_bytes = before_bytes
            while flood.poll() is None:
                during_s += latencies_s(grid, 10)
                peak_bytes = max(peak_bytes, ada.resident_bytes)
            said, complaint = flood.communicate(timeout=30)
        ends = json.loads(said)
        until(lambda: peers.linked(ada) == {"bob"}, "ada is linked to bob alone")

    assert sum(ends.values()) == STRANGERS, complaint
    assert "LET IN" not in ends
    assert ends["no connection"] > STRANGERS / 2, "most never get as far as a handshake"
    assert peak_bytes - before_bytes < MEMORY_BYTES_MAX
    assert statistics.median(during_s) < SLOWDOWN_MAX * statistics.median(before_s)


# --- I1: forward-secret, replay-safe ---------------------------------------------------------------------------------


def x25519_of(seed: bytes) -> bytes:
    """The X25519 public key that belongs to an Ed25519 seed (RFC 8032, 5.1.5; RFC 7748)."""
    scalar = hashlib.sha512(seed).digest()[:32]
    return X25519PrivateKey.from_private_bytes(scalar).public_key().public_bytes_raw()


def test_recorded_traffic_gives_nothing_to_whoever_steals_the_keys_later(lab: Lab) -> None:
    """I1: every connection agrees on its keys by fresh key shares; long-term keys only sign; no early data."""
    marker = secrets.token_hex(16)
    with peers.homes() as base, lab.capture(lab[0]) as seen:
        ada, bob = peers.community(base, ["ada", "bob"], lab.hosts[:2])
        for _ in range(2):
            bob.stop()
            bob.start()
            peers.await_links([ada, bob])
        assert ada.ok("run", "--on", "bob", "--", "echo", marker).strip() == marker
        seeds = [(peer.files.keys / name).read_bytes() for peer in (ada, bob) for name in ("device", "twin")]
        ada.stop()
        bob.stop()

    met = handshakes(seen.each_frame())
    assert len(met) >= 3, "joining, and a connection after each of two restarts"
    shares = [share for each in met for hello in (each.client, each.server) if hello for share in hello.key_shares]
    assert len(set(shares)) == len(shares) >= 2 * len(met), "no share is used twice"
    for each in met:
        assert each.client is not None and each.server is not None
        assert each.server.extensions[SUPPORTED_VERSIONS] == TLS_1_3
        # A resumed session has a shared secret besides; the fresh shares take part all the same (psk_dhe_ke).
        assert each.server.key_shares, "an ephemeral key takes part on the server's side"
    assert not any(is_early_data(payload) for _, _, payload in datagrams(seen.each_frame())), "it could be replayed"
    stolen = [seed[at : at + 32] for seed in seeds for at in range(len(seed) - 31)]
    derived = {x25519_of(seed) for seed in stolen} | {
        Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw() for seed in stolen
    }
    assert not any(key in share for key in derived for share in shares), "no long-term key agrees on secrets"
    assert marker.encode() not in seen


def links_made(peer: RealPeer) -> int:
    """How many links it has had, once no dial is under way: of two dials at once, one link replaces the other."""
    made = (0, 0.0)

    def is_steady() -> bool:
        nonlocal made
        count = peer.log().count("is up")
        if count != made[0]:
            made = (count, time.monotonic())
        return time.monotonic() - made[1] > DIAL_S_MAX

    until(is_steady, f"no dial of {peer.name} is under way")
    return made[0]


def test_frames_that_are_sent_again_change_nothing(lab: Lab) -> None:
    """I1: whoever records all that bob sends to ada and sends it once more, from bob's own address, gets nothing."""
    with peers.homes() as base:
        ada, bob = peers.community(base, ["ada", "bob"], lab.hosts[:2])
        with lab.capture(lab[0]) as seen:
            bob.stop()
            bob.start()
            peers.await_links([ada, bob])
            with bob.grid() as grid:
                assert list(grid.map(nothing, range(20), on=["ada"])) == list(range(20))
        target = socket.inet_aton(lab[0].address)
        # What the kernel hands over in one piece larger than a frame cannot be sent as one.
        recorded = [
            frame
            for frame in seen.each_frame()
            if frame[12:14] == b"\x08\x00" and frame[30:34] == target and len(frame) <= FRAME_BYTES_MAX
        ]
        assert len(recorded) > 20
        links, members = links_made(ada), [peer.peer for peer in ada.api.peers()]
        since = bob.api.status().started_at

        lab[2].run(sys.executable, "-c", REPLAY, *(frame.hex() for frame in recorded[:400]))
        with bob.grid() as grid:
            assert list(grid.map(nothing, range(20), on=["ada"])) == list(range(20)), "the link lives on"

        assert links_made(ada) == links, "no link came of it"
        assert [peer.peer for peer in ada.api.peers()] == members
        until(ada.is_idle, "ada is done with all that came once")
        assert bob.api.status().started_at == since


REPLAY = """
import socket, sys, time
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("eth0", 0))
for text in sys.argv[1:] * 2:
    wire.send(bytes.fromhex(text))
    time.sleep(0.001)
"""


# --- I5: a small surface ---------------------------------------------------------------------------------------------

MDNS_PORT = 5353


def test_a_peer_listens_at_its_udp_port_and_answers_mdns_and_nothing_else(lab: Lab) -> None:
    """I5: no TCP; one UDP port, its twin over IPv6 that iroh opens, and multicast DNS, which `lan = off` closes."""
    with peers.homes() as base:
        ada, bob = peers.community(base, ["ada", "bob"], lab.hosts[:2])
        port = int(next(at for at in ada.api.status().addresses if at.startswith(lab[0].address)).rpartition(":")[2])
        with_lan = listening(lab[0], ada)
        ada.stop()
        ada.start("--set", "lan=off")
        peers.await_links([ada, bob])
        without_lan = listening(lab[0], ada)

    for found in (with_lan, without_lan):
        assert {kind for kind, _, _ in found} == {"udp"}
        assert ("udp", "0.0.0.0", port) in found
    assert {at for _, _, at in with_lan if at not in (port, MDNS_PORT)} != set(), "iroh's socket over IPv6"
    others = [(host, at) for _, host, at in without_lan if at != port]
    assert len(others) == 1 and others[0][0] in ("*", "[::]"), "over IPv6, and nothing else"


def listening(host: NamespaceHost, peer: RealPeer) -> set[tuple[str, str, int]]:
    """Protocol, address and port of every socket at which a peer can be reached from outside."""
    found = set()
    for line in host.run("ss", "-H", "-lntup").splitlines():
        fields = line.split()
        if f"pid={peer.process}," in line:
            address, _, port = fields[4].rpartition(":")
            found.add((fields[0], address, int(port)))
    return found
