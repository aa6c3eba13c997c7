"""A stream that outlives its connections: whatever is lost on the way, both readers get every byte once, in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from croft.errors import PeerMisbehaved
from croft.overlay.resumption import Resumption

STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 1), st.integers(1, 3_000)),
    st.tuples(st.just("send"), st.integers(0, 1), st.integers(1, 5)),
    st.tuples(st.just("deliver"), st.integers(0, 1), st.integers(1, 4_000)),
    st.tuples(st.just("read"), st.integers(0, 1), st.integers(1, 5_000)),
    st.tuples(st.just("cut"), st.just(0), st.just(0)),
    st.tuples(st.just("finish"), st.integers(0, 1), st.just(0)),
)


class Two:
    """Both ends, and what is on its way from each: lost when the connection is cut."""

    def __init__(self) -> None:
        self.ends = Resumption(), Resumption()
        self.flying = bytearray(), bytearray()
        self.written = bytearray(), bytearray()
        self.read = bytearray(), bytearray()

    def send(self, side: int, times: int) -> None:
        for _ in range(times):
            self.flying[side].extend(self.ends[side].next_frame())

    def deliver(self, side: int, size: int) -> None:
        part = bytes(self.flying[side][:size])
        del self.flying[side][:size]
        self.ends[1 - side].feed(part)

    def cut(self) -> None:
        for flying in self.flying:
            flying.clear()
        opener, acceptor = self.ends
        opener.opened_again()
        acceptor.attached_again(opener.received)

    def take(self, side: int, size: int) -> None:
        end = self.ends[side]
        if end.has_data:
            self.read[side].extend(end.take(size))
        else:
            end.tell_consumed()

    def step(self, what: str, side: int, size: int) -> None:
        end = self.ends[side]
        match what:
            case "write" if not end.is_finished and end.room_bytes > 0:
                data = bytes((len(self.written[side]) + number) % 251 for number in range(size))
                self.written[side].extend(data)
                end.write(data)
            case "send":
                self.send(side, size)
            case "deliver":
                self.deliver(side, size)
            case "read":
                self.take(side, size)
            case "cut":
                self.cut()
            case "finish":
                end.finish()

    def settle(self) -> None:
        """Nothing is cut any more: both go on until there is nothing left to say."""
        for end in self.ends:
            end.finish()
        for _ in range(2_000):
            for side in (0, 1):
                self.send(side, 3)
                self.deliver(side, 1 << 20)
                self.take(side, 1 << 20)
            if all(end.is_over for end in self.ends):
                return
        raise AssertionError("it never ends")


@given(st.lists(STEPS, max_size=80))
def test_every_byte_arrives_once_and_in_order_whatever_is_cut(story: list[tuple[str, int, int]]) -> None:
    two = Two()
    for what, side, size in story:
        two.step(what, side, size)
    two.settle()

    assert two.read[1] == two.written[0]
    assert two.read[0] == two.written[1]


@given(st.binary(max_size=200))
def test_any_bytes_of_the_other_side_are_taken_or_refused(data: bytes) -> None:
    end = Resumption()
    end.write(b"something")
    try:
        end.feed(data)
    except PeerMisbehaved:
        pass
    assert end.received <= len(data)
