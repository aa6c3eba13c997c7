"""What peers tell each other of letters stays as it was: golden bytes."""

from __future__ import annotations

import json
import pathlib

import pytest

from croft.identity.keys import SecretKey
from croft.twins.cards import CardContent
from croft.twins.left_calls import LeftCall, Outcome
from croft.twins.letter_messages import Given, Offered, Taken, Wanted
from croft.twins.letters import Body, Letter, find_key, open_body, open_letter, reading_key
from croft.wire.codec import Message, decode, encode

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "letters.json"
SEALED = pathlib.Path(__file__).parents[1] / "vectors" / "sealed_letter.json"
MESSAGES: dict[str, Message] = {
    "offered": Offered("aa", "bb", "", [("cc", 1, 5), ("dd", 7, 7)]),
    "wanted": Wanted([("cc", 3, 5)]),
    "given": Given([b"one", b"two"]),
    "taken": Taken(2, "no room"),
    "letter": Letter(b"o", b"d", "aa", b"t", "room", 3, b"before", 1e9, 2, [(b"d", b"key")], b"sealed"),
    "body": Body("text", "hello", "0123"),
    "left call": LeftCall("aa", "ocr", b"arguments", b"digest", True),
    "outcome": Outcome(b"value", b"token", 9, "failed", "no", "Try.", "Traceback"),
    "card": CardContent("aa", [b"token"], b"certificate", b"key", "I mend radios", ["bb"], 1e9, 5, 2e9),
}


def test_every_message_has_golden_bytes() -> None:
    assert list(json.loads(VECTORS.read_text())) == list(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_written_and_read_as_ever(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(MESSAGES[name]) == golden
    assert encode(decode(golden, type(MESSAGES[name]), step="test")) == golden


def test_a_letter_that_was_sealed_once_opens_for_ever() -> None:
    golden = json.loads(SEALED.read_text())
    device = SecretKey(bytes.fromhex(golden["reader_device_secret"]))
    letter = open_letter(bytes.fromhex(golden["letter"]))
    key = find_key(letter, bytes.fromhex(device.public), reading_key(device))

    assert key is not None and key.hex() == golden["key"]
    assert open_body(letter, key) == Body("text", golden["text"])
