"""What the overlay says over the wire stays as it was: golden bytes."""

from __future__ import annotations

import json
import pathlib

import pytest

from croft.overlay.lookup_messages import Find, Found, Keep, Kept, Provision
from croft.overlay.messages import Hello, NeighbourWord, Presence, ProbeAnswer, ProbeWanted, Suspicion
from croft.overlay.record_messages import Branches, Have, Push, Roots, Wanted
from croft.wire.codec import Message, decode, encode

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "overlay.json"
MESSAGES: dict[str, Message] = {
    "roots": Roots("c", [("member", (1 << 64) - 1, 3)]),
    "branches": Branches("c", "member", [0, 1, 2, 3]),
    "have": Have("c", "member", 4, 1, [(7, 8)]),
    "wanted": Wanted("c", "member", [7]),
    "push": Push("c", [("member", b"record")]),
    "presence": Presence("c", 9, 2, 0.5, 0.25),
    "suspicion": Suspicion("p", 9),
    "probe wanted": ProbeWanted("p"),
    "probe answer": ProbeAnswer(True),
    "neighbour word": NeighbourWord(3),
    "provision": Provision("c", "key", 9),
    "find": Find("c", "key", True),
    "found": Found([b"provision"], [b"member"], [b"provider"]),
    "keep": Keep("c", [b"provision"], b"provider"),
    "kept": Kept(1),
    "hello": Hello(1, b"certificate", [("community", [b"grant"])], b"instance", 1.5, 2),
}


def test_every_message_has_golden_bytes() -> None:
    assert list(json.loads(VECTORS.read_text())) == list(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_written_and_read_as_ever(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(MESSAGES[name]) == golden
    assert decode(golden, type(MESSAGES[name]), step="test") == MESSAGES[name]
