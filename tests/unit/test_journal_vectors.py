"""What the holders of a job tell each other, and what a journal keeps on disk, stays as it was: golden bytes."""

from __future__ import annotations

import json
import pathlib

import pytest

from croft.compute.environment import Environment, Wheel
from croft.compute.journal_messages import (
    Claim,
    EndJob,
    FindJob,
    FoundJob,
    HeldAll,
    HeldFunction,
    HeldOutcomes,
    HeldResultPart,
    HeldTasks,
    Holding,
    HoldJob,
    JobOver,
    JobSpec,
    Kept,
    Level,
    MayHold,
    ReadJob,
    Release,
)
from croft.wire.codec import Message, decode, encode

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "journal.json"
ENVIRONMENT = Environment("3.11", [Wheel("tiny-1.0-py3-none-any.whl", 9, bytes(32))])
SPEC = JobSpec(
    "film", "3.11", ["aa"], ["bb"], 1 << 30, 60.0, ["camera"], "vote:3", ["gpu"], 2, 4, -5, ENVIRONMENT, False
)
MESSAGES: dict[str, Message] = {
    "spec": SPEC,
    "may hold": MayHold("film"),
    "find job": FindJob("film"),
    "found job": FoundJob("0123", "film", "aa", "bb", ["bb", "cc"], 1e9, None, "running", 10, 4, 1, {"aa": 3, "bb": 1}),
    "end job": EndJob("0123", True),
    "hold job": HoldJob("0123", SPEC, "dd", "aa", ["bb", "cc"], 1e9, 2, "bb", [(0, 4), (7, 8)]),
    "read job": ReadJob("0123", True, 5),
    "holding": Holding(2, "bb", 10, True, [(0, 4)]),
    "held function": HeldFunction(b"digest", b"pickled"),
    "held tasks": HeldTasks(b"digest", 3, [b"one", b"two"]),
    "held all": HeldAll(),
    "kept": Kept(),
    "held outcomes": HeldOutcomes("aa", [(3, 0, b"value"), (4, 1, b"error")]),
    "claim": Claim(3, "aa"),
    "job over": JobOver("ended"),
    "release": Release(),
    "level": Level(),
    "held result part": HeldResultPart(3, b"part"),
}


def test_every_message_has_golden_bytes() -> None:
    assert list(json.loads(VECTORS.read_text())) == list(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_written_and_read_as_ever(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(MESSAGES[name]) == golden
    assert encode(decode(golden, type(MESSAGES[name]), step="test")) == golden


def test_a_spec_of_an_earlier_version_is_still_read() -> None:
    golden = encode(["film", "3.11", [], [], 0, 0.0])

    assert decode(golden, JobSpec, step="test") == JobSpec("film", "3.11", [], [])
