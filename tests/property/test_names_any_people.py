"""Whatever people call themselves and one another, no two devices are shown under one name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from croft.errors import CroftError
from croft.model.ids import PeerId, TwinId
from croft.overlay.contacts import ContactBook, Device

WORDS = st.sampled_from(["bob", "Bob", "laptop", "bob/laptop", "bob~0000", "laptop~0001"])
TWINS = [TwinId(f"{number:064x}") for number in range(4)]
DEVICES = st.lists(st.tuples(st.sampled_from(TWINS), WORDS), max_size=8)
PETNAMES = st.lists(st.tuples(st.sampled_from(TWINS), WORDS), max_size=6)


@given(DEVICES, PETNAMES)
def test_every_device_has_a_name_of_its_own(
    devices: list[tuple[TwinId, str]], petnames: list[tuple[TwinId, str]]
) -> None:
    book = ContactBook(TWINS[0])
    for twin, petname in petnames:
        try:
            book.name(twin, petname, 0.0)
        except CroftError:
            continue
    # Ids that differ early, as keys do, and ids that differ late.
    known = [Device(PeerId(f"{number:04x}" + "0" * 60), twin, name) for number, (twin, name) in enumerate(devices)]

    shown = book.shown(known, PeerId("0" * 64))

    assert set(shown) == {device.peer for device in known}
    assert len({name.casefold() for name in shown.values()}) == len(known)
