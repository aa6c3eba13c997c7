"""Decides whether a value fits a JSON Schema that somebody else published, and reads values that people wrote as text.

Only the keywords that annotations of Python give are understood (msgspec's subset of JSON Schema 2020-12); unknown ones
promise nothing. A schema is hostile until it is opened: bytes, depth and number of parts are bounded, references lead
to definitions of its own, and a check takes a bounded number of steps. Patterns are left to the provider, whose
expressions they are. Sans-IO.
"""

from __future__ import annotations

import datetime
import decimal
import operator
import uuid
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

import msgspec

from croft.errors import PeerMisbehaved

SCHEMA_BYTES_MAX: Final = 16 << 10
DEPTH_MAX: Final = 16
PARTS_MAX: Final = 1_000
STEPS_MAX: Final = 20_000
"""Of one check; and for values of many parts so many more:"""
STEPS_PER_PART_MAX: Final = 32
VALUE_DEPTH_MAX: Final = 200
SHOWN_CHARS_MAX: Final = 60
STEP: Final = "capability schema"

FILE: Final = "croft.file"
"""A file among values: an object with its name under this key, and its bytes under `content`."""
CONTENT: Final = "content"
PATH_FORMAT: Final = "path"
CLASS: Final = "x-class"
"""Names a class that JSON does not know, such as `numpy.ndarray`."""

Schema = Mapping[str, Any]

_TEXTS = (str, datetime.date, datetime.time, datetime.timedelta, uuid.UUID, decimal.Decimal)
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": _TEXTS,
    "array": (list, tuple, set, frozenset),
    "object": (dict,),
}

_PLAIN: Final[Mapping[object, type]] = {"integer": int, "number": float, "boolean": bool, "string": str}


class Mismatch(Exception):
    """A part of a value that does not fit: where it is, and what is wrong with it."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where} {what}".strip())
        self.where = where
        self.what = what

    def under(self, step: str) -> Mismatch:
        """The same, seen from one level above."""
        return Mismatch(step + self.where, self.what)


def open_schema(data: bytes) -> Schema:
    """A schema that somebody sent. Raises PeerMisbehaved if it is none, or larger or deeper than any needs to be."""
    if len(data) > SCHEMA_BYTES_MAX:
        raise PeerMisbehaved(f"{len(data)} bytes, the limit is {SCHEMA_BYTES_MAX}", step=STEP)
    try:
        schema = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise PeerMisbehaved("not JSON", step=STEP) from None
    if not isinstance(schema, dict):
        raise PeerMisbehaved("not an object", step=STEP)
    _bound(schema)
    return schema


def _bound(schema: Schema) -> None:
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    parts = 0
    while waiting:
        part, depth = waiting.pop()
        parts += 1
        if depth > DEPTH_MAX or parts > PARTS_MAX:
            raise PeerMisbehaved(f"deeper than {DEPTH_MAX} or of more than {PARTS_MAX} parts", step=STEP)
        if isinstance(part, dict):
            waiting += [(value, depth + 1) for value in part.values()]
        elif isinstance(part, list):
            waiting += [(value, depth + 1) for value in part]


class Checker:
    """Checks values against one opened schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        definitions = schema.get("$defs")
        self._definitions: Schema = definitions if isinstance(definitions, dict) else {}
        self._steps, self._steps_max = 0, STEPS_MAX
        self._value: object = None

    def check(self, value: object, schema: Schema | None = None) -> None:
        """Raises Mismatch unless `value` fits, by default the whole schema, else a part of it."""
        self._steps, self._steps_max, self._value = 0, STEPS_MAX, value
        self._check(value, self._schema if schema is None else schema, 0)

    def _check(self, value: Any, schema: Any, depth: int) -> None:
        self._steps += 1
        if self._steps > self._steps_max:
            self._steps_max = max(STEPS_MAX, STEPS_PER_PART_MAX * _parts_of(self._value))
        if self._steps > self._steps_max or depth > VALUE_DEPTH_MAX:
            raise Mismatch("", "takes too long to check, or nests too deeply")
        schema = self.resolved(schema)
        if not isinstance(schema, dict):
            if schema is False:
                raise Mismatch("", "is one too many")
            return
        if (choices := schema.get("anyOf")) is not None and isinstance(choices, list):
            self._check_any(value, choices, schema, depth)
            return
        if "enum" in schema or "const" in schema:
            allowed = schema.get("enum", [schema.get("const")])
            if not any(value == one and type(value) is type(one) for one in allowed if isinstance(allowed, list)):
                raise Mismatch("", f"is {_shown(value)}, must be one of {_shown(allowed)}")
        self._check_type(value, schema)
        if isinstance(value, bool):
            return
        if isinstance(value, int | float):
            _check_bounds(value, schema)
        elif isinstance(value, str | bytes | bytearray | memoryview):
            _check_size(len(value), schema, "Length", "letters" if isinstance(value, str) else "bytes")
        elif isinstance(value, list | tuple | set | frozenset):
            self._check_items(value, schema, depth)
        elif isinstance(value, dict) and not is_file(value):
            self._check_fields(value, schema, depth)

    def resolved(self, schema: Any) -> Any:
        """What a part stands for, if it is a reference."""
        for _ in range(DEPTH_MAX):
            reference = schema.get("$ref") if isinstance(schema, dict) else None
            if not isinstance(reference, str):
                return schema
            schema = self._definitions.get(reference.rpartition("/")[2], False)
        return False

    def _check_type(self, value: Any, schema: Schema) -> None:
        wanted = schema.get("type")
        if CLASS in schema:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            if kind != schema[CLASS]:
                raise Mismatch("", f"is {_kind(value)}, must be a {_shown(schema[CLASS])}")
        elif schema.get("format") == PATH_FORMAT:
            if not (isinstance(value, PurePath) or is_file(value)):
                raise Mismatch("", f"is {_kind(value)}, must be a file")
        elif schema.get("contentEncoding") == "base64":
            if not isinstance(value, bytes | bytearray | memoryview):
                raise Mismatch("", f"is {_kind(value)}, must be bytes")
        elif isinstance(wanted, str) and wanted in _TYPES:
            fits = isinstance(value, _TYPES[wanted]) and (not isinstance(value, bool) or wanted == "boolean")
            if not fits or (wanted == "object" and is_file(value)):
                raise Mismatch("", f"is {_kind(value)}, must be {_named(wanted)}")

    def _check_any(self, value: Any, choices: Sequence[Any], schema: Schema, depth: int) -> None:
        mismatches: list[Mismatch] = []
        for choice in choices:
            try:
                self._check(value, choice, depth + 1)
                return
            except Mismatch as mismatch:
                mismatches.append(mismatch)
        # The one that came furthest says most.
        deepest = max(mismatches, key=lambda one: len(one.where), default=Mismatch("", "fits nothing"))
        if deepest.where or len(mismatches) == 1:
            raise deepest
        raise Mismatch("", f"is {_kind(value)}, must be {describe(schema)}")

    def _check_items(self, value: Any, schema: Schema, depth: int) -> None:
        _check_size(len(value), schema, "Items", "items")
        first = schema.get("prefixItems")
        first = first if isinstance(first, list) else []
        rest = schema.get("items", {})
        plain = _PLAIN.get(rest.get("type")) if isinstance(rest, dict) and len(rest) == 1 else None
        if plain is not None and not first and all(type(item) is plain for item in value):
            return  # what holds millions of numbers is checked at once
        for at, item in enumerate(value):
            part = first[at] if at < len(first) else rest
            if part == {}:
                continue
            try:
                self._check(item, part, depth + 1)
            except Mismatch as mismatch:
                raise mismatch.under(f"[{at}]") from None

    def _check_fields(self, value: Mapping[Any, Any], schema: Schema, depth: int) -> None:
        fields = schema.get("properties")
        fields = fields if isinstance(fields, dict) else {}
        required = schema.get("required")
        for name in required if isinstance(required, list) else []:
            if name not in value:
                raise Mismatch(f".{name}", "is missing")
        others = schema.get("additionalProperties", {})
        for name, item in value.items():
            part = fields.get(name, others)
            if part is False:
                raise Mismatch(f".{name}", "is unknown")
            try:
                self._check(item, part, depth + 1)
            except Mismatch as mismatch:
                raise mismatch.under(f".{name}") from None


def is_file(value: object) -> bool:
    """Whether a value stands for a file."""
    return isinstance(value, dict) and len(value) == 2 and FILE in value and CONTENT in value


def describe(schema: Any, definitions: Schema | None = None) -> str:
    """A schema as Python people write types, such as `list[str] | None`."""
    return _described(schema, definitions or {}, 0)


def _described(schema: Any, definitions: Schema, depth: int) -> str:
    if not isinstance(schema, dict) or depth > DEPTH_MAX:
        return "any"
    if isinstance(reference := schema.get("$ref"), str):
        return _shown(reference.rpartition("/")[2])
    if isinstance(choices := schema.get("anyOf"), list):
        return " | ".join(_described(choice, definitions, depth + 1) for choice in choices)
    if isinstance(allowed := schema.get("enum"), list):
        return " | ".join(map(repr, allowed))[: 2 * SHOWN_CHARS_MAX]
    if CLASS in schema:
        return _shown(str(schema[CLASS]).rpartition(".")[2])
    if schema.get("format") == PATH_FORMAT:
        return "Path"
    if schema.get("contentEncoding") == "base64":
        return "bytes"
    names = {"integer": "int", "number": "float", "boolean": "bool", "string": "str", "null": "None"}
    wanted = schema.get("type")
    if wanted == "array":
        if isinstance(first := schema.get("prefixItems"), list):
            return f"tuple[{', '.join(_described(item, definitions, depth + 1) for item in first)}]"
        items = schema.get("items")
        return f"list[{_described(items, definitions, depth + 1)}]" if items else "list"
    if wanted == "object":
        values = schema.get("additionalProperties")
        return f"dict[str, {_described(values, definitions, depth + 1)}]" if values else "dict"
    return names.get(wanted, "any") if isinstance(wanted, str) else "any"


# --- text ------------------------------------------------------------------------------------------------------------


def read_text(text: str, schema: Any, checker: Checker) -> object:
    """The value that people mean by a text, where such a value is wanted. Raises Mismatch."""
    schema = checker.resolved(schema)
    if isinstance(schema, dict) and isinstance(choices := schema.get("anyOf"), list):
        # Text fits everything that is written, so it comes last.
        for choice in sorted(choices, key=lambda one: _described(one, {}, 0) == "str"):
            try:
                value = read_text(text, choice, checker)
                checker.check(value, choice)
                return value
            except Mismatch:
                continue
        raise Mismatch("", f"is {_shown(text)}, must be {describe(schema)}")
    wanted = schema.get("type") if isinstance(schema, dict) else None
    if wanted == "string" or (isinstance(schema, dict) and schema.get("format") == PATH_FORMAT):
        return text
    if wanted == "boolean" and text.lower() in ("yes", "no", "on", "off"):
        return text.lower() in ("yes", "on")
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError:
        if wanted is None:
            return text
        raise Mismatch("", f"is {_shown(text)}, must be {describe(schema)}") from None


def _parts_of(value: object) -> int:
    parts, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        parts += 1
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one
    return parts


# --- inside ----------------------------------------------------------------------------------------------------------


def _check_bounds(value: float, schema: Schema) -> None:
    for word, fits, says in (
        ("minimum", operator.ge, "at least"),
        ("maximum", operator.le, "at most"),
        ("exclusiveMinimum", operator.gt, "more than"),
        ("exclusiveMaximum", operator.lt, "less than"),
    ):
        bound = schema.get(word)
        if isinstance(bound, int | float) and not fits(value, bound):
            raise Mismatch("", f"is {_shown(value)}, must be {says} {bound}")


def _check_size(size: int, schema: Schema, what: str, unit: str) -> None:
    least, most = schema.get(f"min{what}"), schema.get(f"max{what}")
    if isinstance(least, int) and size < least:
        raise Mismatch("", f"has {size} {unit}, must have at least {least}")
    if isinstance(most, int) and size > most:
        raise Mismatch("", f"has {size} {unit}, must have at most {most}")


def _kind(value: object) -> str:
    if is_file(value):
        return "a file"
    name = type(value).__name__
    shown = f" ({_shown(value)})" if isinstance(value, str | int | float) else ""
    return {"NoneType": "nothing", "str": "text", "int": "a whole number", "float": "a number"}.get(name, name) + shown


def _named(wanted: str) -> str:
    names = {"integer": "a whole number", "number": "a number", "string": "text", "array": "a list"}
    return names.get(wanted, {"boolean": "true or false", "object": "an object", "null": "nothing"}.get(wanted, wanted))


def _shown(value: object) -> str:
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value)[: SHOWN_CHARS_MAX + 1])
    return text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…"
