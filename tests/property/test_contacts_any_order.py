"""The owner's devices note things of people apart, and tell each other in any order: they end up of one mind."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from croft.errors import CroftError
from croft.model.ids import TwinId
from croft.overlay.contacts import Contact, ContactBook, Trust

ME = TwinId("a" * 64)
PEOPLE = [TwinId(digit * 64) for digit in "bcd"]
CHANGES = st.tuples(
    st.integers(0, 2),
    st.sampled_from(PEOPLE),
    st.sampled_from(["name", "trust", "block", "unblock", "remove"]),
    st.integers(0, 5),
    st.integers(0, 3),
)


def change(book: ContactBook, twin: TwinId, what: str, detail: int, now: float) -> Contact | None:
    try:
        match what:
            case "name":
                return book.name(twin, f"name {detail}", now)
            case "trust":
                return book.trust(twin, list(Trust)[detail % 4], now)
            case "block":
                return book.block(twin, now)
            case "unblock":
                return book.unblock(twin, now)
            case _:
                return book.remove(twin, now)
    except CroftError:
        return None


@given(st.lists(CHANGES, max_size=30), st.permutations(range(3)), st.booleans())
def test_all_devices_agree_once_each_has_heard_the_others(
    changes: list[tuple[int, TwinId, str, int, int]], order: list[int], is_told_at_once: bool
) -> None:
    books = [ContactBook(ME) for _ in range(3)]
    now = 0.0
    for device, twin, what, detail, later_s in changes:
        now += later_s
        note = change(books[device], twin, what, detail, now)
        if note is not None and is_told_at_once:
            books[(device + 1) % 3].merge(note, now)
    for _ in range(2):
        for sender in order:
            for receiver in reversed(order):
                for note in books[sender].notes():
                    books[receiver].merge(note, now + 1)

    minds = [sorted(book.notes(), key=lambda note: note.twin) for book in books]
    assert [[note.rank for note in mind] for mind in minds] == [[note.rank for note in minds[0]]] * 3
