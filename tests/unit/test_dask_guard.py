"""What a user's program takes from its Dask workers: no pickle runs, nobody asks for more than workers may."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed.core import error_message
from distributed.protocol import Serialize, Serialized, dumps
from distributed.protocol.serialize import ToPickle

from croft.dask import guard
from croft.dask.carrying import pack, unpack
from croft.errors import CodecError, PeerMisbehaved

WORKER = "croft://circle/w1"


class Touch:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def carried(message: Any) -> Any:
    """What a client gets of a message that a well-behaved worker sends."""
    return guard.read(dumps(guard.lowered(message)), deserialize=True)


@pytest.fixture
def touched(tmp_path: Path) -> Path:
    return tmp_path / "touched"


# --- pickles ---------------------------------------------------------------------------------------------------------


def test_a_pickle_in_a_message_is_refused_unread(touched: Path) -> None:
    frames = dumps({"op": "heartbeat_worker", "metrics": ToPickle(Touch(touched))})

    for deserialize in (True, False):
        with pytest.raises(PeerMisbehaved, match="pickle"):
            guard.read(frames, deserialize=deserialize)
    assert not touched.exists()


@pytest.mark.parametrize("serializer", ["pickle", "dask"])
def test_a_value_in_another_serialiser_is_refused_unread(touched: Path, serializer: str) -> None:
    value = Touch(touched) if serializer == "pickle" else np.ones(3)
    frames = dumps({"status": "OK", "data": {"x": Serialize(value)}}, serializers=[serializer])

    kept = guard.read(frames, deserialize=False)
    assert isinstance(kept["data"]["x"], Serialized)
    with pytest.raises(CodecError, match=f"serialised by '{serializer}'"):
        guard.opened(kept)
    assert not touched.exists()


def test_bytes_that_a_client_would_unpickle_do_not_reach_it(touched: Path) -> None:
    evil = pickle.dumps(Touch(touched))
    said = {"op": "task-finished", "key": "x", "type": evil, "nested": [{"exception": evil}]}

    assert guard.read(dumps(said), deserialize=False) == {
        "op": "task-finished",
        "key": "x",
        "type": None,
        "nested": ({"exception": None},),
    }


def test_an_exception_that_is_bytes_in_the_safe_codec_is_an_error_of_ours(touched: Path) -> None:
    evil = Serialized(*pack(pickle.dumps(Touch(touched))))

    got = guard.read(dumps({"status": "error", "exception": evil, "traceback": evil}), deserialize=True)

    assert isinstance(got["exception"], CodecError) and got["traceback"] is None
    assert not touched.exists()


@pytest.mark.parametrize(
    "frames",
    [
        [b"\xc1"],
        [b""],
        [b"\x81\xa1a"],
        dumps({"x": {"__Serialized__": 7}}),
        dumps({"x": {"__Serialized__": "a"}}),
        dumps({"x": {"__Enum__": True, "__module__": "os", "__name__": "x", "name": "y"}}),
        dumps({"x": {"__Set__": True, "as-list": [{}]}}),
        [dumps({"x": Serialize(1)})[0], b"\xc1", b""],
    ],
    ids=range(8),
)
def test_garbage_is_a_fault_of_the_worker(frames: list[Any]) -> None:
    with pytest.raises((PeerMisbehaved, CodecError)):
        guard.read(frames, deserialize=True)


# --- what is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [
        "run_function",
        "register-client",
        "broadcast",
        "register_scheduler_plugin",
        "update-graph",
        "gather",
        "terminate",
    ],
)
@pytest.mark.parametrize("is_registered", [True, False])
def test_workers_may_not_ask_for_what_clients_may(op: str, is_registered: bool) -> None:
    with pytest.raises(PeerMisbehaved):
        guard.admit({"op": op}, WORKER, is_registered=is_registered)
    with pytest.raises(PeerMisbehaved):
        guard.admit(({"op": op},), WORKER, is_registered=is_registered)


def test_reports_come_from_registered_workers_alone_and_in_their_own_name() -> None:
    finished = {"op": "task-finished", "key": "x"}

    assert guard.admit((finished,), WORKER, is_registered=True) == (finished,)
    with pytest.raises(PeerMisbehaved):
        guard.admit((finished,), WORKER, is_registered=False)
    for op in ("register-worker", "heartbeat_worker", "unregister"):
        assert guard.admit({"op": op, "address": WORKER}, WORKER, is_registered=False)
        with pytest.raises(PeerMisbehaved, match="another worker"):
            guard.admit({"op": op, "address": "croft://circle/w2"}, WORKER, is_registered=False)


def test_events_that_a_client_would_unpickle_are_not_heard() -> None:
    events = tuple({"op": "log-event", "topic": topic, "msg": "x"} for topic in ("warn", ("a", "warn"), "fine"))

    assert guard.admit(events, WORKER, is_registered=True) == events[2:]


# --- values ----------------------------------------------------------------------------------------------------------

FRAME = pd.DataFrame(
    {
        "number": [1, 2, 3],
        "text": ["a", "b", None],
        "kind": pd.Categorical(["u", "v", "u"], ordered=True),
        "time": pd.to_datetime(["2020-01-01", None, "2020-01-03"]),
        "maybe": pd.array([1, None, 3], dtype="Int64"),
        7: [0.5, float("nan"), 1.5],
    }
)


@pytest.mark.parametrize(
    "value",
    [
        FRAME,
        FRAME.set_index(["number", "text"]),
        FRAME.set_index("time"),
        FRAME.iloc[1:],
        FRAME.iloc[:0],
        FRAME["text"],
        FRAME.groupby("kind", observed=True)["number"].sum(),
        FRAME.set_index("number").index,
        pd.DataFrame(np.arange(6).reshape(2, 3), columns=pd.Index(["x", "y", "z"], name="axis")),
    ],
    ids=range(9),
)
def test_frames_come_back_as_they_were(value: Any) -> None:
    got = carried({"status": "OK", "data": {"x": Serialize([value])}})["data"]["x"][0]

    assert type(got) is type(value)
    check: Any = {
        "DataFrame": pd.testing.assert_frame_equal,
        "Series": pd.testing.assert_series_equal,
    }.get(type(value).__name__, pd.testing.assert_index_equal)
    check(got, value)


def test_a_large_array_stands_on_the_memory_into_which_it_was_read() -> None:
    header, frames = pack(np.arange(1 << 20))
    read = bytearray(frames[0])

    array = unpack(header, [memoryview(read)])

    assert np.array_equal(array, np.arange(1 << 20))
    assert np.shares_memory(array, np.frombuffer(read, dtype=np.uint8))


def test_what_cannot_be_carried_says_so_and_what_to_do() -> None:
    with pytest.raises(CodecError, match="object of type object") as refused:
        carried({"status": "OK", "data": {"x": Serialize(object())}})
    assert 'trust="pickle"' in refused.value.remedy

    with pytest.raises(CodecError, match="takes no Touch from workers"):
        guard.lowered({"op": "x", "spec": ToPickle(Touch(Path("x")))})


def test_an_exception_comes_with_the_workers_traceback() -> None:
    try:
        raise KeyError("nowhere")
    except KeyError as error:
        message = error_message(error)

    got = carried({"op": "task-erred", **message})

    assert isinstance(got["exception"], KeyError) and got["exception"].args == ("nowhere",)
    assert "test_an_exception_comes_with" in str(got["exception"].__cause__)
    assert got["traceback"] is None


def test_a_frame_that_makes_no_sense_is_refused() -> None:
    from croft.dask.carrying import CarriedColumn, CarriedFrame

    for frame in (
        CarriedFrame("frame", [CarriedColumn("x", [1], "os.system")], None, 1),
        CarriedFrame("sausage", [], None, 1),
        CarriedFrame("series", [], None, 1),
        CarriedFrame("frame", [CarriedColumn("x", np.arange(3), "category", CarriedColumn(None, ["a"]))], None, 3),
    ):
        with pytest.raises(CodecError, match="makes no sense"):
            unpack(*pack(frame))
