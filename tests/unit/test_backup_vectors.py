"""What backups keep stays readable for ever: golden bytes of its messages, names of chunks, and cuts."""

from __future__ import annotations

import json
import pathlib
from random import Random

import pytest

from croft.errors import Failed
from croft.storage.backup_formats import (
    Blob,
    ChunkList,
    Definition,
    Kind,
    Listing,
    Node,
    PackTable,
    SnapshotRecord,
    StoreName,
    Table,
    snapshot_name,
)
from croft.storage.chunking import PURPOSE, Chunker
from croft.storage.formats import decode_stored
from croft.storage.retention import Policy
from croft.storage.sealing import derive
from croft.wire.codec import Message, encode

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "backups.json"
BLOB = Blob(5, 1, [b"c" * 32])
FILE = Node(
    *(
        b"a\xff",
        int(Kind.FILE),
        0o640,
        1000,
        100,
        7,
        9,
        BLOB,
        b"",
        [(b"user.colour", b"red")],
        (3, 4),
        [(5, 4)],
        0,
        True,
    )
)
LINK = Node(b"l", int(Kind.SYMLINK), 0o777, 0, 0, 8, target=b"a\xff")
STORE = StoreName(b"\x0a" * 32, "photos")
MESSAGES: dict[str, Message] = {
    "chunk list": ChunkList(1, [b"c" * 32]),
    "listing": Listing(1, [FILE, LINK]),
    "table": Table(1, [PackTable(b"/packs/x", [(b"c" * 32, 5)])]),
    "snapshot": SnapshotRecord(1, 1.5, 2.5, [b"/home/a\xff"], BLOB, 3, 4, 5, 6),
    "definition": Definition(
        *(1, "laptop", [b"/home/a\xff"], ["*.tmp"], ["friends"], "4of8", 60.0, Policy(1, 2, 3, 4, 5, 6), 1.5)
    ),
}


def computed() -> dict[str, object]:
    """Everything that is not a message."""
    chunker = Chunker(derive(b"r" * 32, PURPOSE))
    data = Random(1).randbytes(4 << 20)
    return {
        "store": STORE.prefix.hex(),
        "definition's name": STORE.definition.hex(),
        "snapshot's name": snapshot_name(STORE.prefix, 12).hex(),
        "chunk": chunker.name(b"hello").hex(),
        "cuts": [len(chunk) for chunk in chunker.cut(data, is_end=True)],
    }


def test_everything_that_backups_keep_has_golden_bytes() -> None:
    assert list(json.loads(VECTORS.read_text())) == [*MESSAGES, *computed()]


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_written_and_read_as_ever(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(MESSAGES[name]) == golden
    assert encode(decode_stored(golden, type(MESSAGES[name]))) == golden


@pytest.mark.parametrize("name", computed())
def test_names_and_cuts_are_as_ever(name: str) -> None:
    assert computed()[name] == json.loads(VECTORS.read_text())[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_newer_format_is_refused_by_name(name: str) -> None:
    fields = list(MESSAGES[name].__struct_fields__)
    newer = encode([2, *(getattr(MESSAGES[name], field) for field in fields[1:])])

    with pytest.raises(Failed, match="format 2 by a newer version"):
        decode_stored(newer, type(MESSAGES[name]))


def test_other_owners_cut_elsewhere_and_call_chunks_otherwise() -> None:
    mine, others = Chunker(derive(b"r" * 32, PURPOSE)), Chunker(derive(b"s" * 32, PURPOSE))
    data = Random(2).randbytes(6 << 20)

    cuts = [[len(chunk) for chunk in chunker.cut(data, is_end=True)] for chunker in (mine, others)]
    assert cuts[0] != cuts[1] and mine.name(b"hello") != others.name(b"hello")
