"""Values of every carried type by name, and classes for them: what the golden bytes and the unit tests share."""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import fractions
import pathlib
import typing
import uuid
import zoneinfo
from dataclasses import dataclass, field, fields, is_dataclass

import numpy as np


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


class Permission(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Point(typing.NamedTuple):
    x: float
    y: float


@dataclass
class Row:
    name: str
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Frozen:
    row: Row
    kind: Colour


class Outer:
    @dataclass
    class Inner:
        number: int


UTC = datetime.UTC
EAST = datetime.timezone(datetime.timedelta(hours=5, minutes=30), "IST")

CARRIED: dict[str, object] = {
    "none": None,
    "true": True,
    "int": -5,
    "int_64": 2**64 - 1,
    "int_big": 2**200,
    "int_big_negative": -(2**63) - 1,
    "float": 0.1,
    "float_infinite": float("-inf"),
    "complex": complex(1.5, -0.0),
    "str": "grüße",
    "str_surrogate": "a\ud800b",
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"abc"),
    "list": [1, [2.0, None], "x"],
    "tuple": (1, (2, [3]), ()),
    "dict": {"b": 1, "a": [True]},
    "dict_of_other_keys": {1: "a", None: "b", (1, 2): "c", 2.5: {"d": 2**70}},
    "set": {3, 1, 2, "x"},
    "frozenset": frozenset({(1, 2), (3, 4)}),
    "datetime": datetime.datetime(2024, 2, 29, 23, 59, 58, 123456),  # noqa: DTZ001 - naive ones are carried too
    "datetime_utc": datetime.datetime(2024, 2, 29, tzinfo=UTC),
    "datetime_fixed": datetime.datetime(2024, 2, 29, 1, 2, tzinfo=EAST),
    "datetime_zone": datetime.datetime(2024, 10, 27, 2, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"), fold=1),
    "date": datetime.date(1, 1, 1),
    "time": datetime.time(1, 2, 3, 4, tzinfo=UTC),
    "timedelta": datetime.timedelta(days=-3, seconds=5, microseconds=7),
    "timezone": datetime.timezone(datetime.timedelta(hours=-3)),
    "zone": zoneinfo.ZoneInfo("Asia/Tokyo"),
    "decimal": decimal.Decimal("-1.500E+7"),
    "fraction": fractions.Fraction(-3, 7),
    "uuid": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    "path_pure_posix": pathlib.PurePosixPath("/a/b c"),
    "path_pure_windows": pathlib.PureWindowsPath("C:\\a\\b"),
    "range": range(10, -5, -3),
    "slice": slice(None, 5, (1, 2)),
    "ellipsis": ...,
    "counter": collections.Counter("abca"),
    "ordered_dict": collections.OrderedDict([("z", 1), ("a", 2)]),
    "default_dict": collections.defaultdict(list, {"a": [1]}),
    "default_dict_without": collections.defaultdict(None, {"a": 1}),
    "deque": collections.deque([1, 2, 3], maxlen=3),
    "array": array.array("d", [1.0, -2.5]),
    "array_text": array.array("u", "añ"),
    "enum": Colour.GREEN,
    "flag": Permission.READ | Permission.RUN,
    "flag_none": Permission(0),
    "dataclass": Row("a", [1.0]),
    "dataclass_nested": Frozen(Row("b"), Colour.RED),
    "class_in_class": Outer.Inner(7),
    "named_tuple": Point(1.0, 2.0),
    "numpy_array": np.arange(6, dtype="<i2").reshape(2, 3),
    "numpy_fortran": np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)),
    "numpy_empty": np.zeros((0, 3), dtype="?"),
    "numpy_text": np.array(["a", "bcd"]),
    "numpy_dates": np.array(["2024-01-01", "NaT"], dtype="datetime64[D]"),
    "numpy_structured": np.array(
        [(1, 2.0, [3, 4])], dtype=np.dtype([("a", "i1"), ("b", "f8"), ("c", "u2", (2,))], align=True)
    ),
    "numpy_scalar": np.float32(1.5),
    "numpy_scalar_date": np.datetime64("2024-01-01T00:00:00.000000001"),
    "numpy_scalar_text": np.str_("a\x00"),
    "numpy_scalar_bytes": np.bytes_(b"a\x00"),
    "mixed": {"rows": [Row("a"), Point(1, 2)], "n": (np.int64(1), {"k": {1}})},
}


def same(left: object, right: object) -> bool:
    """Whether two values are equal with equal types all the way down, NaN and signs of zero included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray | np.generic):
        assert isinstance(right, np.ndarray | np.generic)
        flags = "F_CONTIGUOUS", "C_CONTIGUOUS"
        return (
            left.dtype == right.dtype
            and left.dtype.isalignedstruct == right.dtype.isalignedstruct
            and left.shape == right.shape
            and (not isinstance(left, str | bytes) or len(left) == len(right))
            and (left.tobytes() == right.tobytes() or (left.dtype.names is not None and bool(np.all(left == right))))
            and (isinstance(left, np.generic) or [left.flags[f] for f in flags] == [right.flags[f] for f in flags])
        )
    if isinstance(left, float | complex | decimal.Decimal):
        return repr(left) == repr(right)
    if isinstance(left, dict):
        assert isinstance(right, dict)
        factories = [getattr(each, "default_factory", None) for each in (left, right)]
        return factories[0] is factories[1] and same(list(left.items()), list(right.items()))
    if isinstance(left, list | tuple | collections.deque):
        assert isinstance(right, list | tuple | collections.deque)
        bounds = [getattr(each, "maxlen", None) for each in (left, right)]
        return bounds[0] == bounds[1] and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, datetime.datetime | datetime.time):
        assert isinstance(right, datetime.datetime | datetime.time)
        return left == right and left.fold == right.fold and same(left.tzinfo, right.tzinfo)
    if isinstance(left, datetime.timezone):
        return left == right and left.tzname(None) == right.tzname(None)  # type: ignore[attr-defined] # same types
    if isinstance(left, set | frozenset):
        assert isinstance(right, set | frozenset)
        return left == right and sorted(type(each).__name__ for each in left) == sorted(
            type(each).__name__ for each in right
        )
    if is_dataclass(left):
        return all(same(getattr(left, each.name), getattr(right, each.name)) for each in fields(left))
    return bool(left == right)
