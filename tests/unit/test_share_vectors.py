"""What owners and holders tell each other stays as it was: golden bytes."""

from __future__ import annotations

import json
import pathlib

import pytest

from croft.storage.heads import SignedHead
from croft.storage.messages import (
    Answer,
    Declined,
    Done,
    Dropped,
    DropShares,
    FindShares,
    Found,
    Heads,
    Listed,
    ListShares,
    PutHead,
    PutShare,
    ReadHeads,
    ReadShare,
    Request,
    ShareFollows,
)
from croft.wire.codec import Message, decode, decode_union, encode

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "shares.json"
OWNER, SHARE = b"o" * 32, b"s" * 32
MESSAGES: dict[str, Message] = {
    "put share": PutShare(OWNER, SHARE, 1000, b"permit"),
    "read share": ReadShare(OWNER, SHARE, 16384, 1000, b"permit"),
    "find shares": FindShares(OWNER, [SHARE], b"permit"),
    "list shares": ListShares(SHARE),
    "drop shares": DropShares([SHARE]),
    "put head": PutHead(b"record"),
    "read heads": ReadHeads(),
    "done": Done(),
    "share follows": ShareFollows(1000, [b"h" * 32]),
    "found": Found([1000, -1]),
    "listed": Listed([(SHARE, 1000)], 4096, 1 << 30),
    "dropped": Dropped(4096),
    "heads": Heads([b"record"]),
    "declined": Declined("full", "full: all taken", "Try later."),
}
SIGNED_HEAD = SignedHead(b"certificate", b"record")


def test_every_message_has_golden_bytes() -> None:
    assert list(json.loads(VECTORS.read_text())) == [*MESSAGES, "signed head"]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_written_and_read_as_ever(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(MESSAGES[name]) == golden
    read: Message = decode_union(golden, Request | Answer, step="test")
    assert read == MESSAGES[name]


def test_a_signed_head_is_written_and_read_as_ever() -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())["signed head"])

    assert encode(SIGNED_HEAD) == golden and decode(golden, SignedHead, step="test") == SIGNED_HEAD
