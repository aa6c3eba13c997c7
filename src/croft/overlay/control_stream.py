"""Decides what each message on a control stream means: calls, answers, notices, signs of life.

Sans-IO: events go in, effects come out. Nothing here reads a clock or touches a socket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from croft.errors import PeerMisbehaved
from croft.overlay.messages import (
    Answer,
    Call,
    CancelCall,
    Failure,
    Heartbeat,
    HeartbeatEcho,
    Notice,
    OnControlStream,
)

CALLS_SERVED_MAX = 256
LOOK_EVERY_S = 1.25
HEARTBEAT_EVERY_S = 2.5
"""After this long without a word from the other side, it is asked for a sign of life."""
ROUND_TRIP_EVERY_S = 20.0
"""Also a link on which much is heard is measured this often."""
SILENCE_S_MAX = 7.5
"""A link on which nothing was heard for this long is dead."""

STEP = "control stream"


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """A message came from the other side."""

    message: OnControlStream
    now: float


@dataclass(frozen=True, slots=True)
class CallWanted:
    """Our side wants an answer."""

    method: str
    body: bytes
    deadline_s: float


@dataclass(frozen=True, slots=True)
class CallAbandoned:
    """Our side no longer waits for a call that it made."""

    call: int


@dataclass(frozen=True, slots=True)
class Served:
    """Our side has an answer to a call of theirs."""

    call: int
    reply: Answer | Failure


@dataclass(frozen=True, slots=True)
class HeartbeatDue:
    """Time to look whether a sign of life is needed."""

    now: float


Event = Received | CallWanted | CallAbandoned | Served | HeartbeatDue


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Put this on the stream."""

    message: OnControlStream


@dataclass(frozen=True, slots=True)
class Serve:
    """Answer this call of theirs, with `Served`."""

    call: Call


@dataclass(frozen=True, slots=True)
class StopServing:
    """Their side no longer waits for this call."""

    call: int


@dataclass(frozen=True, slots=True)
class Conclude:
    """A call of ours is answered."""

    reply: Answer | Failure


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand on a notice."""

    notice: Notice


@dataclass(frozen=True, slots=True)
class RoundTripMeasured:
    """A heartbeat came back."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Silent:
    """Nothing was heard for SILENCE_S_MAX: the link is dead."""

    seconds: float


Effect = Send | Serve | StopServing | Conclude | Deliver | RoundTripMeasured | Silent


class ControlStream:
    """One side of a control stream."""

    def __init__(self, now: float) -> None:
        self._heard_at = now
        self._next_call = 1
        self._awaited: set[int] = set()
        self._serving: set[int] = set()
        self._heartbeat = 0
        self._heartbeat_sent_at = now
        self._heartbeat_is_open = False

    @property
    def heard_at(self) -> float:
        """When the other side was last heard."""
        return self._heard_at

    @property
    def next_call(self) -> int:
        """The number that the next `CallWanted` gets."""
        return self._next_call

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`. Raises PeerMisbehaved if it breaks the protocol."""
        match event:
            case Received(message, now):
                self._heard_at = now
                return self._received(message, now)
            case CallWanted(method, body, deadline_s):
                call = self._next_call
                self._next_call += 1
                self._awaited.add(call)
                return [Send(Call(call, method, deadline_s, body))]
            case CallAbandoned(call):
                if call not in self._awaited:
                    return []
                self._awaited.discard(call)
                return [Send(CancelCall(call))]
            case Served(call, reply):
                if call not in self._serving:
                    return []
                self._serving.discard(call)
                return [Send(reply)]
            case HeartbeatDue(now):
                return self._beat(now)
            case _:
                assert_never(event)

    def _received(self, message: OnControlStream, now: float) -> Sequence[Effect]:
        match message:
            case Call():
                return self._called(message)
            case Answer(call) | Failure(call):
                # An answer to a call that we gave up, or never made, has nobody to go to.
                if call not in self._awaited:
                    return []
                self._awaited.discard(call)
                return [Conclude(message)]
            case CancelCall(call):
                if call not in self._serving:
                    return []
                self._serving.discard(call)
                return [StopServing(call)]
            case Notice():
                return [Deliver(message)]
            case Heartbeat(sequence):
                return [Send(HeartbeatEcho(sequence))]
            case HeartbeatEcho(sequence):
                if sequence != self._heartbeat or not self._heartbeat_is_open:
                    return []
                self._heartbeat_is_open = False
                return [RoundTripMeasured(now - self._heartbeat_sent_at)]
            case _:
                assert_never(message)

    def _called(self, call: Call) -> Sequence[Effect]:
        if call.call in self._serving:
            raise PeerMisbehaved(f"call {call.call} begun twice", step=STEP)
        if len(self._serving) >= CALLS_SERVED_MAX:
            return [Send(Failure(call.call, "busy", f"{CALLS_SERVED_MAX} calls are open already", "Try again."))]
        self._serving.add(call.call)
        return [Serve(call)]

    def _beat(self, now: float) -> Sequence[Effect]:
        silence = now - self._heard_at
        if silence > SILENCE_S_MAX:
            return [Silent(silence)]
        since_last = now - self._heartbeat_sent_at if self._heartbeat else math.inf
        if since_last < ROUND_TRIP_EVERY_S and min(silence, since_last) < HEARTBEAT_EVERY_S:
            return []
        self._heartbeat += 1
        self._heartbeat_sent_at = now
        self._heartbeat_is_open = True
        return [Send(Heartbeat(self._heartbeat))]
