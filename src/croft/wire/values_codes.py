"""What both directions of the safe codec share: extension codes and limits."""

from __future__ import annotations

from typing import Final

DEPTH_MAX: Final = 200
"""How deep containers may nest. Deeper ones, and those that contain themselves, are refused."""
ITEMS_MAX: Final = 1 << 28
"""How many items a value may have in total when the caller states no limit in bytes."""
FRACTION_BYTES_MAX: Final = 16 << 10
"""Longest numerator or denominator: reducing a fraction takes quadratic time."""
NAME_CHARS_MAX: Final = 500
"""Longest name of a class with its module, or of a time zone."""

ATTACHED_BYTES_MIN: Final = 256 << 10
"""Arrays of this size and more travel beside the encoding, see `croft.wire.values_attached`."""

FACTORIES: Final[dict[str, type]] = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)
}
"""What a `defaultdict` may fill in, by name."""


class Code:
    """The MessagePack extension code of each type. Codes are for ever; they are plain integers for msgspec."""

    TUPLE: Final = 1
    INT: Final = 2
    STR: Final = 3
    COMPLEX: Final = 4
    BYTEARRAY: Final = 5
    DICT: Final = 6
    SET: Final = 7
    FROZENSET: Final = 8
    DATETIME: Final = 9
    DATE: Final = 10
    TIME: Final = 11
    TIMEDELTA: Final = 12
    TIMEZONE: Final = 13
    ZONE: Final = 14
    DECIMAL: Final = 15
    FRACTION: Final = 16
    UUID: Final = 17
    PATH: Final = 18
    RANGE: Final = 19
    SLICE: Final = 20
    ELLIPSIS: Final = 21
    COUNTER: Final = 22
    ORDERED_DICT: Final = 23
    DEFAULT_DICT: Final = 24
    DEQUE: Final = 25
    ARRAY: Final = 26
    ENUM: Final = 27
    FLAG: Final = 28
    DATACLASS: Final = 29
    NAMED_TUPLE: Final = 30
    NUMPY_ARRAY: Final = 31
    NUMPY_SCALAR: Final = 32
    NUMPY_ATTACHED: Final = 33
