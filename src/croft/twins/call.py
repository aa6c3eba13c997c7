"""Decides who is asked to run a call, and what becomes of it when that fails.

A call that surely has not begun goes to the next candidate. One that may have run goes there only if it is idempotent,
and nobody has seen a part of its result yet; otherwise its caller is told that it may have run. Sans-IO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, assert_never

from croft.model.ids import PeerId, TwinId

ATTEMPTS_MAX: Final = 8
AGAIN_MAX: Final = 2
"""How often everybody is asked in turn, where a call may be made twice."""

FINAL_CODES: Final = frozenset({"bad_argument", "usage", "cancelled", "timed_out"})
"""Failures that nobody else would answer differently."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Somebody who offers what is called.

    `trust`: 0 for the owner's own devices, then the more the less the owner trusts its twin. `load`: share of its
    processors in use. `slots`: how many calls it runs at a time.
    """

    peer: PeerId
    twin: TwinId
    name: str
    signature: bytes
    trust: int = 1
    is_alive: bool = True
    round_trip_s: float | None = None
    load: float | None = None
    slots: int = 1


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt came to nothing; `has_begun`: whether it may have run."""

    code: str
    message: str
    remedy: str = ""
    has_begun: bool = False
    field: str = ""


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begun:
    """The call is to be made."""


@dataclass(frozen=True, slots=True)
class ResultSeen:
    """A part of the result has come, or a part of the input was taken: from here on it cannot be made again."""


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """The one who was asked last did not bring it to an end."""

    failure: Failure


Event = Begun | ResultSeen | AttemptFailed


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask this one."""

    candidate: Candidate


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Tell the caller."""

    failure: Failure


Effect = Ask | GiveUp


class CallAttempts:
    """The attempts of one call. `candidates`: in the order in which they are asked."""

    def __init__(self, candidates: Sequence[Candidate], *, is_idempotent: bool) -> None:
        self._waiting = list(candidates[:ATTEMPTS_MAX])
        self._all = tuple(self._waiting)
        self._may_repeat = is_idempotent
        self._rounds = 1
        self._is_seen = False
        self._may_have_run = False
        self._first: Failure | None = None

    def handle(self, event: Event) -> Sequence[Effect]:
        """What is to be done now."""
        match event:
            case Begun():
                return self._next()
            case ResultSeen():
                self._is_seen = True
                return []
            case AttemptFailed(failure):
                return self._failed(failure)
            case _:
                assert_never(event)

    def _failed(self, failure: Failure) -> Sequence[Effect]:
        self._may_have_run |= failure.has_begun
        if self._first is None or (failure.has_begun and not self._first.has_begun):
            self._first = failure
        if failure.code in FINAL_CODES or self._is_seen or (failure.has_begun and not self._may_repeat):
            return [self._give_up(failure)]
        return self._next()

    def _next(self) -> Sequence[Effect]:
        if not self._waiting and self._may_repeat and self._may_have_run and self._rounds < AGAIN_MAX:
            self._rounds += 1
            self._waiting = list(self._all)
        if self._waiting:
            return [Ask(self._waiting.pop(0))]
        assert self._first is not None, "a call has at least one candidate"
        return [self._give_up(self._first)]

    def _give_up(self, failure: Failure) -> GiveUp:
        # What may have run at one of them may have run, whatever the last one says of itself.
        return GiveUp(replace(failure, has_begun=failure.has_begun or self._may_have_run))


def ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """In the order in which they are asked: those the owner trusts more, the living, the near, the idle; then by id."""
    return sorted(
        candidates,
        key=lambda one: (
            not one.is_alive,
            one.trust,
            round(one.round_trip_s * 100) if one.round_trip_s is not None else 1_000,
            one.load if one.load is not None else 1.0,
            one.peer,
        ),
    )


def stand_ins(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first of them, and those who promise the very same: nobody is silently replaced by something else."""
    return [one for one in candidates if one.signature == candidates[0].signature] if candidates else []
