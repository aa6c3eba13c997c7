"""The safe codec for task results: carries values exactly, and never executes anything from the sender.

Values of None, bool, int, float, str, bytes, list and dict are plain MessagePack. Everything else is a
MessagePack extension, whose code is a `Code` and whose payload is MessagePack again. Types are kept: a tuple
stays a tuple, an `OrderedDict` an `OrderedDict`. Sets are sorted by their encoded elements, so equal sets have
equal bytes under any hash seed. Objects that occur twice are carried twice.

Dataclasses, enums and named tuples are rebuilt only into classes that the receiver has loaded itself, by
`croft.wire.values_classes`; arrays by `croft.wire.values_numpy`. The bytes of every type are frozen in
`tests/vectors/values.json`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from msgspec.msgpack import Encoder

from croft.errors import CodecError, TooLarge
from croft.wire.values_codes import ATTACHED_BYTES_MIN
from croft.wire.values_decoding import decode_attached, decode_top
from croft.wire.values_encoding import CAREFUL_LEAVES, LEAVES, Attached, Lowering, Uncarried, is_plain

PATH_STEPS_MAX: Final = 8
"""How many steps into a result an error shows."""
REASON_CHARS_MAX: Final = 200
"""How much of a constructor's complaint an error shows: the sender may have chosen the text."""

ATTACHED_MARK: Final = 0xC1
"""The first byte of an encoding with something attached; MessagePack never begins with it."""
ATTACHED_MAX: Final = 10_000
ALIGNMENT_BYTES: Final = 64
_COUNT: Final = struct.Struct(">BIQ")

_pack = Encoder().encode


def encode_value(value: object, *, size_bytes_max: int | None = None) -> bytes:
    """The bytes from which `decode_value` rebuilds `value`, with its types.

    Raises:
        CodecError: a part of the value cannot be carried; the message names its type and where it is.
        TooLarge: the encoding exceeds `size_bytes_max`.
    """
    return _encode(value, size_bytes_max, None)


def encode_in_parts(
    value: object, *, size_bytes_max: int | None = None, attached_bytes_min: int = ATTACHED_BYTES_MIN
) -> Sequence[bytes | memoryview]:
    """The same for `decode_value` in several parts, one after the other; large arrays are parts, and not copied.

    Where something is attached, in front stand ATTACHED_MARK, how many buffers there are, the size of the encoding
    and the size of each buffer, as big-endian numbers; then the encoding; then the buffers. Each of them is followed
    by zeros up to a multiple of ALIGNMENT_BYTES. Raises as `encode_value` does.
    """
    attached = Attached(attached_bytes_min)
    encoding = _encode(value, size_bytes_max, attached)
    buffers = attached.buffers
    if not buffers:
        return [encoding]
    head = _COUNT.pack(ATTACHED_MARK, len(buffers), len(encoding)) + struct.pack(
        f">{len(buffers)}Q", *map(len, buffers)
    )
    parts: list[bytes | memoryview] = [head, _padding(len(head)), encoding, _padding(len(encoding))]
    for buffer in buffers:
        parts += [buffer, _padding(len(buffer))]
    _check_size(sum(map(len, parts)), size_bytes_max)
    return parts


def _encode(value: object, size_bytes_max: int | None, attached: Attached | None) -> bytes:
    if type(value) in (bytes, str):
        _check_size(len(value), size_bytes_max)  # type: ignore[arg-type]  # both have a length
    try:
        if type(value) in LEAVES or is_plain(value, size_bytes_max):
            data = _pack(value)
        else:
            data = _pack(Lowering(LEAVES, size_bytes_max, attached).lower(value, 0))
    except (OverflowError, UnicodeEncodeError):
        if attached is not None:
            attached.buffers.clear()
        data = _encode_carefully(value, size_bytes_max)
    except (Uncarried, RecursionError) as error:
        raise _refusal(error) from None
    _check_size(len(data), size_bytes_max)
    return data


def _check_size(size: int, size_bytes_max: int | None) -> None:
    if size_bytes_max is not None and size > size_bytes_max:
        raise TooLarge(
            f"the result takes {size} bytes, the limit is {size_bytes_max}",
            remedy="Return less, or write it to a file and return the file's name.",
        )


def _padding(size: int) -> bytes:
    return bytes(-size % ALIGNMENT_BYTES)


def decode_value(data: bytes | bytearray | memoryview) -> object:
    """The value that `data` encodes. Runs no code of the sender's and takes memory in proportion to `data`.

    Attached arrays stay where they are in `data` if it is writable: nothing else may change it then.

    Dataclasses, enums and named tuples become instances of the receiver's own classes, built without their
    constructors: what a constructor would check is not checked. The receiver's own `__hash__` and `__eq__` run
    where such an instance is a key or an element of a set.

    Raises:
        CodecError: the bytes are not an encoding of a value, or need a class that is not loaded here, or numpy.
    """
    try:
        if data[:1] == bytes([ATTACHED_MARK]):
            return _decode_attached(memoryview(data))
        return decode_top(data)
    except CodecError:
        raise
    except Exception as error:
        # Constructors refuse bad fields in many ways, and hashing a key runs the receiver's own `__hash__`.
        raise CodecError(
            f"not a valid encoding of a value: {type(error).__name__}: {str(error)[:REASON_CHARS_MAX]}",
            remedy="The peer that computed it is broken, or runs another version: run the task elsewhere.",
        ) from None


def _decode_attached(data: memoryview) -> object:
    _, count, size = _COUNT.unpack_from(data)
    if count > ATTACHED_MAX:
        raise CodecError(f"{count} attached buffers, the limit is {ATTACHED_MAX}")
    sizes = [size, *struct.unpack_from(f">{count}Q", data, _COUNT.size)]
    at = _COUNT.size + 8 * count
    parts: list[memoryview] = []
    for part_bytes in sizes:
        at += -at % ALIGNMENT_BYTES
        if part_bytes > len(data) - at:
            raise CodecError("an attached buffer is cut off")
        parts.append(data[at : at + part_bytes])
        at += part_bytes
    return decode_attached(parts[0], parts[1:])


def _encode_carefully(value: object, size_bytes_max: int | None) -> bytes:
    """For values with an integer over 64 bits or a lone surrogate: checks each number and text."""
    try:
        return _pack(Lowering(CAREFUL_LEAVES, size_bytes_max).lower(value, 0))
    except (Uncarried, RecursionError) as error:
        raise _refusal(error) from None
    except OverflowError:
        raise TooLarge("one part of the result exceeds 4 GiB", remedy="Write it to a file instead.") from None


def _refusal(error: Uncarried | RecursionError) -> CodecError:
    if isinstance(error, RecursionError):
        return CodecError(
            "the result nests too deeply",
            remedy="Return a flatter value, or return it from a shallower call.",
        )
    steps = error.path[::-1]
    if len(steps) > PATH_STEPS_MAX:
        steps = [*steps[:PATH_STEPS_MAX], "…"]
    return CodecError(f"result{''.join(steps)}: {error.what}", remedy=error.remedy)
