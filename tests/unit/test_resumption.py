"""What a stream that outlives its connections costs while nothing goes wrong."""

from __future__ import annotations

from croft.overlay.resumption import CONSUMED_EVERY_BYTES, WINDOW_BYTES, Resumption

PIECE = bytes(256 << 10)
PIECES = 4 * WINDOW_BYTES // len(PIECE)


def test_a_reader_that_keeps_up_says_so_once_per_mebibyte_and_never_holds_up_the_writer() -> None:
    writer, reader = Resumption(), Resumption()
    said = 0
    for _ in range(PIECES):
        assert writer.room_bytes > 0
        writer.write(PIECE)
        reader.feed(writer.next_frame())
        while reader.has_data:
            reader.take(1 << 20)
        while frame := reader.next_frame():
            said += 1
            writer.feed(frame)

    assert said == PIECES * len(PIECE) // CONSUMED_EVERY_BYTES


def test_little_that_was_taken_is_told_when_asked_for_and_once() -> None:
    writer, reader = Resumption(), Resumption()
    writer.write(b"little")
    reader.feed(writer.next_frame())
    reader.take(100)
    assert not reader.has_frame

    reader.tell_consumed()
    assert reader.has_frame
    writer.feed(reader.next_frame())

    assert not writer.is_waiting
    assert not reader.has_frame
