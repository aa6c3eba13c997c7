"""What owners and holders tell each other stays as it was: golden bytes."""

from __future__ import annotations

import json
import pathlib

import pytest

from croft.identity.signed import SignedByDevice
from croft.storage.formats import Content, Stripe, StripeList, Version
from croft.storage.links import Link, LinkedFile, LinkedFiles, LinkState, MadeLink, ToldLink
from croft.storage.messages import (
    Answer,
    Declined,
    Done,
    Dropped,
    DropShares,
    FindShares,
    Found,
    Heads,
    LinkRead,
    Listed,
    ListShares,
    PutHead,
    PutLink,
    PutProposal,
    PutShare,
    ReadHeads,
    ReadLink,
    ReadShare,
    Request,
    ShareFollows,
    Watch,
)
from croft.storage.permits import Permit
from croft.storage.proposals import Proposal
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
    "watch": Watch(7, b"permit", Content(1, 0, b"k" * 32, 0, []), [b"p" * 32], [b"q" * 32], [b"t" * 32]),
    "put link": PutLink(b"record"),
    "read link": ReadLink(OWNER, b"i" * 16),
    "done": Done(),
    "share follows": ShareFollows(1000, [b"h" * 32]),
    "found": Found([1000, -1]),
    "listed": Listed([(SHARE, 1000)], 4096, 1 << 30),
    "dropped": Dropped(4096),
    "heads": Heads([b"record"]),
    "link read": LinkRead(b"record"),
    "put proposal": PutProposal(b"record"),
    "link read with proposals": LinkRead(b"record", [b"proposal"]),
    "declined": Declined("full", "full: all taken", "Try later."),
}
SIGNED: dict[str, Message] = {
    "signed head": SignedByDevice(b"certificate", b"record"),
    "signed permit": SignedByDevice(b"certificate", b"record"),
    "permit": Permit(OWNER, b"d" * 32, [b"p" * 32], [b"t" * 32], [b"c" * 32], True, 1.5),
    "link": Link(1, OWNER, b"i" * 16, b"k" * 32, b"film", [b"p" * 32]),
    "link state": LinkState(OWNER, b"d" * 32, b"i" * 16, 7, b"permit", b"sealed"),
    "signed link": SignedByDevice(b"certificate", b"record"),
    "linked files": LinkedFiles(1, [LinkedFile(b"", Version(1, b"d" * 32, 1.5, 0, None))]),
    "made link": MadeLink(1, b"i" * 16, b"k" * 32, b"film", [b"t" * 32], [b"c" * 32], 1.5, 2.5),
    "told link": ToldLink(1, 7, b"digest", [b"p" * 32]),
    "link state that is written": LinkState(
        OWNER, b"d" * 32, b"i" * 16, 7, b"permit", b"sealed", [b"w" * 32], [b"c" * 32], [(b"v" * 32, 5)]
    ),
    "made link that is written": MadeLink(
        1, b"i" * 16, b"k" * 32, b"film", [b"t" * 32], [b"c" * 32], 1.5, 2.5, [b"t" * 32], [b"c" * 32], False
    ),
    "made link that verifies": MadeLink(
        1, b"i" * 16, b"k" * 32, b"film", [b"t" * 32], [], 1.5, 2.5, verifies=True, repairers=[b"p" * 32]
    ),
    "proposal": Proposal(b"w" * 32, b"v" * 32, OWNER, b"i" * 16, 7, b"permit", b"sealed"),
    "signed proposal": SignedByDevice(b"certificate", b"record"),
    "stripe list": StripeList(1, [Stripe(1, 100, [SHARE], [b"h" * 32])]),
}


def test_every_message_has_golden_bytes() -> None:
    assert list(json.loads(VECTORS.read_text())) == [*MESSAGES, *SIGNED]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_written_and_read_as_ever(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(MESSAGES[name]) == golden
    read: Message = decode_union(golden, Request | Answer, step="test")
    assert read == MESSAGES[name]


@pytest.mark.parametrize("name", SIGNED)
def test_what_is_signed_is_written_and_read_as_ever(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(SIGNED[name]) == golden and decode(golden, type(SIGNED[name]), step="test") == SIGNED[name]
