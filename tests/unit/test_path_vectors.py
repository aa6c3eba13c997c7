"""What peers tell each other about paths, and daemons their relays, stays as it was: golden bytes."""

from __future__ import annotations

import json
import pathlib

import pytest

from croft.ledger.offer import OfferContent
from croft.overlay.invitation_code import LineContent
from croft.overlay.path_messages import Measured, MeasureWanted, ReachAnswer, ReachWanted, SeenAt
from croft.overlay.relay_pass import PassContent
from croft.wire.codec import Message, decode, encode
from croft.wire.relay_orders import Order, Report

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "paths.json"
MESSAGES: dict[str, Message] = {
    "seen at": SeenAt("198.51.100.7:4001"),
    "reach wanted": ReachWanted("198.51.100.7:4001"),
    "reach answer": ReachAnswer(True),
    "measure wanted": MeasureWanted(2.0, True),
    "measured": Measured(1_000_000, 1.25),
    "offer": OfferContent("village", [b"token"], b"certificate", "relay", 2.5e6, ["http://a:1"], 7, 1e9),
    "offer of resources": OfferContent(
        *("village", [b"token"], b"certificate", "lend", 1.0, [], 7, 1e9, 3),
        {"cpu": 4, "mem": 1 << 30},
        ["ab" * 32],
        "sat,sun 20:00-08:00",
        False,
    ),
    "relay pass": PassContent(b"relay", "invitation", 1e9),
    "line without relays": LineContent(b"token", b"peer", ["1.2.3.4:5"]),
    "line with a relay": LineContent(b"token", b"peer", ["1.2.3.4:5"], [("http://a:1", "pass")]),
    "order": Order([b"key"]),
    "report": Report(3340, 1, [(b"key", 1, 2, 3)]),
}


def test_every_message_has_golden_bytes() -> None:
    assert list(json.loads(VECTORS.read_text())) == list(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_written_and_read_as_ever(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(MESSAGES[name]) == golden
    assert encode(decode(golden, type(MESSAGES[name]), step="test")) == golden


def test_a_line_of_an_earlier_version_is_still_read() -> None:
    golden = encode([b"token", b"peer", ["1.2.3.4:5"]])

    assert decode(golden, LineContent, step="test").relays == ()


def test_an_offer_of_an_earlier_version_is_still_read() -> None:
    golden = encode(["village", [b"token"], b"certificate", "relay", 2.5e6, ["http://a:1"], 7, 1e9])

    offer = decode(golden, OfferContent, step="test")
    assert (offer.number, offer.lent, list(offer.to), offer.when, offer.is_standing) == (0, {}, [], "", True)
