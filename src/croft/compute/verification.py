"""Decides whether what peers say came of a task is true: by votes, or by spot checks that fall as a record grows.

Each copy of a task goes to another person's peer (see `job`), and each answers over a stream of its own, so none sees
what another says before it has answered. Answers are compared by the digest of what they carry, in the safe codec,
whose bytes are canonical. Who is outvoted with a result of its own has lied: it is caught, whatever else it answered
counts no more, and it is not asked again. A failure that others do not see may be an accident, and is only not counted.

After BOINC's quorums and adaptive replication (Anderson 2020, "BOINC: A Platform for Volunteer Computing", section 4),
with votes that are asked for only where the first answers differ. Sans-IO; chance comes in from outside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from croft.compute.worker_messages import Status
from croft.errors import Usage
from croft.model.ids import PeerId

VOTES_MAX: Final = 15
SPOT_VOTES_MAX: Final = 5
NEWCOMER_FACTOR: Final = 9.0
"""A peer without a record is checked so many times more often again."""
RECORD_FACTOR: Final = 0.95
"""With each check that a peer passes, that falls by this factor; what was asked for remains."""
_SPELLED: Final = re.compile(r"vote:(?P<votes>\d{1,3})|spot:(?P<percent>\d{1,3}(\.\d+)?)%")


class Chance(Protocol):
    """Where chance comes from; `random.Random` fits."""

    def random(self) -> float:
        """From 0 up to, not including, 1."""
        ...


@dataclass(frozen=True, slots=True)
class Check:
    """How results are checked: by `votes` peers, or a share `spot` of them by a second one. Neither: not at all."""

    votes: int = 1
    spot: float = 0.0

    @property
    def is_any(self) -> bool:
        """Whether anything is checked."""
        return self.votes > 1 or self.spot > 0

    @property
    def people(self) -> int:
        """How many people's peers it takes."""
        return self.votes // 2 + 1 if self.votes > 1 else 2 if self.spot else 1


def parse_check(text: str) -> Check:
    """`vote:3`, `spot:5%`, or nothing. Raises Usage."""
    if not text:
        return Check()
    spelled = _SPELLED.fullmatch(text)
    if spelled and spelled["votes"] and int(spelled["votes"]) in range(3, VOTES_MAX + 1, 2):
        return Check(votes=int(spelled["votes"]))
    if spelled and spelled["percent"] and 0 < float(spelled["percent"]) <= 100:
        return Check(spot=float(spelled["percent"]) / 100)
    raise Usage(
        f"{text!r} is no way to verify results",
        remedy=f"`vote:3` (an odd number up to {VOTES_MAX}), or a share such as `spot:5%`.",
    )


@dataclass(slots=True)
class Standing:
    """What this peer has found out about others, over all its jobs: checks passed, and who was caught."""

    passed: dict[PeerId, int] = field(default_factory=dict)
    caught: dict[PeerId, str] = field(default_factory=dict)

    def rate(self, peer: PeerId, least: float) -> float:
        """The share of a peer's results to check: high for one without a record, never below `least`."""
        return min(1.0, least * (1 + NEWCOMER_FACTOR * RECORD_FACTOR ** self.passed.get(peer, 0)))


@dataclass(frozen=True, slots=True)
class Ask:
    """Have the task done once more, as the copy `copy` (below 0), by somebody who has not done it."""

    task: int
    copy: int


@dataclass(frozen=True, slots=True)
class Accept:
    """This copy's outcome is the task's; the other copies that answered are void, `unwanted` ones need not answer."""

    task: int
    copy: int
    void: tuple[int, ...]
    unwanted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dispute:
    """No majority came about; all copies have answered."""

    task: int
    reason: str
    void: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Caught:
    """A peer was outvoted. `unchecked`: tasks whose results from it were taken before, as nobody had checked them."""

    peer: PeerId
    reason: str
    unchecked: tuple[int, ...]


Effect = Ask | Accept | Dispute | Caught


@dataclass(slots=True)
class _Answer:
    peer: PeerId
    copy: int
    status: int
    digest: bytes


@dataclass(slots=True)
class _Case:
    """A task that is not decided."""

    needed: int
    votes_max: int
    live: set[int] = field(default_factory=set)
    answers: list[_Answer] = field(default_factory=list)


class Verification:
    """The verdicts of one job."""

    def __init__(self, check: Check, standing: Standing, chance: Chance) -> None:
        self._check = check
        self._standing = standing
        self._chance = chance
        self._cases: dict[int, _Case] = {}
        self._task_of: dict[int, int] = {}
        self._unchecked: dict[PeerId, list[int]] = {}
        self._next_copy = -1

    @property
    def open_tasks(self) -> int:
        """Tasks that are not decided."""
        return len(self._cases)

    def task_of(self, copy: int) -> int | None:
        """Which task a copy is of; None once that is decided."""
        return self._task_of.get(copy)

    def add(self, tasks: Iterable[int]) -> Sequence[Ask]:
        """The first copies of new tasks."""
        votes = self._check.votes
        added = {task: _Case(votes // 2 + 1, votes) for task in tasks}
        self._cases.update(added)
        # Round by round, so that who took a task's first copy finds others before its second.
        return [self._ask(task, case) for _ in range(votes // 2 + 1) for task, case in added.items()]

    def cancel(self, tasks: Iterable[int]) -> Sequence[int]:
        """Forgets tasks; returns the copies that are not wanted any more."""
        return [copy for task in tasks if task in self._cases for copy in self._close(task)]

    def answered(self, peer: PeerId, copy: int, status: int, digest: bytes) -> Sequence[Effect]:
        """A peer, or none (a copy was given up), says what came of a copy."""
        task = self._task_of.get(copy)
        if task is None:
            return []
        case = self._cases[task]
        case.live.discard(copy)
        case.answers.append(_Answer(peer, copy, status, digest))
        if self._check.spot and case.needed == 1:
            if self._chance.random() >= self._standing.rate(peer, self._check.spot):
                self._unchecked.setdefault(peer, []).append(task)
                return self._accept(task, case.answers[0])
            case.needed, case.votes_max = 2, SPOT_VOTES_MAX
        return self._judge(task, case)

    def _judge(self, task: int, case: _Case) -> list[Effect]:
        most: list[_Answer] = []
        for answer in case.answers:
            same = [one for one in case.answers if (one.status, one.digest) == (answer.status, answer.digest)]
            most = max(most, same, key=len)
        if len(most) >= case.needed:
            return self._decide(task, case, most)
        asked = len(case.answers) + len(case.live)
        # As many more as could make a majority of what is the most common answer so far.
        lacking = case.needed - len(most) - len(case.live)
        if lacking <= 0:
            return []
        if asked + lacking <= case.votes_max:
            return [self._ask(task, case) for _ in range(lacking)]
        if case.live:
            return []
        self._close(task)
        reason = f"no {case.needed} of {len(case.answers)} peers say the same came of it"
        return [Dispute(task, reason, tuple(one.copy for one in case.answers))]

    def _decide(self, task: int, case: _Case, agreed: list[_Answer]) -> list[Effect]:
        winner = agreed[0]
        for answer in agreed:
            self._standing.passed[answer.peer] = self._standing.passed.get(answer.peer, 0) + 1
        liars = {
            answer.peer
            for answer in case.answers
            if answer.status == Status.OK and answer.digest != winner.digest and answer.peer
        }
        effects = self._accept(task, winner)
        for peer in sorted(liars) if winner.status == Status.OK else ():
            effects += self._catch(peer, f"{len(agreed)} peers had another result than it for the same task")
        return effects

    def _accept(self, task: int, answer: _Answer) -> list[Effect]:
        void = tuple(one.copy for one in self._cases[task].answers if one is not answer)
        return [Accept(task, answer.copy, void, tuple(self._close(task)))]

    def _catch(self, peer: PeerId, reason: str) -> list[Effect]:
        self._standing.caught[peer] = reason
        effects: list[Effect] = [Caught(peer, reason, tuple(self._unchecked.pop(peer, ())))]
        for task, case in list(self._cases.items()):
            kept = [answer for answer in case.answers if answer.peer != peer]
            if len(kept) < len(case.answers):
                case.answers = kept
                effects += self._judge(task, case)
        return effects

    def _ask(self, task: int, case: _Case) -> Ask:
        copy, self._next_copy = self._next_copy, self._next_copy - 1
        case.live.add(copy)
        self._task_of[copy] = task
        return Ask(task, copy)

    def _close(self, task: int) -> list[int]:
        """Forgets a task; returns its copies that have not answered."""
        case = self._cases.pop(task)
        for answer in case.answers:
            self._task_of.pop(answer.copy, None)
        for copy in case.live:
            self._task_of.pop(copy, None)
        return sorted(case.live)
