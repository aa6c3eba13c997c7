"""Votes and spot checks: what is accepted, who is caught, and what it costs."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from croft.compute.verification import (
    Accept,
    Ask,
    Caught,
    Check,
    Dispute,
    Effect,
    Standing,
    Verification,
    parse_check,
)
from croft.compute.worker_messages import Status
from croft.errors import Usage
from croft.model.ids import PeerId

ANNA, BO, CLEO, DAN = (PeerId(name) for name in ("anna", "bo", "cleo", "dan"))
TRUE, FALSE, OTHER = b"true", b"false", b"other"


class Job:
    """A verification with its open questions, answered by hand."""

    def __init__(self, check: str, standing: Standing | None = None, seed: int = 0) -> None:
        self.standing = standing or Standing()
        self.verification = Verification(parse_check(check), self.standing, Random(seed))
        self.open: dict[int, list[int]] = {}
        self.accepted: dict[int, int] = {}
        self.caught: dict[PeerId, tuple[int, ...]] = {}
        self.disputed: set[int] = set()
        self.asked = 0
        self.answer_of: dict[int, bytes] = {}

    def add(self, *tasks: int) -> None:
        self.hear(self.verification.add(tasks))

    def hear(self, effects: object) -> None:
        assert isinstance(effects, list | tuple)
        for effect in effects:
            self.hear_one(effect)

    def hear_one(self, effect: Effect) -> None:
        match effect:
            case Ask(task, copy):
                self.asked += 1
                self.open.setdefault(task, []).append(copy)
            case Accept(task, copy, _, unwanted):
                assert task not in self.accepted
                self.accepted[task] = copy
                assert set(unwanted) == set(self.open.pop(task, []))
            case Dispute(task):
                self.disputed.add(task)
            case Caught(peer, _, unchecked):
                self.caught[peer] = unchecked

    def answer(self, peer: PeerId, task: int, said: bytes = TRUE, status: int = Status.OK) -> None:
        copy = self.open[task].pop(0)
        self.answer_of[copy] = said
        self.hear(self.verification.answered(peer, copy, status, said))

    def result(self, task: int) -> bytes:
        return self.answer_of[self.accepted[task]]


def work_off(job: Job, random: Random, tasks: int = 200) -> None:
    """Five peers do tasks in any order; one of them lies about a fifth."""
    peers = [ANNA, BO, CLEO, DAN, PeerId("eve")]
    job.add(*range(tasks))
    answered: dict[int, set[PeerId]] = {}
    while any(job.open.values()):
        task = random.choice(sorted(task for task, copies in job.open.items() if copies))
        peer = random.choice([p for p in peers if p not in answered.get(task, ()) and p not in job.caught])
        answered.setdefault(task, set()).add(peer)
        job.answer(peer, task, FALSE if peer == "eve" and random.random() < 0.2 else TRUE)


@pytest.mark.parametrize(
    ("text", "check"),
    [("", Check()), ("vote:3", Check(votes=3)), ("spot:5%", Check(spot=0.05)), ("spot:0.5%", Check(spot=0.005))],
)
def test_a_check_is_spelled_as_people_would(text: str, check: Check) -> None:
    assert parse_check(text) == check


@pytest.mark.parametrize("text", ["vote", "vote:1", "vote:2", "vote:17", "spot:0%", "spot:101%", "spot:5", "yes"])
def test_what_is_no_check_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(Usage) as caught:
        parse_check(text)
    assert "vote:3" in caught.value.remedy


def test_two_that_agree_are_enough_of_three() -> None:
    job = Job("vote:3")
    job.add(7)
    job.answer(ANNA, 7)
    assert 7 not in job.accepted
    job.answer(BO, 7)

    assert job.result(7) == TRUE and job.asked == 2


def test_a_third_decides_between_two_and_the_outvoted_is_caught() -> None:
    job = Job("vote:3")
    job.add(7)
    job.answer(ANNA, 7, FALSE)
    job.answer(BO, 7)
    assert job.asked == 3
    job.answer(CLEO, 7)

    assert job.result(7) == TRUE and list(job.caught) == [ANNA]
    assert ANNA in job.standing.caught and job.standing.passed == {BO: 1, CLEO: 1}


def test_what_a_liar_said_elsewhere_counts_no_more() -> None:
    job = Job("vote:3")
    job.add(1, 2)
    job.answer(ANNA, 2, FALSE)
    job.answer(ANNA, 1, FALSE)
    job.answer(BO, 1)
    job.answer(CLEO, 1)
    assert list(job.caught) == [ANNA]
    job.answer(BO, 2)
    assert 2 not in job.accepted, "the liar's vote is gone"
    job.answer(CLEO, 2)

    assert job.result(2) == TRUE


def test_where_all_differ_nobody_is_blamed() -> None:
    job = Job("vote:3")
    job.add(7)
    for peer, said in ((ANNA, TRUE), (BO, FALSE), (CLEO, OTHER)):
        job.answer(peer, 7, said)

    assert job.disputed == {7} and not job.caught


def test_a_failure_that_others_do_not_see_is_outvoted_but_no_lie() -> None:
    job = Job("vote:3")
    job.add(7)
    job.answer(ANNA, 7, b"", Status.DIED)
    job.answer(BO, 7)
    job.answer(CLEO, 7)

    assert job.result(7) == TRUE and not job.caught


def test_a_failure_that_two_see_is_the_outcome() -> None:
    job = Job("vote:3")
    job.add(7)
    job.answer(ANNA, 7, b"KeyError", Status.RAISED)
    job.answer(BO, 7, b"KeyError", Status.RAISED)

    assert job.result(7) == b"KeyError"


def test_a_cancelled_task_leaves_nothing_behind() -> None:
    job = Job("vote:5")
    job.add(7)
    copies = list(job.open[7])

    assert sorted(job.verification.cancel([7])) == sorted(copies)
    assert job.verification.answered(ANNA, copies[0], Status.OK, TRUE) == []
    assert job.verification.open_tasks == 0


def test_newcomers_are_checked_often_and_the_proven_never_less_than_asked_for() -> None:
    standing = Standing()
    assert standing.rate(ANNA, 0.1) == 1.0
    standing.passed[ANNA] = 20
    assert 0.1 < standing.rate(ANNA, 0.1) < 0.5
    standing.passed[ANNA] = 1_000
    assert standing.rate(ANNA, 0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(20))
def test_one_of_five_that_lies_about_a_fifth_is_found_by_spot_checks(seed: int) -> None:
    random, job = Random(seed), Job("spot:10%", seed=seed)
    work_off(job, random)

    assert list(job.caught) == ["eve"]
    wrong = [task for task in range(200) if job.result(task) == FALSE]
    assert set(wrong) <= set(job.caught[PeerId("eve")]), "what came of the liar unchecked is told"


@pytest.mark.parametrize("seed", range(20))
def test_votes_let_no_lie_through(seed: int) -> None:
    random, job = Random(seed), Job("vote:3", seed=seed)
    work_off(job, random)

    assert Counter(job.result(task) for task in range(200)) == {TRUE: 200}
    assert list(job.caught) == ["eve"]
    assert job.asked < 200 * 2.3
