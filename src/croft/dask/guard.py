"""What the user's program takes from its workers: messages of known kinds, data in the safe codec, never a pickle.

Dask's own protocol lets whoever is connected to a scheduler run code in it: it unpickles values, exceptions and types
of results, and it serves clients, plugins and functions to run to anybody. A worker runs on another peer, whose owner
can make it say anything. So whatever comes from one passes here before Dask sees it.
"""

from __future__ import annotations

import logging
from typing import Any

import msgpack
from distributed.core import clean_exception
from distributed.protocol import Serialize, Serialized
from distributed.protocol.serialize import Pickled, ToPickle
from distributed.protocol.utils import msgpack_opts

from croft.client.serialise import code_bytes
from croft.dask.carrying import pack, pack_error, text_of, unpack
from croft.errors import CodecError, PeerMisbehaved

log = logging.getLogger(__name__)

STEP = "a Dask worker"
CALLS = frozenset({"register-worker", "heartbeat_worker", "unregister", "who_has", "identity"})
"""What a worker may ask of the scheduler."""
REPORTS = frozenset(
    {
        *("task-finished", "task-erred", "release-worker-data", "add-keys", "long-running", "reschedule", "keep-alive"),
        *("worker-status-change", "request-refresh-who-has", "steal-response", "close-stream", "log-event"),
    }
)
"""What it may say, once it is registered."""
UNHEARD_TOPICS = frozenset({"warn", "forwarded-log-record"})
"""Events that a client would unpickle."""
ERRORS = ("exception", "traceback")
"""Fields that a client raises; bytes in them it would unpickle."""


def read(frames: list[Any], *, deserialize: bool) -> Any:
    """The message in these frames. Raises PeerMisbehaved, CodecError."""

    def value_of(fields: dict[Any, Any]) -> Any:
        if "__Serialized__" in fields:
            return _serialized(frames, fields["__Serialized__"])
        if "__Set__" in fields:
            return set(fields["as-list"])
        if "__Pickled__" in fields or "__Enum__" in fields:
            raise PeerMisbehaved("it sent a pickle", step=STEP)
        return fields

    try:
        message = msgpack.loads(bytes(frames[0]), object_hook=value_of, use_list=False, **msgpack_opts)
        message = _without_bytes(message)
    except PeerMisbehaved:
        raise
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise PeerMisbehaved(f"a message that makes no sense: {error}", step=STEP) from None
    return opened(message) if deserialize else message


def _serialized(frames: list[Any], offset: Any) -> Serialized:
    if type(offset) is not int or not 0 < offset < len(frames):
        raise PeerMisbehaved("a value that is not there", step=STEP)
    header = msgpack.loads(bytes(frames[offset]), use_list=False, **msgpack_opts)
    count = header.get("num-sub-frames") if isinstance(header, dict) else None
    if type(count) is not int or not 0 <= count <= len(frames):
        raise PeerMisbehaved("a value that is not there", step=STEP)
    return Serialized({"serializer": header.get("serializer")}, frames[offset + 1 : offset + 1 + count])


def _without_bytes(message: Any) -> Any:
    """Bytes that are not a result are pickles: of an exception, of the type of a result. Nobody needs them."""
    kind = type(message)
    if kind is dict:
        return {key: _without_bytes(value) for key, value in message.items()}
    if kind is tuple:
        return tuple(_without_bytes(value) for value in message)
    return None if kind is bytes or kind is bytearray or kind is memoryview else message


def admit(message: Any, address: str, *, is_registered: bool) -> Any:
    """What of a message that a worker at `address` began to say is heard. Raises PeerMisbehaved for what none says."""
    if isinstance(message, dict):
        if "op" not in message:
            return message  # part of the handshake
        if message["op"] not in CALLS and not (is_registered and message["op"] in REPORTS):
            raise PeerMisbehaved(f"it asks for `{str(message['op'])[:40]}`", step=STEP)
        if message.get("address", address) != address:
            raise PeerMisbehaved("it speaks for another worker", step=STEP)
        return message
    if isinstance(message, tuple) and is_registered:
        return tuple(one for one in message if _is_report(one))
    raise PeerMisbehaved("a message of no kind", step=STEP)


def _is_report(message: Any) -> bool:
    if not isinstance(message, dict) or message.get("op") not in REPORTS:
        raise PeerMisbehaved("it says what workers do not say", step=STEP)
    if message["op"] != "log-event":
        return True
    topics = message.get("topic")
    named = topics if isinstance(topics, tuple) else (topics,)
    return not any(topic in UNHEARD_TOPICS for topic in named)


def opened(message: Any) -> Any:
    """A message with the values that are serialised in it. Raises CodecError."""
    kind = type(message)
    if kind is dict:
        return {key: _opened_field(key, value) for key, value in message.items()}
    if kind is list or kind is tuple:
        return kind(opened(value) for value in message)
    if kind is Serialize:
        return message.data
    if kind is Serialized:
        return unpack(message.header, message.frames)
    return message


def _opened_field(key: Any, value: Any) -> Any:
    if type(value) is not Serialized or key not in ERRORS:
        return opened(value)
    try:
        error = unpack(value.header, value.frames)
    except CodecError as refusal:
        error = refusal
    if key == "traceback":
        return None
    return error if isinstance(error, BaseException) else CodecError("a worker failed, and how cannot be read")


def lowered(message: Any) -> Any:
    """On a worker: what it says to the user's program, with all values in the safe codec."""
    kind = type(message)
    if kind is dict:
        return {key: _lowered_field(key, value, message) for key, value in message.items()}
    if kind is list or kind is tuple:
        return kind(lowered(value) for value in message)
    if kind is Serialize:
        return Serialized(*pack(message.data))
    if kind is ToPickle:
        raise CodecError(
            f"the user's program takes no {type(message.data).__name__} from workers", remedy='See trust="pickle".'
        )
    return message


def with_code(message: Any) -> Any:
    """In the user's program: what it says to a worker, with its own modules in the pickles of tasks."""
    kind = type(message)
    if kind is dict:
        return {key: with_code(value) for key, value in message.items()}
    if kind is list or kind is tuple:
        return kind(with_code(value) for value in message)
    if kind is ToPickle:
        buffers: list[memoryview] = []
        return Pickled({"pickled-obj": code_bytes(message.data, buffers)}, buffers)
    return message


def _lowered_field(key: Any, value: Any, message: dict[Any, Any]) -> Any:
    if type(value) is not Serialize or key not in ERRORS:
        return lowered(value)
    if key == "traceback":
        return None
    _, error, _ = clean_exception(value.data)
    text = str(message.get("traceback_text") or "") or (text_of(error) if error is not None else "")
    return Serialized(*pack_error(error, text))
