"""Whatever is done to the log of what others did here, short of nothing, is found."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from croft.identity.keys import SecretKey
from croft.twins.audit import Chain, Line, verify

DEVICE = SecretKey(b"\1" * 32)


def written(count: int) -> tuple[list[Line], bytes]:
    chain = Chain()
    for number in range(count):
        chain.add(float(number), "call", f"peer {number}", "", "", "ocr", "ok", "")
    return chain.seal(DEVICE)


@given(st.integers(1, 12), st.data())
def test_every_change_is_found(count: int, data: st.DataObject) -> None:
    lines, head = written(count)
    changed = list(lines)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(0, len(changed) - 1)))
        if not changed:
            break
        match data.draw(st.sampled_from(["drop", "flip", "swap", "double", "link"])):
            case "drop":
                del changed[at]
            case "flip":
                text = bytearray(changed[at].text)
                text[data.draw(st.integers(0, len(text) - 1))] ^= data.draw(st.integers(1, 255))
                changed[at] = replace(changed[at], text=bytes(text))
            case "swap":
                other = data.draw(st.integers(0, len(changed) - 1))
                changed[at], changed[other] = changed[other], changed[at]
            case "double":
                changed.insert(at, changed[at])
            case "link":
                changed[at] = replace(changed[at], link=bytes(32))

    assert bool(verify(changed, head, DEVICE.public)) == (changed != lines)
