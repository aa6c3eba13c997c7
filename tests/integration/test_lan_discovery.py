"""Spoken codes on a real network: hosts of their own on one bridge, without a default route."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

from croft.adapters.lan_discovery import LanDiscovery, is_socket_address
from croft.ports import Discovery
from croft.sim.discovery import SimulatedDiscovery, SimulatedLan
from support.joining import ALICE, BOB

sys.path.insert(0, str(Path(__file__).parent))

from namespaces import NamespaceHost, bridged

PUBLISH = """
import asyncio, sys
from croft.adapters.lan_discovery import LanDiscovery

async def main():
    lan = LanDiscovery()
    await lan.publish(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
    print("published", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await lan.withdraw(int(sys.argv[1]))
    print("withdrawn", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await lan.close()

asyncio.run(main())
"""
FIND = """
import asyncio, sys
from croft.adapters.lan_discovery import LanDiscovery

for peer, addresses in asyncio.run(LanDiscovery().find(int(sys.argv[1]), float(sys.argv[2]))):
    print(peer, *addresses)
"""


def publish(host: NamespaceHost, nameplate: int, peer: str, *addresses: str) -> subprocess.Popen[str]:
    process = host.start(sys.executable, "-c", PUBLISH, str(nameplate), peer, *addresses)
    assert process.stdout is not None
    assert process.stdout.readline() == "published\n"
    return process


def find(host: NamespaceHost, nameplate: int, timeout_s: float) -> list[str]:
    return host.run(sys.executable, "-c", FIND, str(nameplate), str(timeout_s)).splitlines()


def test_a_code_is_found_from_another_host_until_it_is_over() -> None:
    with bridged(3) as lab:
        alice, bob, carol = lab.hosts
        published = publish(alice, 7, ALICE.peer, f"{alice.address}:4433", "[fe80::1]:4433")
        begun = time.monotonic()

        assert find(bob, 7, 10.0) == [f"{ALICE.peer} {alice.address}:4433 [fe80::1]:4433"]
        assert time.monotonic() - begun < 9.0

        publish(carol, 7, BOB.peer, f"{carol.address}:1")
        assert {line.split()[0] for line in find(bob, 7, 10.0)} == {ALICE.peer, BOB.peer}

        assert find(bob, 8, 1.0) == []

        assert published.stdin is not None
        assert published.stdout is not None
        published.stdin.write("\n")
        published.stdin.flush()
        assert published.stdout.readline() == "withdrawn\n"
        assert [line.split()[0] for line in find(bob, 7, 3.0)] == [BOB.peer]

        published.communicate("\n")
        assert published.returncode == 0


def test_nobody_there_is_told_in_time() -> None:
    begun = time.monotonic()
    assert asyncio.run(LanDiscovery().find(98, 0.5)) == []
    assert time.monotonic() - begun < 3.0


def test_one_peer_can_announce_several_codes_and_the_latest_addresses() -> None:
    async def scenario() -> None:
        lan, other = LanDiscovery(), LanDiscovery()
        try:
            await lan.publish(91, ALICE.peer, ["127.0.0.1:1"])
            await lan.publish(92, ALICE.peer, ["127.0.0.1:2"])
            await lan.publish(91, ALICE.peer, ["127.0.0.1:3", "nonsense"])

            assert await other.find(91, 5.0) == [(ALICE.peer, ("127.0.0.1:3",))]
            assert await other.find(92, 5.0) == [(ALICE.peer, ("127.0.0.1:2",))]
        finally:
            await lan.close()
            await lan.close()

    asyncio.run(scenario())


def test_what_is_no_address_is_not_passed_on() -> None:
    good = ["192.0.2.1:1", "[2001:db8::1]:65535", "[fe80::1%eth0]:5"]
    bad = ["", "example.org:80", "192.0.2.1", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:²", "a b:1"]

    assert [text for text in good + bad if is_socket_address(text)] == good


# --- beacons: the real network and the simulated one pass the same tests ----------------------------------------------


def discoveries(kind: str) -> list[Discovery]:
    lan = SimulatedLan()
    return [LanDiscovery() if kind == "real" else SimulatedDiscovery(SimulatedLan(), lan) for _ in range(2)]


@pytest.mark.parametrize("kind", ["real", "simulated"])
def test_beacons_are_heard_whole_and_only_those_wanted(kind: str) -> None:
    async def scenario() -> None:
        one, two = discoveries(kind)
        wanted, other = secrets.token_hex(16), secrets.token_hex(16)
        sealed = secrets.token_bytes(540)
        try:
            async with asyncio.timeout(20):
                await one.announce([(other, b"noise"), (wanted, sealed)])
                assert await two.hear(lambda name: name == wanted) == (wanted, sealed)

                later = secrets.token_hex(16)
                hearing = asyncio.create_task(two.hear(lambda name: name == later))
                await one.announce([(later, sealed[::-1])])
                assert await hearing == (later, sealed[::-1])
        finally:
            await one.close()
            await two.close()
            await two.close()

    asyncio.run(scenario())


def test_a_peer_of_loopback_alone_shows_and_hears_nothing() -> None:
    async def scenario() -> None:
        quiet = LanDiscovery(shows_beacons=False)
        await quiet.announce([(secrets.token_hex(16), b"sealed")])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await quiet.hear(lambda _: True)
        assert quiet._network is None
        await quiet.close()

    asyncio.run(scenario())
