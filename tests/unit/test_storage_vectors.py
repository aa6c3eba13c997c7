"""What is stored at holders stays readable for ever: golden bytes of messages, shares and seals."""

from __future__ import annotations

import json
import pathlib

import pytest

from croft.errors import Failed
from croft.storage import erasure, formats, merkle, sealing
from croft.storage.formats import (
    Bounds,
    Branch,
    Child,
    Content,
    Entry,
    Head,
    Leaf,
    Part,
    PartList,
    Root,
    Stripe,
    Version,
    decode_node,
    decode_stored,
)
from croft.wire.codec import Message, decode, encode

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "storage.json"
STRIPE = Stripe(1, 100, [b"s" * 32, b"t" * 32], [b"h" * 32, b"i" * 32])
CONTENT = Content(1, 5, b"k" * 32, 0, [Part(STRIPE, 10, 24, 5, 1)])
CHILD = Child(b"a", 1, b"d" * 32, CONTENT)
VERSION = Version(2, b"v" * 32, 1.5, 5, CONTENT, 0o600, 7, 90, Bounds([b"p" * 32], [b"q" * 32], [b"r" * 32]))
MESSAGES: dict[str, Message] = {
    "part list": PartList(1, CONTENT.parts),
    "content": CONTENT,
    "leaf": Leaf(1, [Entry(b"a/b", [VERSION, Version(3, b"w" * 32, 2.5, 0, None)], 1)]),
    "branch": Branch(1, [CHILD]),
    "root": Root(1, [CHILD]),
    "head": Head(1, b"o" * 32, b"v" * 32, 3, b"p" * 32, [(b"v" * 32, 3)], b"sealed", 1.5),
}


def computed() -> dict[str, str]:
    """Everything that is not a message."""
    sealed = bytearray(200)
    size, _ = sealing.seal(b"k" * 32, 7, b"hello " * 20, memoryview(sealed))
    shares = bytearray(bytes(range(120)) + bytes(80))
    erasure.code(3, 5).add_parity(shares, 40)
    return {
        "stripe id": STRIPE.id.hex(),
        "share id": merkle.share_id(bytes(range(256)) * 300).hex(),
        "derived": sealing.derive(b"r" * 32, "root").hex(),
        "sealed": bytes(sealed[:size]).hex(),
        "shares": bytes(shares).hex(),
    }


def test_everything_stored_has_golden_bytes() -> None:
    assert list(json.loads(VECTORS.read_text())) == [*MESSAGES, *computed()]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_written_and_read_as_ever(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(MESSAGES[name]) == golden
    assert decode(golden, type(MESSAGES[name]), step="test") == MESSAGES[name]


@pytest.mark.parametrize("name", [name for name in computed() if name != "sealed"])
def test_ids_keys_and_shares_are_computed_as_ever(name: str) -> None:
    assert computed()[name] == json.loads(VECTORS.read_text())[name]


def test_what_was_sealed_long_ago_opens() -> None:
    # Another release of zstd may compress otherwise; it must open what earlier ones wrote.
    golden = bytes.fromhex(json.loads(VECTORS.read_text())["sealed"])

    assert bytes(sealing.unseal(b"k" * 32, 7, golden, sealing.Method.ZSTD, 120)) == b"hello " * 20


@pytest.mark.parametrize("name", ["content", "root", "head", "part list"])
def test_a_newer_format_is_refused_by_its_number_whatever_follows(name: str) -> None:
    kind = type(MESSAGES[name])

    with pytest.raises(Failed, match="format 2"):
        decode_stored(encode([2, {"anything": 1}]), kind)
    with pytest.raises(Failed, match="damaged"):
        decode_stored(b"\x00", kind)


def test_a_newer_node_is_refused_by_its_number_whatever_follows() -> None:
    with pytest.raises(Failed, match="format 2"):
        decode_node(encode([1, 2, "new"]))
    assert decode_node(encode(MESSAGES["branch"])) == MESSAGES["branch"]


def test_a_content_whose_numbers_do_not_fit_is_refused() -> None:
    beyond = Content(1, 5, b"k" * 32, 0, [Part(STRIPE, 90, 24, 5, 1)])
    newer = Content(2, 5, b"k" * 32, 0, [])

    formats.check_content(CONTENT)
    for content in (beyond, newer, Content(1, 9, b"k" * 32, 0, CONTENT.parts), Content(1, 0, b"k", 0, [])):
        with pytest.raises(Failed):
            formats.check_content(content)
