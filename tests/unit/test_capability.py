"""Capabilities: signed, checked in every part, and good for a while; signatures taken from annotations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest

from croft.errors import PeerMisbehaved, Usage
from croft.identity.by_member import Signatory
from croft.identity.certificates import certify
from croft.identity.grants import found
from croft.identity.keys import SecretKey
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.twins.capability import (
    CAPABILITY_KIND,
    LIFETIME_S,
    CapabilityContent,
    Terms,
    check_name,
    make_capability,
    open_capability,
    open_signature,
    show_signature,
)
from croft.twins.capability_schema import CONTENT, FILE
from croft.twins.capability_signature import BadField, Typed, lowered
from croft.wire.envelope import sign

NOW = 1_750_000_000.0
ROOT, TWIN, DEVICE, OTHER = (SecretKey(bytes([number]) * 32) for number in range(1, 5))
VILLAGE = CommunityId(ROOT.public)
CHAIN = tuple(found(ROOT, TwinId(TWIN.public)))
CERTIFICATE = certify(TWIN, PeerId(DEVICE.public), "anna", NOW)
PUBLISHER = Signatory(DEVICE, CERTIFICATE, VILLAGE, CHAIN)
PLAIN = json.dumps({"parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}).encode()
TERMS = Terms("add", PLAIN, "Adds.")


def content(**changes: Any) -> CapabilityContent:
    made = CapabilityContent(VILLAGE, list(CHAIN), CERTIFICATE, TERMS, 1, NOW + 60)
    return msgspec.structs.replace(made, **changes)


def test_what_was_published_is_read_as_it_was_meant() -> None:
    record = make_capability(PUBLISHER, TERMS, [OTHER.public], is_withdrawn=False, now=NOW, sequence=7)

    opened = open_capability(VILLAGE, record, NOW)

    assert (opened.twin, opened.peer, opened.terms) == (TWIN.public, DEVICE.public, TERMS)
    assert opened.is_for(TwinId(OTHER.public)) and opened.is_for(opened.twin) and not opened.is_for(TwinId(ROOT.public))
    assert opened.expires_at == NOW + LIFETIME_S


@pytest.mark.parametrize(
    "changes",
    [
        {"community": OTHER.public},
        {"grant_chain": []},
        {"certificate": certify(TWIN, PeerId(OTHER.public), "anna", NOW)},
        {"sequence": -1},
        {"expires_at": NOW - 1},
        {"expires_at": NOW + 1e6},
        {"to": ["not an id"]},
        {"to": [OTHER.public] * 65},
        {"terms": msgspec.structs.replace(TERMS, name="Add")},
        {"terms": msgspec.structs.replace(TERMS, name="a" * 65)},
        {"terms": msgspec.structs.replace(TERMS, name="a\nb")},
        {"terms": msgspec.structs.replace(TERMS, text="x" * 5_000)},
        {"terms": msgspec.structs.replace(TERMS, needs=["gpu\n"])},
        {"terms": msgspec.structs.replace(TERMS, price=float("nan"))},
        {"terms": msgspec.structs.replace(TERMS, time_s_max=float("inf"))},
        {"terms": msgspec.structs.replace(TERMS, signature=b"{}")},
        {"terms": msgspec.structs.replace(TERMS, signature=b'{"parameters": {"properties": {"a b": {}}}}')},
        {"terms": msgspec.structs.replace(TERMS, signature=b'{"parameters": {}, "more": 1}')},
    ],
)
def test_a_record_with_anything_wrong_is_refused(changes: dict[str, Any]) -> None:
    record = sign(DEVICE.signer, CAPABILITY_KIND, content(**changes))

    with pytest.raises(PeerMisbehaved, match="capability"):
        open_capability(VILLAGE, record, NOW)


def test_nobody_signs_for_somebody_else() -> None:
    with pytest.raises(PeerMisbehaved, match="not signed by the device"):
        open_capability(VILLAGE, sign(OTHER.signer, CAPABILITY_KIND, content()), NOW)


@pytest.mark.parametrize("name", ["Add", "1a", "a b", "", "a-", "-a", "ä"])
def test_names_are_such_as_people_can_type(name: str) -> None:
    with pytest.raises(Usage):
        check_name(name)


# --- signatures ------------------------------------------------------------------------------------------------------


@dataclass
class Point:
    x: int
    y: int = 0


def draw(points: list[Point], page: Path, *, thick: bool = False, name: str | None = None) -> Iterator[bytes]:
    yield b""


def feed(lines: Iterator[str], limit: int = 3) -> dict[str, float]:
    return {}


def nothing_said(a, b=1):  # type: ignore[no-untyped-def]
    return a


def test_annotations_become_a_signature_that_people_can_read() -> None:
    assert show_signature("draw", open_signature(Typed(draw).signature)) == (
        "draw(points: list[Point], page: Path, thick: bool = False, name: str | None = None) -> Iterator[bytes]"
    )
    assert show_signature("feed", open_signature(Typed(feed).signature)) == (
        "feed(lines: Iterator[str], limit: int = 3) -> dict[str, float]"
    )
    assert show_signature("it", open_signature(Typed(nothing_said).signature)) == "it(a: any, b: any = 1) -> any"


@pytest.mark.parametrize("function", [lambda *a: 0, lambda **a: 0, eval("lambda a, /: 0")])
def test_a_function_whose_arguments_have_no_names_is_refused(function: Any) -> None:
    with pytest.raises(Usage, match="name each argument"):
        Typed(function)


def test_arguments_become_what_the_annotations_say(tmp_path: Path) -> None:
    def put(name: str, data: memoryview) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    bound = Typed(draw).bind({"points": [{"x": 1}], "page": {FILE: "p", CONTENT: b"ink"}}, put)

    assert bound["points"] == [Point(1, 0)]
    assert bound["page"].read_bytes() == b"ink"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"points": [], "page": "p"}, "page"),
        ({"points": [{"y": 1}], "page": {FILE: "p", CONTENT: b""}}, "points"),
        ({"points": []}, "page"),
        ({"points": [], "page": {FILE: "p", CONTENT: b""}, "extra": 1}, "extra"),
        ({"points": [], "page": {FILE: "p", CONTENT: "text"}}, "page"),
    ],
)
def test_an_argument_that_does_not_fit_is_named_at_the_provider_too(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as refused:
        Typed(draw).bind(arguments, lambda name, data: Path(name))

    assert refused.value.field == field


def test_arrays_arrive_as_arrays(tmp_path: Path) -> None:
    def mean(x: numpy.ndarray) -> float:
        return float(x.mean())

    typed, array = Typed(mean), numpy.ones(3)

    assert show_signature("mean", open_signature(typed.signature)) == "mean(x: ndarray) -> float"
    assert typed.bind({"x": array}, lambda name, data: tmp_path)["x"] is array
    with pytest.raises(BadField):
        typed.bind({"x": [1.0]}, lambda name, data: tmp_path)


def test_what_a_function_returns_travels_as_plain_data(tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_bytes(b"ink")

    assert lowered({"at": Point(1), "page": page}) == {"at": {"x": 1, "y": 0}, "page": {FILE: "page", CONTENT: b"ink"}}
