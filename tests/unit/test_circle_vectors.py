"""What goes over the wire about circles, and by a box's doorway, stays as it was: golden bytes."""

from __future__ import annotations

import json
import pathlib

import pytest

from croft.compute.circle_messages import (
    CircleRoster,
    Connect,
    Connected,
    Incoming,
    Listen,
    MemberStreamOpened,
    NotConnected,
    OpenMemberStream,
)
from croft.compute.messages import OpenCommand, Opened
from croft.wire.codec import Message, decode, encode

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "circles.json"
MESSAGES: dict[str, Message] = {
    "open a command": OpenCommand(1.0, 2, 3, "job", 4.0, 5.0, ("camera",), 1, "circle", "member"),
    "opened": Opened(1, [], has_streams=True),
    "open a stream": OpenMemberStream("owner", "circle", "one", "two"),
    "stream opened": MemberStreamOpened(),
    "roster": CircleRoster({"home": "a", "one": "b"}),
    "listen": Listen(),
    "connect": Connect(7, "two"),
    "connected": Connected(7),
    "not connected": NotConnected(7, "refused", "no", "ask"),
    "incoming": Incoming("one"),
}


def test_every_message_has_golden_bytes() -> None:
    assert list(json.loads(VECTORS.read_text())) == list(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_written_and_read_as_ever(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(MESSAGES[name]) == golden
    assert encode(decode(golden, type(MESSAGES[name]), step="test")) == golden
