"""Derives the signature of a Python function from its annotations, and binds what a caller sends to its parameters.

Runs in the process that holds the function: annotations are live classes there, and nowhere else.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, Final

import msgspec

from croft.errors import PeerMisbehaved, Usage
from croft.twins.capability import Signature, open_signature
from croft.twins.capability_schema import CLASS, CONTENT, FILE, PATH_FORMAT, is_file

_STREAMS: Final = (
    collections.abc.Iterator,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncGenerator,
)
_EMPTY: Final = inspect.Parameter.empty
_DEFAULT_CHARS_MAX: Final = 100

PutFile = Callable[[str, memoryview], Path]


class Typed:
    """A function with what its annotations say. Raises Usage if it cannot be called by name from afar."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        name = getattr(function, "__name__", "function")
        try:
            hints = typing.get_type_hints(function, include_extras=True)
            parameters = inspect.signature(function).parameters.values()
        except Exception as error:
            raise Usage(f"the annotations of {name} cannot be read: {error}", remedy="Correct them.") from None
        self.types: dict[str, Any] = {}
        self.stream_in = ""
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise Usage(
                    f"{name} takes `{parameter}`, and callers from afar name each argument",
                    remedy="Give it parameters with names.",
                )
            self._add(name, parameter.name, hints.get(parameter.name, Any))
        returns = hints.get("return", Any)
        item = _item_of(returns)
        self.streams = item is not None or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        self.returns = Any if item is None and self.streams else returns if item is None else item
        self.signature = self._signature(name, {one.name: one.default for one in parameters})

    def _add(self, function: str, name: str, kind: Any) -> None:
        item = _item_of(kind)
        if item is not None:
            if self.stream_in:
                raise Usage(f"{function} takes two streams", remedy="One stream into a call is possible.")
            self.stream_in = name
        self.types[name] = kind if item is None else item

    def _signature(self, name: str, defaults: Mapping[str, Any]) -> bytes:
        kinds = [*self.types.values(), self.returns]
        try:
            schemas, definitions = msgspec.json.schema_components(kinds, schema_hook=_foreign_schema)
        except TypeError as error:
            raise Usage(f"the annotations of {name} cannot be published: {error}", remedy="Use simpler ones.") from None
        fields = {one: {**schema, **_default(defaults[one])} for one, schema in zip(self.types, schemas, strict=False)}
        self.required = [one for one in self.types if defaults[one] is _EMPTY and one != self.stream_in]
        shared = {"$defs": definitions} if definitions else {}
        parameters = {
            "type": "object",
            "properties": fields,
            "required": self.required,
            "additionalProperties": False,
            **shared,
        }
        signature = Signature(
            parameters=parameters,
            returns={**schemas[-1], **shared},
            streams=self.streams,
            stream_in=self.stream_in,
        )
        encoded = msgspec.json.encode(signature)
        try:
            open_signature(encoded)
        except PeerMisbehaved as fault:
            raise Usage(f"the annotations of {name} are too much: {fault}", remedy="Use simpler ones.") from None
        return encoded

    def bind(self, arguments: Mapping[str, Any], put: PutFile) -> dict[str, Any]:
        """The arguments as the annotations want them; `put` writes the files among them. Raises BadField."""

        def build(kind: type, value: object) -> object:
            if issubclass(kind, PurePath) and is_file(value):
                return _put(value, put)
            return no_file(kind, value)

        for name in arguments:
            if name not in self.types or name == self.stream_in:
                raise BadField(str(name), "is unknown")
        for name in self.required:
            if name not in arguments:
                raise BadField(name, "is missing")
        return {name: self.converted(name, self.types[name], value, build) for name, value in arguments.items()}

    def converted(self, name: str, kind: Any, value: Any, build: Callable[[type, Any], Any]) -> Any:
        """One value as its annotation wants it. Raises BadField."""
        try:
            return value if kind is Any else msgspec.convert(value, kind, dec_hook=build)
        except msgspec.ValidationError as error:
            raise BadField(name, str(error)) from None


class BadField(Exception):
    """An argument that its parameter cannot take."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"`{field}` {what}")
        self.field = field
        self.what = what


def lowered(value: Any) -> Any:
    """A value as plain data that the safe codec carries to whoever has none of our classes; files with their bytes."""
    kind = type(value)
    if kind in (str, int, float, bool, bytes, type(None)):
        return value
    if isinstance(value, PurePath):
        return {FILE: value.name, CONTENT: Path(value).read_bytes()}
    if isinstance(value, enum.Enum):
        return lowered(value.value)
    if isinstance(value, list | tuple):
        return kind(map(lowered, value)) if kind in (list, tuple) else [lowered(one) for one in value]
    if isinstance(value, dict):
        return {lowered(name): lowered(one) for name, one in value.items()}
    if isinstance(value, msgspec.Struct):
        return {name: lowered(getattr(value, name)) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: lowered(getattr(value, one.name)) for one in dataclasses.fields(value)}
    return value


def _item_of(kind: Any) -> Any:
    """Of what a stream is, if an annotation says stream; else None."""
    if typing.get_origin(kind) in _STREAMS:
        return typing.get_args(kind)[0]
    return Any if kind in _STREAMS else None


def _foreign_schema(kind: type) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return {"type": "string", "format": PATH_FORMAT}
    if isinstance(kind, type):
        return {CLASS: f"{kind.__module__}.{kind.__qualname__}"}
    return {}


def _default(value: Any) -> dict[str, Any]:
    if isinstance(value, str | int | float | bool | None) and len(str(value)) <= _DEFAULT_CHARS_MAX:
        return {"default": value}
    return {}


def no_file(kind: type, value: object) -> object:
    """A value of a class that JSON does not know, if it is one already. Raises msgspec.ValidationError."""
    if isinstance(value, kind):
        return value
    raise msgspec.ValidationError(f"Expected `{kind.__name__}`")


def _put(value: Any, put: PutFile) -> Path:
    name, content = value[FILE], value[CONTENT]
    if not isinstance(name, str) or not isinstance(content, bytes | bytearray | memoryview):
        raise msgspec.ValidationError("Expected a file")
    return put(name, memoryview(content))
