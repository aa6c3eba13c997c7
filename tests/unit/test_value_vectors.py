"""What goes over the wire about values that stay where they were made, stays as it was: golden bytes."""

from __future__ import annotations

import json
import pathlib

import pytest

from croft.compute.messages import DropResults, FetchBuffer, FetchStored, KeptResult, Opened, SendResults
from croft.compute.worker_messages import ChunkResults, RunChunk, Status
from croft.control.work_messages import KeptBuffer, ReleaseValues, RunTaskAgain, StoredBuffer, SubmitTasks, WantValues
from croft.wire.codec import Message, decode, encode

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "task_values.json"
KEPT = KeptResult(b"token", 1_000_000, b"\x01" * 32)
MESSAGES: dict[str, Message] = {
    "opened": Opened(2, [], 5, keeps_results=True),
    "fetch a buffer": FetchBuffer(b"\x02" * 32, 7, "peer", b"token"),
    "fetch a stored file": FetchStored(b"\x02" * 32, 7, b"content", "peer", b"token"),
    "send results": SendResults(3),
    "drop results": DropResults([b"token"]),
    "run a chunk": RunChunk(1, b"f", [b"a"], 2.0, [[b"\x02" * 32]], True),
    "a kept result": KEPT,
    "results": ChunkResults(1, [(0, int(Status.KEPT), encode(KEPT)), (1, int(Status.LOST), b"\x02" * 32)]),
    "submit tasks": SubmitTasks(b"f", 0, [b"a"], [[b"\x02" * 32]], True),
    "a kept buffer": KeptBuffer(b"\x02" * 32, 7, "peer", b"token"),
    "a stored buffer": StoredBuffer(b"\x02" * 32, b"photos/a", 7, 3),
    "want values": WantValues([1, 2]),
    "release values": ReleaseValues([1]),
    "run a task again": RunTaskAgain(1, [b"\x02" * 32], True),
}


def test_every_message_has_golden_bytes() -> None:
    assert list(json.loads(VECTORS.read_text())) == list(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_written_and_read_as_ever(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(MESSAGES[name]) == golden
    assert encode(decode(golden, type(MESSAGES[name]), step="test")) == golden
