"""Schemas that others publish are bounded, and values are held against them before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from croft.errors import PeerMisbehaved
from croft.twins.capability_schema import (
    CONTENT,
    DEPTH_MAX,
    FILE,
    SCHEMA_BYTES_MAX,
    Checker,
    Mismatch,
    describe,
    open_schema,
    read_text,
)

NODE = {"$ref": "#/$defs/Node"}
TREE: dict[str, Any] = {
    **NODE,
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "below": {"type": "array", "items": NODE}},
            "required": ["value"],
            "additionalProperties": False,
        }
    },
}


def refusal(schema: dict[str, Any], value: object) -> str:
    with pytest.raises(Mismatch) as refused:
        Checker(schema).check(value)
    return f"{refused.value.where} {refused.value.what}"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, object()),
        ({"type": "integer"}, 3),
        ({"type": "number"}, 3),
        ({"type": "string"}, "x"),
        ({"type": "null"}, None),
        ({"type": "boolean"}, True),
        ({"type": "string", "contentEncoding": "base64"}, b"x"),
        ({"type": "string", "format": "path"}, Path("x")),
        ({"type": "string", "format": "path"}, {FILE: "x", CONTENT: b""}),
        ({"type": "array", "items": {"type": "string"}}, ("a", "b")),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
        ({"enum": ["a", "b"]}, "b"),
        ({"type": "integer", "minimum": 1, "exclusiveMaximum": 5}, 4),
        ({"prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "type": "array"}, [1, "x"]),
        (TREE, {"value": 1, "below": [{"value": 2, "below": []}]}),
    ],
)
def test_what_fits_passes(schema: dict[str, Any], value: object) -> None:
    Checker(schema).check(value)


@pytest.mark.parametrize(
    ("schema", "value", "says"),
    [
        ({"type": "integer"}, "3", "must be a whole number"),
        ({"type": "integer"}, True, "must be a whole number"),
        ({"type": "integer"}, 3.0, "must be a whole number"),
        ({"type": "string"}, b"x", "must be text"),
        ({"type": "string", "contentEncoding": "base64"}, "x", "must be bytes"),
        ({"type": "string", "format": "path"}, "x", "must be a file"),
        ({"type": "object"}, {FILE: "x", CONTENT: b""}, "must be an object"),
        ({"type": "array", "items": {"type": "string"}}, ["a", 1], "[1] is a whole number (1), must be text"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "x", "must be int | None"),
        ({"enum": [1, 2]}, True, "must be one of"),
        ({"type": "integer", "minimum": 1}, 0, "must be at least 1"),
        ({"type": "number", "maximum": 1}, float("nan"), "must be at most 1"),
        ({"type": "string", "maxLength": 2}, "abc", "has 3 letters, must have at most 2"),
        ({"prefixItems": [{}], "items": False, "type": "array"}, [1, 2], "[1] is one too many"),
        (TREE, {"value": 1, "below": [{"below": []}]}, ".below[0].value is missing"),
        (TREE, {"value": 1, "above": 2}, ".above is unknown"),
    ],
)
def test_what_does_not_fit_is_named(schema: dict[str, Any], value: object, says: str) -> None:
    assert says in refusal(schema, value)


def test_references_that_lead_nowhere_or_round_in_circles_let_nothing_pass() -> None:
    assert refusal({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}, 1)
    assert refusal({"$ref": "http://elsewhere/schema"}, 1)


def test_a_check_ends_however_often_a_schema_branches() -> None:
    """Each level tries the level below it sixteen times: 16^14 ways, were they all walked."""
    definitions: dict[str, Any] = {"L0": {"type": "null"}}
    for level in range(1, 15):
        below = {"$ref": f"#/$defs/L{level - 1}"}
        definitions[f"L{level}"] = {"anyOf": [below] * 16}
    bomb = open_schema(json.dumps({"$ref": "#/$defs/L14", "$defs": definitions}).encode())

    assert refusal(dict(bomb), 1)


@pytest.mark.parametrize(
    "data",
    [
        b"no json",
        b"[]",
        b"\xff",
        b'{"a": "' + b"x" * SCHEMA_BYTES_MAX + b'"}',
        b'{"a":' * (DEPTH_MAX + 1) + b"1" + b"}" * (DEPTH_MAX + 1),
        b'{"enum": [' + b"1," * 2_000 + b"1]}",
        b"[" * 10_000,
    ],
)
def test_a_schema_out_of_all_proportion_is_refused_unread(data: bytes) -> None:
    with pytest.raises(PeerMisbehaved, match="capability schema"):
        open_schema(data)


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("3", {"type": "integer"}, 3),
        ("3", {"type": "string"}, "3"),
        ("0.5", {"type": "number"}, 0.5),
        ("yes", {"type": "boolean"}, True),
        ("false", {"type": "boolean"}, False),
        ("[1, 2]", {"type": "array", "items": {"type": "integer"}}, [1, 2]),
        ("null", {"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        ("de", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "de"),
        ("7", {"anyOf": [{"type": "string"}, {"type": "integer"}]}, 7),
        ("anything", {}, "anything"),
    ],
)
def test_text_is_read_as_what_is_wanted(text: str, schema: dict[str, Any], value: object) -> None:
    assert read_text(text, schema, Checker(schema)) == value


def test_text_that_is_not_what_is_wanted_is_refused() -> None:
    with pytest.raises(Mismatch, match="must be int"):
        read_text("x", {"type": "integer"}, Checker({}))


def test_types_are_shown_as_people_write_them() -> None:
    assert describe({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]}) == "list[str] | None"
    assert describe({"x-class": "numpy.ndarray"}) == "ndarray"
    assert describe(TREE) == "Node"


def test_a_value_of_many_parts_has_the_time_that_it_takes() -> None:
    each = {"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}}

    Checker({"type": "array", "items": each}).check([{"a": 1}] * 20_000)
    Checker({"type": "array", "items": {"type": "integer"}}).check(list(range(1_000_000)))
