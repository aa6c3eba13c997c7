"""What members tell each other of a community's operations stays as it was, and so do the operations: golden bytes."""

from __future__ import annotations

import json
import pathlib

import pytest

from croft.identity.keys import SecretKey
from croft.model.ids import CommunityId
from croft.twins.community_messages import Heads, OperationsPage, OperationsWanted
from croft.twins.community_operation import Operation, open_operation, write_operation
from croft.wire.codec import Message, decode, encode

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "community.json"
KEY = SecretKey(bytes(range(32)))
VILLAGE = "c0" * 32
OPERATION = Operation(VILLAGE, 7, [b"\1" * 32, b"\2" * 32], "role", "ab" * 32, "admin", 1e9)
MESSAGES: dict[str, Message] = {
    "operation": OPERATION,
    "heads": Heads(VILLAGE, [b"\1" * 32], [b"record"]),
    "operations wanted": OperationsWanted(VILLAGE, [b"\1" * 32], [b"\2" * 32], 256),
    "operations page": OperationsPage([b"record"], 512),
}
SIGNED, ID = "signed operation", "id of the signed operation"


def test_every_message_has_golden_bytes() -> None:
    assert list(json.loads(VECTORS.read_text())) == [*MESSAGES, SIGNED, ID]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_has_its_golden_bytes_both_ways(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(MESSAGES[name]) == golden
    assert encode(decode(golden, type(MESSAGES[name]), step="test")) == golden


def test_an_operation_is_signed_and_named_as_ever() -> None:
    vectors = json.loads(VECTORS.read_text())

    record = write_operation(KEY, OPERATION)

    assert record.hex() == vectors[SIGNED]
    assert open_operation(record, CommunityId(VILLAGE)).id.hex() == vectors[ID]
