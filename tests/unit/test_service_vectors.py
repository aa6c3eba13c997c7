"""What goes over the wire, and onto disk for others to read, stays as it was: golden bytes."""

from __future__ import annotations

import json
import pathlib

import pytest

from croft.identity.revocations import DeviceRevocation
from croft.overlay.address_book import Note, OwnContacts
from croft.overlay.devices import OwnMemberships
from croft.overlay.join_messages import DeviceAdmitted
from croft.overlay.lan_beacon import BeaconContent
from croft.overlay.tunnel_messages import OpenTunnel, TunnelOpened, TunnelRefused
from croft.wire.codec import Message, decode, encode

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "services.json"
MESSAGES: dict[str, Message] = {
    "open tunnel": OpenTunnel("wiki", "tcp"),
    "ask for a tunnel": OpenTunnel("53", "udp", only_ask=True),
    "tunnel opened": TunnelOpened("wiki"),
    "tunnel refused": TunnelRefused("refused", "no", "ask"),
    "device admitted": DeviceAdmitted(
        b"c", b"i", [("community", "name", [b"grant"], [b"member"])], [("t", "p", "low", True)]
    ),
    "own memberships": OwnMemberships([("community", "name", [b"grant"], b"member")], [1e9], [("other", 1e9)]),
    "own contacts": OwnContacts([Note("t", "p", "low", True, 1.5, 2.5)]),
    "beacon content": BeaconContent(bytes(32), ["192.0.2.1:7117"]),
    "device revocation": DeviceRevocation("peer", "community", [b"grant"], 1.5),
}


def test_every_message_has_golden_bytes() -> None:
    assert list(json.loads(VECTORS.read_text())) == list(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_written_and_read_as_ever(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(MESSAGES[name]) == golden
    assert decode(golden, type(MESSAGES[name]), step="test") == MESSAGES[name]
