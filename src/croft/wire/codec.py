"""Encodes and decodes wire messages: MessagePack by msgspec, typed and validated.

A message class derives from `Message`. Only add fields, with defaults; tags are for ever.
"""

from __future__ import annotations

from functools import cache
from types import UnionType
from typing import Any, TypeVar

import msgspec

from croft.errors import PeerMisbehaved

M = TypeVar("M")


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of every wire message. Fields travel by position: append new ones, with defaults."""


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
"""The MessagePack bytes of a message."""

encode_into = _encoder.encode_into
"""Like `encode`, into a bytearray from an offset."""


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def decode(data: bytes | memoryview, kind: type[M], *, step: str) -> M:
    """The message of type `kind` that `data` encodes.

    Raises:
        PeerMisbehaved: the bytes are not such a message; `step` names where in the protocol it happened.
    """
    message: M = _decode(data, kind, step)
    return message


def decode_union(data: bytes | memoryview, kinds: UnionType, *, step: str) -> Any:
    """Like `decode`, for one of several tagged messages; the caller annotates the result with the union."""
    return _decode(data, kinds, step)


def _decode(data: bytes | memoryview, kind: Any, step: str) -> Any:
    try:
        return _decoder(kind).decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise PeerMisbehaved(f"not a valid message: {error}", step=step) from None
