"""Nobody changes the log of what others did here without its being found."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from croft.identity.keys import SecretKey
from croft.twins.audit import (
    NO_LINK,
    REPEATS_EACH,
    REPEATS_S,
    SEAL_KIND,
    Act,
    Chain,
    Line,
    Repeats,
    Seal,
    link_of,
    verify,
)
from croft.wire.envelope import sign

DEVICE, OTHER = SecretKey(b"\1" * 32), SecretKey(b"\2" * 32)


def written(count: int = 6) -> tuple[list[Line], bytes]:
    """A log that was sealed twice on the way."""
    chain, lines, head = Chain(), [], b""
    for number in range(1, count + 1):
        chain.add(float(number), "call", "bob", "p" * 64, "t" * 64, "ocr", "ok", "")
        if number % 2 == 0 or number == count:
            added, head = chain.seal(DEVICE)
            lines += added
    return lines, head


def found(lines: list[Line], head: bytes | None) -> list[str]:
    return [finding.what for finding in verify(lines, head, DEVICE.public)]


def forged(line: Line, **changes: object) -> Line:
    """A line that says something else, under its old link."""
    act = msgspec.json.decode(line.text, type=Act)
    return replace(line, text=msgspec.json.encode(msgspec.structs.replace(act, **changes)))


def rechained(lines: list[Line]) -> list[Line]:
    """Links that fit, as anybody can compute them."""
    made, link = [], NO_LINK
    for line in lines:
        link = link_of(link, line.text)
        made.append(replace(line, link=link))
    return made


def test_what_nobody_touched_is_found_whole() -> None:
    assert found(*written()) == []
    assert found([], None) == []


@pytest.mark.parametrize("at", range(6))
def test_a_changed_line_is_named(at: int) -> None:
    lines, head = written()
    lines[at] = forged(lines[at], who="nobody")

    assert found(lines, head) == [f"line {at + 1} was changed"]


def test_a_changed_line_is_found_also_if_the_links_fit_again() -> None:
    lines, head = written()
    lines[2] = forged(lines[2], who="nobody")

    assert found(rechained(lines), head) == ["line 6 or one before it was changed"]


def test_a_line_that_claims_another_number_is_found() -> None:
    lines, head = written()
    lines[5] = forged(lines[5], number=7)

    assert "line 6 says something else than it did" in found(rechained(lines), head)


def test_lines_that_are_missing_are_named() -> None:
    lines, head = written()

    assert found(lines[:1] + lines[2:], head) == ["line 2 is missing"]
    assert found(lines[:1] + lines[4:], head) == ["lines 2 to 4 are missing"]
    assert found(lines[:4], head) == ["lines 5 to 6 are missing"]
    assert found(lines[2:], head) == ["lines 1 to 2 are missing"]
    assert found([], head) == ["lines 1 to 6 are missing"]


def test_lines_that_were_put_in_are_named() -> None:
    lines, head = written()
    more, _ = written(8)

    assert found(more, head) == ["lines after 6 were put in"]
    assert found([lines[0], lines[0], *lines[1:]], head) == ["line 1 was put in"]


def test_only_this_device_seals() -> None:
    lines, _ = written()
    seal = Seal(1, NO_LINK, 6, lines[-1].link)

    assert "not this device's" in found(lines, sign(OTHER.signer, SEAL_KIND, seal))[0]
    assert "not this device's" in found(lines, b"nothing")[0]
    assert found(lines, None) == ["the seal is missing"]
    assert found(lines, sign(DEVICE.signer, SEAL_KIND, seal)) == []


def test_what_is_too_old_goes_and_the_chain_stays() -> None:
    chain = Chain()
    for number in range(1, 6):
        chain.add(float(number), "call", "bob", "", "", "", "ok", "")
    lines, _ = chain.seal(DEVICE)
    chain.drop_before(lines[3], lines[2].link)
    chain.add(6.0, "call", "bob", "", "", "", "ok", "")
    added, head = chain.seal(DEVICE)

    assert found([*lines[3:], *added], head) == []
    assert found([*lines[4:], *added], head) == ["line 4 is missing"]


def test_what_others_are_called_cannot_make_lines_of_its_own() -> None:
    chain = Chain()
    chain.add(1.0, "call", "bob\nline 2", "", "", "x" * 1_000, "ok", "")

    act = msgspec.json.decode(chain.added[0].text, type=Act)
    assert act.who == "bob?line 2" and len(act.on) == 200


def test_a_flood_of_one_kind_is_a_few_lines_and_a_number() -> None:
    repeats = Repeats()
    lines = [repeats.is_line("call", "bob", "ok", 1.0) for _ in range(1_000)]

    assert lines == [True] * REPEATS_EACH + [False] * (1_000 - REPEATS_EACH)
    assert repeats.is_line("call", "cyd", "ok", 1.0) and repeats.is_line("call", "bob", "refused", 1.0)
    assert repeats.over(1.0) == []
    assert repeats.over(1.0 + REPEATS_S) == [("call", "bob", "ok", 1_000 - REPEATS_EACH)]
    assert repeats.is_line("call", "bob", "ok", 20.0) and repeats.over(100.0) == []
