"""Spoken codes on a real network: hosts of their own on one bridge, without a default route."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from croft.adapters.lan_discovery import CANDIDATES_MAX, _is_address, find_inviter
from croft.errors import NotFound
from support.joining import ALICE, BOB

sys.path.insert(0, str(Path(__file__).parent))

from namespaces import NamespaceHost, bridged

PUBLISH = """
import asyncio, sys
from croft.adapters.lan_discovery import publish_invitation

async def main():
    async with publish_invitation(int(sys.argv[1]), sys.argv[2], sys.argv[3:], 4433):
        print("published", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    print("over", flush=True)

asyncio.run(main())
"""
FIND = """
import asyncio, sys
from croft.adapters.lan_discovery import find_inviter
from croft.errors import NotFound

try:
    for each in asyncio.run(find_inviter(int(sys.argv[1]), float(sys.argv[2]))):
        print(each.peer, *each.addresses)
except NotFound as error:
    print(error)
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

        none = find(bob, 8, 1.0)
        assert "nobody on this network has an open code of number 8" in none[0]
        assert "hint: Use the long code" in none[1]

        published.communicate("\n")
        assert published.returncode == 0
        assert [line.split()[0] for line in find(bob, 7, 3.0)] == [BOB.peer]


def test_a_host_alone_is_told_so_in_time() -> None:
    begun = time.monotonic()
    with pytest.raises(NotFound) as caught:
        asyncio.run(find_inviter(98, 0.5))
    assert time.monotonic() - begun < 3.0
    assert "croft:" in caught.value.remedy


def test_what_is_no_address_is_not_passed_on() -> None:
    good = ["192.0.2.1:1", "[2001:db8::1]:65535", "[fe80::1%eth0]:5"]
    bad = ["", "example.org:80", "192.0.2.1", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:²", "a b:1"]

    assert [text for text in good + bad if _is_address(text)] == good
    assert CANDIDATES_MAX >= 2
