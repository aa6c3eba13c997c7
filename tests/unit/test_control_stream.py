"""What each message on a control stream means, and to whom it goes."""

from __future__ import annotations

import pytest

from croft.errors import PeerMisbehaved
from croft.overlay.control_stream import (
    CALLS_SERVED_MAX,
    HEARTBEAT_EVERY_S,
    LOOK_EVERY_S,
    ROUND_TRIP_EVERY_S,
    SILENCE_S_MAX,
    CallAbandoned,
    CallWanted,
    Conclude,
    ControlStream,
    Deliver,
    HeartbeatDue,
    Received,
    RoundTripMeasured,
    Send,
    Serve,
    Served,
    Silent,
    StopServing,
)
from croft.overlay.messages import Answer, Call, CancelCall, Failure, Heartbeat, HeartbeatEcho, Notice


def received(stream: ControlStream, message: object, now: float = 0.0) -> object:
    return stream.handle(Received(message, now))  # type: ignore[arg-type]  # every message of the stream is tried


def test_a_call_is_sent_and_its_answer_concludes_it() -> None:
    stream = ControlStream(0.0)

    assert stream.handle(CallWanted("ping", b"x", 5.0)) == [Send(Call(1, "ping", 5.0, b"x"))]
    assert received(stream, Answer(1, b"y")) == [Conclude(Answer(1, b"y"))]
    assert stream.handle(CallAbandoned(1)) == []


def test_calls_have_numbers_of_their_own_and_end_in_any_order() -> None:
    stream = ControlStream(0.0)
    for _ in range(3):
        stream.handle(CallWanted("ping", b"", 5.0))

    assert received(stream, Failure(3, "failed", "no")) == [Conclude(Failure(3, "failed", "no"))]
    assert received(stream, Answer(1, b"")) == [Conclude(Answer(1, b""))]
    assert received(stream, Answer(2, b"")) == [Conclude(Answer(2, b""))]


@pytest.mark.parametrize("reply", [Answer(1, b""), Failure(1, "failed", "no")])
def test_an_answer_that_nobody_waits_for_goes_nowhere(reply: Answer | Failure) -> None:
    stream = ControlStream(0.0)
    assert received(stream, reply) == []
    stream.handle(CallWanted("ping", b"", 5.0))

    assert stream.handle(CallAbandoned(1)) == [Send(CancelCall(1))]
    assert received(stream, reply) == []
    assert stream.handle(CallAbandoned(1)) == []


def test_an_answer_sent_twice_concludes_once() -> None:
    stream = ControlStream(0.0)
    stream.handle(CallWanted("ping", b"", 5.0))
    received(stream, Answer(1, b"first"))

    assert received(stream, Answer(1, b"second")) == []


def test_a_call_of_theirs_is_served_and_answered() -> None:
    stream = ControlStream(0.0)
    call = Call(7, "ping", 5.0, b"")

    assert received(stream, call) == [Serve(call)]
    assert stream.handle(Served(7, Answer(7, b"z"))) == [Send(Answer(7, b"z"))]
    assert stream.handle(Served(7, Answer(7, b"z"))) == []


def test_a_cancelled_call_is_served_no_more_and_its_answer_stays_here() -> None:
    stream = ControlStream(0.0)
    received(stream, Call(7, "ping", 5.0, b""))

    assert received(stream, CancelCall(7)) == [StopServing(7)]
    assert stream.handle(Served(7, Answer(7, b""))) == []
    assert received(stream, CancelCall(7)) == []
    assert received(stream, CancelCall(8)) == []


def test_a_call_begun_twice_is_misbehaviour() -> None:
    stream = ControlStream(0.0)
    received(stream, Call(7, "ping", 5.0, b""))

    with pytest.raises(PeerMisbehaved, match="twice"):
        received(stream, Call(7, "ping", 5.0, b""))


def test_too_many_open_calls_are_answered_busy_until_one_ends() -> None:
    stream = ControlStream(0.0)
    for number in range(CALLS_SERVED_MAX):
        received(stream, Call(number, "ping", 5.0, b""))
    more = Call(CALLS_SERVED_MAX, "ping", 5.0, b"")

    (refusal,) = received(stream, more)  # type: ignore[misc]  # effects are a sequence
    assert isinstance(refusal.message, Failure)
    assert (refusal.message.call, refusal.message.code) == (more.call, "busy")

    stream.handle(Served(0, Answer(0, b"")))
    assert received(stream, more) == [Serve(more)]


def test_numbers_of_the_two_sides_do_not_meet() -> None:
    stream = ControlStream(0.0)
    stream.handle(CallWanted("ping", b"", 5.0))
    received(stream, Call(1, "ping", 5.0, b""))

    assert stream.handle(Served(1, Answer(1, b"ours"))) == [Send(Answer(1, b"ours"))]
    assert received(stream, Answer(1, b"theirs")) == [Conclude(Answer(1, b"theirs"))]


def test_a_notice_is_handed_on() -> None:
    assert received(ControlStream(0.0), Notice("topic", b"x")) == [Deliver(Notice("topic", b"x"))]


def test_a_heartbeat_is_echoed_and_its_echo_measures_the_round_trip_once() -> None:
    stream = ControlStream(0.0)

    assert received(stream, Heartbeat(5)) == [Send(HeartbeatEcho(5))]
    assert stream.handle(HeartbeatDue(1.0)) == [Send(Heartbeat(1))]
    assert received(stream, HeartbeatEcho(2), 1.1) == []
    assert received(stream, HeartbeatEcho(1), 1.25) == [RoundTripMeasured(0.25)]
    assert received(stream, HeartbeatEcho(1), 1.5) == []


def test_an_echo_that_comes_after_the_next_heartbeat_measures_nothing() -> None:
    stream = ControlStream(0.0)
    stream.handle(HeartbeatDue(1.0))
    stream.handle(HeartbeatDue(4.0))

    assert received(stream, HeartbeatEcho(1), 4.1) == []


def test_silence_is_noticed_and_any_message_breaks_it() -> None:
    stream = ControlStream(0.0)
    late = SILENCE_S_MAX + 1

    received(stream, Notice("topic", b""), now=late - 1)
    assert stream.handle(HeartbeatDue(late)) == [Send(Heartbeat(1))]
    assert stream.handle(HeartbeatDue(late + SILENCE_S_MAX)) == [Silent(SILENCE_S_MAX + 1)]


def test_a_dead_peer_is_noticed_within_ten_seconds_of_its_last_word() -> None:
    assert SILENCE_S_MAX + LOOK_EVERY_S <= 10


def test_a_link_on_which_much_is_heard_needs_few_heartbeats() -> None:
    stream = ControlStream(0.0)
    assert stream.handle(HeartbeatDue(0.0)) == [Send(Heartbeat(1))]
    sent = 0
    for step in range(1, 100):
        received(stream, Notice("topic", b""), step * 0.9)
        sent += len(stream.handle(HeartbeatDue(step * 0.9 + 0.1)))

    assert sent == 90 // ROUND_TRIP_EVERY_S


def test_a_link_on_which_nothing_is_heard_is_asked_for_a_sign_of_life_again_and_again() -> None:
    stream = ControlStream(0.0)
    stream.handle(HeartbeatDue(0.0))

    looks = [len(stream.handle(HeartbeatDue(at * LOOK_EVERY_S))) for at in range(1, 6)]

    assert looks == [0, 1, 0, 1, 0]
    assert HEARTBEAT_EVERY_S == 2 * LOOK_EVERY_S
