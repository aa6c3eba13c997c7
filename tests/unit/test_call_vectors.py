"""What callers, providers and the processes of capabilities tell each other stays as it was: golden bytes."""

from __future__ import annotations

import json
import pathlib

import pytest

from croft.control.work_messages import (
    OpenCalls,
    OpenPipeline,
    OpenPipelineResults,
    PipelineFailure,
    PipelineInput,
    PipelineOver,
    PipelineResult,
    PipelineTaken,
)
from croft.node.capabilities import Told
from croft.twins.audit import Seal
from croft.twins.call_messages import (
    ArgumentPart,
    AskCall,
    CallAt,
    CallEnded,
    CallFailed,
    CallRaised,
    CallWaits,
    InputEnd,
    InputItem,
    InputWanted,
    MoreWanted,
    NamedArgument,
    StopCall,
    ToCaller,
    ToProvider,
    ValueKept,
    ValuePart,
    ValueRef,
    WorkerReady,
)
from croft.twins.capability import CapabilityContent, Terms
from croft.twins.kept_values import ReleaseValues, ValueFollows, WantValue
from croft.twins.pipeline_store import PipelineSpec, StageSpec
from croft.wire.codec import Message, decode, decode_union, encode

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "calls.json"
TERMS = Terms("ocr", b'{"parameters": {}}', "Reads.", ("ocr(page)",), ("gpu",), 1.5, True, 60.0, 2)
MESSAGES: dict[str, Message] = {
    "ask call": AskCall(
        1, "ocr", b"arguments", False, b"digest", b"key", 60.0, 5.0, "ada", [ValueRef("page", "bb", b"token", 9)], True
    ),
    "argument part": ArgumentPart(1, b"more", True),
    "input item": InputItem(1, b"item", True),
    "input end": InputEnd(1),
    "more wanted": MoreWanted(1, 16),
    "stop call": StopCall(1),
    "value part": ValuePart(1, b"value", True, False),
    "call ended": CallEnded(1),
    "call raised": CallRaised(1, "ValueError", "no", "Traceback"),
    "call failed": CallFailed(1, "bad_argument", "no", "Try.", False, "page"),
    "call waits": CallWaits(1),
    "call at": CallAt(1, "peer", "bob"),
    "input wanted": InputWanted(1, 4),
    "worker ready": WorkerReady(0, "3.11.2"),
    "named argument": NamedArgument(1, "page", b"data", True),
    "value kept": ValueKept(1, b"token", 9),
}
OTHERS: dict[str, Message] = {
    "open calls": OpenCalls(),
    "terms": TERMS,
    "capability": CapabilityContent("c" * 64, [b"grant"], b"certificate", TERMS, 7, 1.5, ("t" * 64,), False),
    "audit seal": Seal(1, b"b" * 32, 7, b"l" * 32),
    "told": Told([("c" * 64, b"record")]),
    "want value": WantValue(b"token"),
    "release values": ReleaseValues([b"token"]),
    "value follows": ValueFollows(9),
    "open pipeline": OpenPipeline(
        PipelineSpec("tapes", [StageSpec("ocr", "bb", b"arguments", "page", b"digest", 5.0)], 2)
    ),
    "pipeline input": PipelineInput(b"data", False, False),
    "open pipeline results": OpenPipelineResults("0123", False),
    "pipeline taken": PipelineTaken("0123", 4),
    "pipeline result": PipelineResult(3, b"data", True),
    "pipeline failure": PipelineFailure(3, "ocr", "no"),
    "pipeline over": PipelineOver("done"),
}


def test_every_message_has_golden_bytes() -> None:
    assert list(json.loads(VECTORS.read_text())) == [*MESSAGES, *OTHERS]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_written_and_read_as_ever(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(MESSAGES[name]) == golden
    read: Message = decode_union(golden, ToProvider | ToCaller, step="test")
    assert read == MESSAGES[name]


@pytest.mark.parametrize("name", OTHERS)
def test_what_else_is_said_is_written_and_read_as_ever(name: str) -> None:
    golden = bytes.fromhex(json.loads(VECTORS.read_text())[name])

    assert encode(OTHERS[name]) == golden and decode(golden, type(OTHERS[name]), step="test") == OTHERS[name]
