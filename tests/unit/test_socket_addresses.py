"""Addresses: strict to read, in order of promise."""

from __future__ import annotations

import pytest

from croft.adapters import dialling
from croft.adapters.socket_addresses import SocketAddress, best_first
from croft.errors import Unreachable
from croft.model.ids import PeerId

ME, THEM = PeerId("a" * 64), PeerId("b" * 64)


@pytest.mark.parametrize("text", ["1.2.3.4:5", "[::1]:5", "[2001:db8::1]:65535", "0.0.0.0:0"])
def test_an_address_reads_back_as_it_is_written(text: str) -> None:
    assert str(SocketAddress.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "1.2.3.4", "1.2.3.4:", "1.2.3.4:65536", "1.2.3.4:-1", "1.2.3.4:٣", "01.2.3.4:5", "1.2.3.4:000005"),
        *("::1:5", "[1.2.3.4]:5", "[fe80::1%eth0]:5", "host:5"),
    ],
)
def test_anything_else_is_no_address(text: str) -> None:
    assert SocketAddress.parse(text) is None


def test_the_local_network_comes_first_and_loopback_last() -> None:
    texts = ["127.0.0.1:7", "8.8.8.8:7", "[2606:4700::1]:7", "192.168.1.2:7", "10.0.0.1:7", "10.0.0.1:7"]
    parsed = [address for text in texts if (address := SocketAddress.parse(text)) is not None]
    assert [str(address) for address in best_first(parsed)] == [
        "10.0.0.1:7",
        "192.168.1.2:7",
        "8.8.8.8:7",
        "[2606:4700::1]:7",
        "127.0.0.1:7",
    ]


def test_a_dial_tries_a_bounded_number_of_usable_addresses_that_are_not_its_own() -> None:
    addresses = ["10.0.0.9:1", "10.0.0.1:0", "224.0.0.1:5", *(f"10.1.0.{number}:5" for number in range(1, 200))]
    found = dialling.candidates(THEM, addresses, own_id=ME, own_addresses=["10.0.0.9:1"], is_closed=False)
    assert len(found) == dialling.ADDRESSES_MAX - 3
    assert "10.0.0.9:1" not in map(str, found)


def test_a_dial_without_a_chance_says_why() -> None:
    for peer, addresses, is_closed, why in (
        (THEM, [], False, "no address"),
        (THEM, ["10.0.0.1:5"], True, "shutting down"),
        (ME, ["10.0.0.1:5"], False, "not another peer"),
        (PeerId("nonsense"), ["10.0.0.1:5"], False, "not another peer"),
    ):
        with pytest.raises(Unreachable, match=why):
            dialling.candidates(peer, addresses, own_id=ME, own_addresses=[], is_closed=is_closed)
