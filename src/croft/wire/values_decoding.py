"""Rebuilds Python values from MessagePack extensions: the receiving half of `croft.wire.values`."""

from __future__ import annotations

import collections
import datetime
import struct
import sys
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from msgspec.msgpack import Decoder

from croft.errors import CodecError
from croft.wire import values_classes
from croft.wire.values_codes import DEPTH_MAX, FACTORIES, FRACTION_BYTES_MAX, NAME_CHARS_MAX, Code

if TYPE_CHECKING:
    import array

_unpack = Decoder().decode
_COMPLEX = struct.Struct(">dd")


class _Extensions:
    """Decodes extensions at one depth; what is inside them, at the next. Stateless but for what is attached."""

    def __init__(self, depth: int, attached: list[memoryview | None] | None = None) -> None:
        self._depth = depth
        self._attached = attached

    def lift(self, code: int, payload: memoryview) -> object:
        """The value of one extension. Raises CodecError, or whatever the type's own constructor raises."""
        if self._depth >= DEPTH_MAX:
            raise CodecError(f"nested more than {DEPTH_MAX} deep")
        scalar = _SCALARS.get(code)
        if scalar is not None:
            return scalar(payload)
        container = _CONTAINERS.get(code)
        if code == Code.NUMPY_ATTACHED and self._attached is not None:
            container = self._lift_attached
        if container is None:
            raise CodecError(
                f"type code {code} is not known here",
                remedy="The peer that computed it runs a newer version: update this one.",
            )
        content = self._inner().decode(payload)
        if type(content) is not list:
            raise CodecError(f"{container.__name__.strip('_')} without its parts")
        return container(content)

    def _inner(self) -> Decoder[Any]:
        if self._attached is None:
            return _DECODERS[self._depth + 1]
        return Decoder(ext_hook=_Extensions(self._depth + 1, self._attached).lift)

    def _lift_attached(self, content: list[Any]) -> object:
        from croft.wire import values_numpy

        return values_numpy.rebuild_attached(content, self._attached or [])


def _lift_int(payload: memoryview) -> int:
    return int.from_bytes(payload, "big", signed=True)


def _lift_str(payload: memoryview) -> str:
    return str(payload, "utf-8", "surrogatepass")


def _lift_complex(payload: memoryview) -> complex:
    return complex(*_COMPLEX.unpack(payload))


def _lift_zone(payload: memoryview) -> object:
    from zoneinfo import ZoneInfo

    key = _unpack(payload)
    if type(key) is not str or len(key) > NAME_CHARS_MAX:
        raise CodecError("time zone without a name")
    try:
        return ZoneInfo(key)
    except (KeyError, ValueError, OSError):
        raise CodecError(
            f"the time zone {key!r} is not known here", remedy="Install `tzdata`, or return times in UTC."
        ) from None


def _lift_decimal(payload: memoryview) -> Decimal:
    return Decimal(str(payload, "ascii"))


def _lift_uuid(payload: memoryview) -> UUID:
    return UUID(bytes=bytes(payload))


def _lift_ellipsis(payload: memoryview) -> object:
    if payload:
        raise CodecError("an ellipsis has no parts")
    return ...


def _paired(content: list[Any]) -> Iterable[tuple[Any, Any]]:
    if len(content) % 2:
        raise CodecError("a key without its value")
    return zip(content[::2], content[1::2], strict=True)


def _lift_dict(content: list[Any]) -> dict[Any, Any]:
    return dict(_paired(content))


def _lift_counter(content: list[Any]) -> collections.Counter[Any]:
    counter: collections.Counter[Any] = collections.Counter()
    dict.update(counter, _paired(content))
    return counter


def _lift_ordered_dict(content: list[Any]) -> collections.OrderedDict[Any, Any]:
    return collections.OrderedDict(_paired(content))


def _lift_default_dict(content: list[Any]) -> collections.defaultdict[Any, Any]:
    name, pairs = content
    return collections.defaultdict(None if name is None else FACTORIES[name], _paired(pairs))


def _lift_deque(content: list[Any]) -> collections.deque[Any]:
    maxlen, items = content
    return collections.deque(items, maxlen)


def _lift_datetime(content: list[Any]) -> datetime.datetime:
    year, month, day, hour, minute, second, microsecond, fold, zone = content
    return datetime.datetime(year, month, day, hour, minute, second, microsecond, zone, fold=fold)


def _lift_time(content: list[Any]) -> datetime.time:
    hour, minute, second, microsecond, fold, zone = content
    return datetime.time(hour, minute, second, microsecond, zone, fold=fold)


def _lift_date(content: list[Any]) -> datetime.date:
    year, month, day = content
    return datetime.date(year, month, day)


def _lift_timedelta(content: list[Any]) -> datetime.timedelta:
    days, seconds, microseconds = map(_whole, content)
    return datetime.timedelta(days, seconds, microseconds)


def _lift_timezone(content: list[Any]) -> datetime.timezone:
    days, seconds, microseconds, *name = content
    return datetime.timezone(datetime.timedelta(days, seconds, microseconds), *name)


def _lift_fraction(content: list[Any]) -> object:
    from fractions import Fraction

    numerator, denominator = map(_whole, content)
    if max(numerator.bit_length(), denominator.bit_length()) >= 8 * FRACTION_BYTES_MAX:
        raise CodecError("a fraction with too many digits")
    return Fraction(numerator, denominator)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise CodecError("a number that must be whole is not")
    return value


def _lift_path(content: list[Any]) -> object:
    import pathlib

    name, text = content
    is_windows = {"PureWindowsPath": True, "WindowsPath": True, "PurePosixPath": False, "PosixPath": False}[name]
    pure = pathlib.PureWindowsPath if is_windows else pathlib.PurePosixPath
    # A path to files of the other family of systems can only be a pure one here.
    if name.startswith("Pure") or not issubclass(type(pathlib.Path()), pure):
        return pure(text)
    return pathlib.Path(text)


def _lift_range(content: list[Any]) -> range:
    start, stop, step = content
    return range(start, stop, step)


def _lift_slice(content: list[Any]) -> slice:
    start, stop, step = content
    return slice(start, stop, step)


def _lift_array(content: list[Any]) -> array.array[Any]:
    import array

    typecode, item_bytes, byteorder, content_bytes = content
    if typecode == "u":
        return array.array("u", content_bytes.decode("utf-8", "surrogatepass"))
    lifted: array.array[Any] = array.array(typecode)
    if lifted.itemsize != item_bytes:
        raise CodecError(
            f"array items of type {typecode!r} take {item_bytes} bytes there and {lifted.itemsize} here",
            remedy="Return a numpy array with an explicit dtype.",
        )
    lifted.frombytes(content_bytes)
    if byteorder != sys.byteorder:
        lifted.byteswap()
    return lifted


def _lift_numpy_array(content: list[Any]) -> object:
    from croft.wire import values_numpy

    return values_numpy.rebuild_array(content)


def _lift_numpy_scalar(content: list[Any]) -> object:
    from croft.wire import values_numpy

    return values_numpy.rebuild_scalar(content)


_SCALARS: Final[dict[int, Callable[[memoryview], object]]] = {
    Code.INT: _lift_int,
    Code.STR: _lift_str,
    Code.COMPLEX: _lift_complex,
    Code.BYTEARRAY: bytearray,
    Code.ZONE: _lift_zone,
    Code.DECIMAL: _lift_decimal,
    Code.UUID: _lift_uuid,
    Code.ELLIPSIS: _lift_ellipsis,
}
"""Extensions whose payload is bytes, by code."""

_CONTAINERS: Final[dict[int, Callable[[list[Any]], object]]] = {
    Code.TUPLE: tuple,
    Code.DICT: _lift_dict,
    Code.SET: set,
    Code.FROZENSET: frozenset,
    Code.DATETIME: _lift_datetime,
    Code.DATE: _lift_date,
    Code.TIME: _lift_time,
    Code.TIMEDELTA: _lift_timedelta,
    Code.TIMEZONE: _lift_timezone,
    Code.FRACTION: _lift_fraction,
    Code.PATH: _lift_path,
    Code.RANGE: _lift_range,
    Code.SLICE: _lift_slice,
    Code.COUNTER: _lift_counter,
    Code.ORDERED_DICT: _lift_ordered_dict,
    Code.DEFAULT_DICT: _lift_default_dict,
    Code.DEQUE: _lift_deque,
    Code.ARRAY: _lift_array,
    Code.ENUM: values_classes.rebuild_enum,
    Code.FLAG: values_classes.rebuild_flag,
    Code.DATACLASS: values_classes.rebuild_dataclass,
    Code.NAMED_TUPLE: values_classes.rebuild_named_tuple,
    Code.NUMPY_ARRAY: _lift_numpy_array,
    Code.NUMPY_SCALAR: _lift_numpy_scalar,
}
"""Extensions whose payload is a list of values, by code."""

_DECODERS: Final = [Decoder(ext_hook=_Extensions(depth).lift) for depth in range(DEPTH_MAX + 1)]

decode_top = _DECODERS[0].decode
"""The value that bytes encode. Raises whatever a constructor raises."""


def decode_attached(data: memoryview, attached: list[memoryview]) -> object:
    """The same, with what travelled beside it. Raises whatever a constructor raises."""
    return Decoder(ext_hook=_Extensions(0, list(attached)).lift).decode(data)
