"""Turns Python values into what MessagePack carries: the sending half of `croft.wire.values`."""

from __future__ import annotations

import collections
import datetime
import enum
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec.msgpack import Encoder, Ext

from croft.errors import TooLarge
from croft.wire import values_classes
from croft.wire.values_codes import DEPTH_MAX, FACTORIES, FRACTION_BYTES_MAX, ITEMS_MAX, Code

KEY_TEXT_MAX: Final = 40
"""How much of a dictionary's key an error shows."""

_pack = Encoder().encode
_COMPLEX = struct.Struct(">dd")

LEAVES: Final = frozenset({type(None), bool, int, float, str, bytes})
_PLAIN_CONTAINERS: Final = frozenset({list, dict})
CAREFUL_LEAVES: Final = frozenset({type(None), bool, float, bytes})


class Uncarried(Exception):
    """A part cannot be carried. `path` collects where it is while the encoder unwinds, innermost first."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.path: list[str] = []


def _type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _key_text(key: object) -> str:
    if type(key) in LEAVES:
        text = ascii(key)
        return text if len(text) <= KEY_TEXT_MAX else text[: KEY_TEXT_MAX - 1] + "…"
    return f"<{_type_name(type(key))}>"


def _kinds(items: Iterable[object]) -> set[type]:
    """The types that occur. Two passes in C where there is only one, which is the common case."""
    kinds = list(map(type, items))
    return {kinds[0]} if kinds and kinds.count(kinds[0]) == len(kinds) else set(kinds)


def is_plain(value: object, size_bytes_max: int | None) -> bool:
    """Whether msgspec encodes `value` without loss as it is. Looks at a whole level at a time, for speed."""
    level: list[Any] = [value]
    items_left = ITEMS_MAX if size_bytes_max is None else size_bytes_max
    for _ in range(DEPTH_MAX):
        kinds = _kinds(level) - LEAVES
        if not kinds:
            return True
        if not kinds <= _PLAIN_CONTAINERS:
            return False
        lists: list[list[Any]] = [item for item in level if type(item) is list]
        dicts: list[dict[Any, Any]] = [item for item in level if type(item) is dict]
        items_left -= sum(map(len, lists)) + sum(map(len, dicts))
        if items_left < 0 or not _kinds(chain.from_iterable(dicts)) <= LEAVES:
            return False
        level = list(chain.from_iterable(lists))
        for mapping in dicts:
            level.extend(mapping.values())
    return False


@dataclass(slots=True)
class Attached:
    """Collects what travels beside an encoding: arrays of `bytes_min` and more, without a copy."""

    bytes_min: int
    buffers: list[memoryview] = field(default_factory=list)


class Lowering:
    """Turns a value into one that msgspec encodes without loss: what it does not know becomes an `Ext`."""

    def __init__(self, leaves: frozenset[type], size_bytes_max: int | None, attached: Attached | None = None) -> None:
        self._leaves = leaves
        self._attached = attached
        # Every item takes a byte at least, so this refuses early what would exceed the size in the end.
        self._items_left = ITEMS_MAX if size_bytes_max is None else size_bytes_max

    def lower(self, value: object, depth: int) -> object:
        """`value` itself if it is a leaf, else what stands for it on the wire."""
        kind = type(value)
        if kind in self._leaves:
            return value
        method = _METHODS.get(kind) or _late_method(kind, value)
        return method(self, value, depth)

    def _enter(self, count: int, depth: int) -> None:
        if depth >= DEPTH_MAX:
            raise Uncarried(
                f"nested more than {DEPTH_MAX} deep, or contains itself",
                "Return a flatter value without cycles: lists of rows, or ids instead of references.",
            )
        self._items_left -= count
        if self._items_left < 0:
            raise TooLarge(
                "the result has more items than its limit in bytes allows",
                remedy="Return less, or write it to a file and return the file's name.",
            )

    def items(self, values: Sequence[object] | set[Any] | frozenset[Any], depth: int, label: str = "") -> list[object]:
        """Each value lowered, one level down. `label` names the part in errors, instead of its index."""
        self._enter(len(values), depth)
        lowered: list[object] = []
        try:
            for value in values:
                lowered.append(value if type(value) in self._leaves else self.lower(value, depth + 1))
        except Uncarried as error:
            error.path.append(label or f"[{len(lowered)}]")
            raise
        return lowered

    def named(self, values: Iterable[tuple[str, object]], depth: int) -> dict[str, object]:
        """Fields by name, each lowered."""
        self._enter(1, depth)
        lowered: dict[str, object] = {}
        for name, value in values:
            try:
                lowered[name] = self.lower(value, depth + 1)
            except Uncarried as error:
                error.path.append(f".{name}")
                raise
        return lowered

    def pairs(self, mapping: dict[Any, Any], depth: int) -> list[object]:
        """Key, value, key, value, …, each lowered."""
        self._enter(2 * len(mapping), depth)
        lowered: list[object] = []
        for key, value in mapping.items():
            try:
                lowered.append(self.lower(key, depth + 1))
            except Uncarried as error:
                error.path.append(f".keys()[{len(lowered) // 2}]")
                raise
            try:
                lowered.append(self.lower(value, depth + 1))
            except Uncarried as error:
                error.path.append(f"[{_key_text(key)}]")
                raise
        return lowered

    def list_(self, value: list[Any], depth: int) -> object:
        if _kinds(value) <= self._leaves:
            self._enter(len(value), depth)
            return value
        return self.items(value, depth)

    def tuple_(self, value: tuple[Any, ...], depth: int) -> object:
        return Ext(Code.TUPLE, _pack(self.list_(value, depth)))  # type: ignore[arg-type] # msgspec packs both alike

    def dict_(self, value: dict[Any, Any], depth: int) -> object:
        if not _kinds(value) <= self._leaves:
            return Ext(Code.DICT, _pack(self.pairs(value, depth)))
        self._enter(len(value), depth)
        if _kinds(value.values()) <= self._leaves:
            return value
        lowered: dict[Any, object] = {}
        for key, item in value.items():
            try:
                lowered[key] = item if type(item) in self._leaves else self.lower(item, depth + 1)
            except Uncarried as error:
                error.path.append(f"[{_key_text(key)}]")
                raise
        return lowered

    def set_(self, value: set[Any] | frozenset[Any], depth: int) -> object:
        elements = sorted(map(_pack, self.items(value, depth, label="{…}")))
        code = Code.SET if type(value) is set else Code.FROZENSET
        return Ext(code, _pack(list(map(msgspec.Raw, elements))))

    def int_(self, value: int, depth: int) -> object:
        if -(1 << 63) <= value < 1 << 64:
            return value
        return Ext(Code.INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))

    def str_(self, value: str, depth: int) -> object:
        try:
            value.encode()
        except UnicodeEncodeError:
            return Ext(Code.STR, value.encode("utf-8", "surrogatepass"))
        return value

    def complex_(self, value: complex, depth: int) -> object:
        return Ext(Code.COMPLEX, _COMPLEX.pack(value.real, value.imag))

    def bytearray_(self, value: bytearray, depth: int) -> object:
        return Ext(Code.BYTEARRAY, bytes(value))

    def range_(self, value: range, depth: int) -> object:
        return Ext(Code.RANGE, _pack(self.items((value.start, value.stop, value.step), depth)))

    def slice_(self, value: slice, depth: int) -> object:
        return Ext(Code.SLICE, _pack(self.items((value.start, value.stop, value.step), depth)))

    def ellipsis(self, value: object, depth: int) -> object:
        return Ext(Code.ELLIPSIS, b"")

    def datetime_(self, value: datetime.datetime, depth: int) -> object:
        at = (value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond)
        return Ext(Code.DATETIME, _pack([*at, value.fold, *self.items((value.tzinfo,), depth, ".tzinfo")]))

    def time_(self, value: datetime.time, depth: int) -> object:
        at = (value.hour, value.minute, value.second, value.microsecond)
        return Ext(Code.TIME, _pack([*at, value.fold, *self.items((value.tzinfo,), depth, ".tzinfo")]))

    def date(self, value: datetime.date, depth: int) -> object:
        return Ext(Code.DATE, _pack([value.year, value.month, value.day]))

    def timedelta(self, value: datetime.timedelta, depth: int) -> object:
        return Ext(Code.TIMEDELTA, _pack([value.days, value.seconds, value.microseconds]))

    def timezone(self, value: datetime.timezone, depth: int) -> object:
        offset, *name = value.__getinitargs__()  # type: ignore[attr-defined] # what pickle uses; typeshed omits it
        return Ext(Code.TIMEZONE, _pack([offset.days, offset.seconds, offset.microseconds, *self.items(name, depth)]))

    def zone(self, value: Any, depth: int) -> object:
        if value.key is None:
            raise Uncarried("a ZoneInfo without a key", "Use `ZoneInfo(name)`, or convert to UTC.")
        return Ext(Code.ZONE, _pack(value.key))

    def decimal(self, value: Decimal, depth: int) -> object:
        return Ext(Code.DECIMAL, str(value).encode())

    def fraction(self, value: Any, depth: int) -> object:
        parts = (value.numerator, value.denominator)
        if max(part.bit_length() for part in parts) >= 8 * FRACTION_BYTES_MAX:
            raise Uncarried("a Fraction with too many digits", "Return its numerator and denominator as two integers.")
        return Ext(Code.FRACTION, _pack(self.items(parts, depth)))

    def uuid(self, value: UUID, depth: int) -> object:
        return Ext(Code.UUID, value.bytes)

    def path(self, value: Any, depth: int) -> object:
        return Ext(Code.PATH, _pack(self.items((type(value).__name__, str(value)), depth)))

    def counter(self, value: Any, depth: int) -> object:
        return Ext(Code.COUNTER, _pack(self.pairs(value, depth)))

    def ordered_dict(self, value: Any, depth: int) -> object:
        return Ext(Code.ORDERED_DICT, _pack(self.pairs(value, depth)))

    def default_dict(self, value: Any, depth: int) -> object:
        name = getattr(value.default_factory, "__name__", None)
        if value.default_factory is not None and FACTORIES.get(str(name)) is not value.default_factory:
            raise Uncarried("a defaultdict whose factory is not a built-in type", "Return `dict(…)` of it.")
        return Ext(Code.DEFAULT_DICT, _pack([name, self.pairs(value, depth)]))

    def deque(self, value: Any, depth: int) -> object:
        return Ext(Code.DEQUE, _pack([value.maxlen, self.items(value, depth)]))

    def array(self, value: Any, depth: int) -> object:
        if value.typecode == "u":
            text = value.tounicode().encode("utf-8", "surrogatepass")
            return Ext(Code.ARRAY, _pack(["u", 0, "", text]))
        return Ext(Code.ARRAY, _pack([value.typecode, value.itemsize, sys.byteorder, value.tobytes()]))

    def enum(self, value: enum.Enum, depth: int) -> object:
        module, qualname = self._class_name(type(value))
        if values_classes.is_member(value):
            return Ext(Code.ENUM, _pack([module, qualname, value._name_]))
        return Ext(Code.FLAG, _pack([module, qualname, *self.items((value._value_,), depth, ".value")]))

    def dataclass(self, value: Any, depth: int) -> object:
        names = self._class_name(type(value))
        try:
            fields = values_classes.dataclass_fields(value)
        except ValueError as error:
            raise Uncarried(str(error), "Return a dict of what you need.") from None
        return Ext(Code.DATACLASS, _pack([*names, self.named(fields, depth)]))

    def named_tuple(self, value: Any, depth: int) -> object:
        names = self._class_name(type(value))
        fields = values_classes.named_tuple_fields(value)
        return Ext(Code.NAMED_TUPLE, _pack([*names, self.named(fields, depth)]))

    def numpy_array(self, value: Any, depth: int) -> object:
        attached = self._attached
        if attached is not None and value.nbytes >= attached.bytes_min:
            from croft.wire import values_numpy

            if values_numpy.is_one_piece(value):
                return Ext(Code.NUMPY_ATTACHED, _pack(values_numpy.describe_attached(value, attached.buffers)))
        return self._numpy(Code.NUMPY_ARRAY, value)

    def numpy_scalar(self, value: Any, depth: int) -> object:
        return self._numpy(Code.NUMPY_SCALAR, value)

    def _numpy(self, code: int, value: Any) -> object:
        from croft.wire import values_numpy

        try:
            return Ext(code, _pack(values_numpy.describe(value)))
        except ValueError as error:
            raise Uncarried(str(error), "Convert it with `.tolist()`, or give it a fixed-size dtype.") from None

    def _class_name(self, kind: type) -> tuple[str, str]:
        try:
            return values_classes.name_of(kind)
        except ValueError as error:
            raise Uncarried(str(error), "Return a dict, a tuple or a list of its parts.") from None


_Method = Callable[[Lowering, Any, int], object]

_METHODS: dict[type, _Method] = {
    list: Lowering.list_,
    tuple: Lowering.tuple_,
    dict: Lowering.dict_,
    set: Lowering.set_,
    frozenset: Lowering.set_,
    int: Lowering.int_,
    str: Lowering.str_,
    complex: Lowering.complex_,
    bytearray: Lowering.bytearray_,
    range: Lowering.range_,
    slice: Lowering.slice_,
    type(Ellipsis): Lowering.ellipsis,
    datetime.datetime: Lowering.datetime_,
    datetime.date: Lowering.date,
    datetime.time: Lowering.time_,
    datetime.timedelta: Lowering.timedelta,
    datetime.timezone: Lowering.timezone,
    Decimal: Lowering.decimal,
    UUID: Lowering.uuid,
    collections.Counter: Lowering.counter,
    collections.OrderedDict: Lowering.ordered_dict,
    collections.defaultdict: Lowering.default_dict,
    collections.deque: Lowering.deque,
}

_LATE: Final[dict[tuple[str, str], _Method]] = {
    ("fractions", "Fraction"): Lowering.fraction,
    ("zoneinfo", "ZoneInfo"): Lowering.zone,
    ("array", "array"): Lowering.array,
    ("pathlib", "PurePosixPath"): Lowering.path,
    ("pathlib", "PureWindowsPath"): Lowering.path,
    ("pathlib", "PosixPath"): Lowering.path,
    ("pathlib", "WindowsPath"): Lowering.path,
    ("numpy", "ndarray"): Lowering.numpy_array,
}
"""Types of modules that are loaded only when somebody uses them: module, name, how they are carried."""


def _late_method(kind: type, value: object) -> _Method:
    """How a type without an entry of its own is carried. Raises Uncarried."""
    for (module, name), method in _LATE.items():
        if getattr(sys.modules.get(module), name, None) is kind:
            _METHODS[kind] = method
            return method
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return Lowering.numpy_scalar
    if isinstance(value, enum.Enum):
        return Lowering.enum
    if values_classes.is_dataclass(kind):
        return Lowering.dataclass
    if values_classes.is_named_tuple(kind):
        return Lowering.named_tuple
    raise Uncarried(f"object of type {_type_name(kind)}", _remedy_for(kind))


def _remedy_for(kind: type) -> str:
    if kind.__module__.partition(".")[0] == "torch":
        return "Return `tensor.detach().cpu().numpy()`, or a state dict of such arrays."
    if kind.__module__.partition(".")[0] in ("pandas", "polars", "pyarrow"):
        return "Return `.to_dict('list')`, or numpy columns in a dict."
    for base in (str, int, float, list, dict, tuple, set, bytes):
        if issubclass(kind, base):
            return f"Return `{base.__name__}(…)` of it: subclasses of built-in types are not carried."
    return (
        "Return numbers, text, lists, dicts, numpy arrays or dataclasses of them; or write a file and return its name."
    )
