"""The bag of tasks: every task recorded once, whatever dies."""

import pytest

from croft.compute import job as core
from croft.compute.job import (
    LENDERS_LOST_MAX,
    Bag,
    ChunkEnded,
    GiveUp,
    LenderLost,
    LenderReady,
    OutcomesReceived,
    Record,
    RevokeChunk,
    SendChunk,
    TasksAdded,
    TasksCancelled,
    TimePassed,
)
from croft.compute.splitter import Pace
from croft.compute.worker_messages import Status
from croft.errors import PeerMisbehaved
from croft.model.ids import PeerId

ANNA, BO, CLEO = PeerId("anna"), PeerId("bo"), PeerId("cleo")
FUNCTION = b"f"


def added(count: int) -> TasksAdded:
    return TasksAdded(FUNCTION, range(count), [1] * count)


def chunks(effects: object) -> list[SendChunk]:
    assert isinstance(effects, list | tuple)
    return [effect for effect in effects if isinstance(effect, SendChunk)]


def test_the_first_tasks_go_one_by_one_to_every_lender() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))
    bag.handle(LenderReady(BO, 1))

    dealt = chunks(bag.handle(added(10)))

    assert [(chunk.peer, chunk.tasks) for chunk in dealt] == [(ANNA, (0,)), (BO, (1,)), (ANNA, (2,)), (BO, (3,))]


def test_chunks_grow_once_a_lender_has_shown_its_pace() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))
    first = chunks(bag.handle(added(1000)))[0]
    bag.handle(OutcomesReceived(ANNA, first.chunk, [(0, 0, b"")]))

    following = chunks(bag.handle(ChunkEnded(ANNA, first.chunk, 0.0001)))

    assert len(following[0].tasks) == 8


def test_a_lender_is_not_given_more_arguments_than_it_has_room_for() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 4, bytes_max=25))

    dealt = chunks(bag.handle(TasksAdded(FUNCTION, range(4), [10, 10, 10, 10])))
    assert [chunk.tasks for chunk in dealt] == [(0,), (1,)]

    bag.handle(OutcomesReceived(ANNA, dealt[0].chunk, [(0, 0, b"")]))
    following = chunks(bag.handle(ChunkEnded(ANNA, dealt[0].chunk, 0.1)))
    assert [chunk.tasks for chunk in following] == [(2,)]
    bag.validate()


def test_a_task_that_no_lender_has_room_for_is_dealt_all_the_same() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 4, bytes_max=25))

    assert [chunk.tasks for chunk in chunks(bag.handle(TasksAdded(FUNCTION, [0, 1], [100, 1])))] == [(0,)]


def test_tasks_of_a_lost_lender_go_to_another() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))
    lost = chunks(bag.handle(added(2)))
    bag.handle(LenderReady(BO, 1))

    again = chunks(bag.handle(LenderLost(ANNA)))

    assert [chunk.tasks for chunk in lost] == [(0,), (1,)]
    assert [(chunk.peer, chunk.tasks) for chunk in again] == [(BO, (0,)), (BO, (1,))]
    bag.validate()


def test_a_late_outcome_of_a_task_that_was_given_anew_does_not_count() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))
    (early,) = chunks(bag.handle(added(1)))
    bag.handle(LenderLost(ANNA))
    (again,) = chunks(bag.handle(LenderReady(BO, 1)))

    assert bag.handle(OutcomesReceived(ANNA, early.chunk, [(0, 0, b"late")])) == []
    assert bag.handle(OutcomesReceived(BO, again.chunk, [(0, 0, b"good")])) == [Record(BO, ((0, 0, b"good"),))]


def test_an_outcome_sent_twice_counts_once() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))
    (chunk,) = chunks(bag.handle(added(1)))
    bag.handle(OutcomesReceived(ANNA, chunk.chunk, [(0, 0, b"")]))

    assert bag.handle(OutcomesReceived(ANNA, chunk.chunk, [(0, 0, b"")])) == []


def test_a_task_that_loses_too_many_lenders_is_given_up() -> None:
    bag = Bag()
    bag.handle(added(1))
    effects: object = []
    for _ in range(LENDERS_LOST_MAX):
        bag.handle(LenderReady(ANNA, 1))
        effects = bag.handle(LenderLost(ANNA))

    assert effects == [GiveUp(0, LENDERS_LOST_MAX)]
    assert bag.open_tasks == 0


def test_a_chunk_that_ends_early_gives_its_rest_back() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))
    (chunk,) = chunks(bag.handle(added(1)))

    (again,) = chunks(bag.handle(ChunkEnded(ANNA, chunk.chunk, 0.0)))

    assert again.tasks == (0,)
    assert again.chunk != chunk.chunk


def test_answering_for_a_chunk_of_another_lender_is_misbehaviour() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))
    (chunk,) = chunks(bag.handle(added(1)))

    with pytest.raises(PeerMisbehaved):
        bag.handle(OutcomesReceived(BO, chunk.chunk, [(0, 0, b"")]))


def test_answering_for_a_task_outside_the_chunk_is_misbehaviour() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))
    (chunk,) = chunks(bag.handle(added(1)))

    with pytest.raises(PeerMisbehaved):
        bag.handle(OutcomesReceived(ANNA, chunk.chunk, [(1, 0, b"")]))


def test_a_chunk_whose_tasks_are_all_cancelled_is_revoked() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))
    (chunk,) = chunks(bag.handle(added(1)))

    assert bag.handle(TasksCancelled([0])) == [RevokeChunk(ANNA, chunk.chunk)]
    assert bag.open_tasks == 0
    bag.validate()


def test_large_arguments_make_small_chunks() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))
    size = core.CHUNK_BYTES_MAX
    first = chunks(bag.handle(TasksAdded(FUNCTION, range(100), [size] * 100)))[0]
    bag.handle(OutcomesReceived(ANNA, first.chunk, [(0, 0, b"")]))

    (following,) = chunks(bag.handle(ChunkEnded(ANNA, first.chunk, 0.00001)))

    assert len(following.tasks) == 1


def tail_bag() -> Bag:
    """Anna has shown her pace of a second a task, runs the second of three and has the third waiting; Bo comes."""
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))
    first, _ = chunks(bag.handle(added(3)))
    bag.handle(TimePassed(1.0))
    bag.handle(OutcomesReceived(ANNA, first.chunk, [(0, 0, b"")]))
    bag.handle(ChunkEnded(ANNA, first.chunk, 1.0))
    return bag


def test_what_waits_at_a_busy_lender_is_moved_to_an_idle_one() -> None:
    bag = tail_bag()

    effects = bag.handle(LenderReady(BO, 1))

    assert [type(effect) for effect in effects] == [RevokeChunk, SendChunk]
    assert [(chunk.peer, chunk.tasks) for chunk in chunks(effects)] == [(BO, (2,))]
    bag.validate()


def copied_bag() -> tuple[Bag, SendChunk]:
    """Anna runs the last task for far too long, and Bo, who has done another, has a copy of it."""
    bag = tail_bag()
    (moved,) = chunks(bag.handle(LenderReady(BO, 1)))
    bag.handle(TimePassed(2.0))
    bag.handle(OutcomesReceived(BO, moved.chunk, [(0, 0, b"")]))
    assert chunks(bag.handle(ChunkEnded(BO, moved.chunk, 1.0))) == [], "it has only just run out of its time"
    assert chunks(bag.handle(TimePassed(2.1))) == []
    (copy,) = chunks(bag.handle(TimePassed(4.0)))
    return bag, copy


def test_what_runs_too_long_is_copied_to_an_idle_lender() -> None:
    bag, copy = copied_bag()

    assert (copy.peer, copy.tasks) == (BO, (1,))
    bag.validate()


def test_the_first_outcome_of_a_copied_task_counts_and_the_loser_is_revoked() -> None:
    bag, copy = copied_bag()

    effects = bag.handle(OutcomesReceived(BO, copy.chunk, [(0, 0, b"copy")]))

    assert effects[0] == Record(BO, ((1, 0, b"copy"),))
    assert [type(effect) for effect in effects[1:]] == [RevokeChunk]
    bag.validate()


def test_a_copied_task_is_not_queued_again_when_one_of_its_lenders_is_lost() -> None:
    bag, _ = copied_bag()

    bag.handle(LenderLost(ANNA))

    assert bag.open_tasks == 1 and bag.waiting_tasks == 0
    bag.validate()


def test_a_copy_gets_its_time_before_there_is_another_one() -> None:
    bag, _ = copied_bag()

    assert chunks(bag.handle(LenderReady(CLEO, 1))) == []
    assert [chunk.peer for chunk in chunks(bag.handle(TimePassed(5.5)))] == [CLEO]
    bag.validate()


def test_a_revoked_chunk_teaches_nothing_about_its_lender() -> None:
    bag, copy = copied_bag()
    bag.handle(OutcomesReceived(BO, copy.chunk, [(0, 0, b"copy")]))
    anna = bag._lenders[ANNA]
    before = anna.pace[FUNCTION].task_s

    bag.handle(ChunkEnded(ANNA, next(iter(anna.chunks)), 0.0))

    assert anna.pace[FUNCTION].task_s == before
    bag.validate()


def test_nothing_is_copied_while_nobody_knows_how_long_a_task_takes() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))
    bag.handle(added(1))
    bag.handle(LenderReady(BO, 1))

    assert chunks(bag.handle(TimePassed(1_000.0))) == []


def test_a_task_that_failed_runs_again_as_often_as_it_may() -> None:
    bag = Bag(retries=2)
    bag.handle(LenderReady(ANNA, 1))
    chunk = chunks(bag.handle(added(2)))[0]
    for _ in range(2):
        assert bag.handle(OutcomesReceived(ANNA, chunk.chunk, [(0, Status.RAISED, b"")])) == []
        bag.validate()
        (chunk,) = chunks(bag.handle(ChunkEnded(ANNA, chunk.chunk, 1.0)))
        assert chunk.tasks == (0,)

    assert bag.handle(OutcomesReceived(ANNA, chunk.chunk, [(0, Status.RAISED, b"last")])) == [
        Record(ANNA, ((0, Status.RAISED, b"last"),))
    ]


def test_what_cannot_go_better_is_not_run_again() -> None:
    bag = Bag(retries=5)
    bag.handle(LenderReady(ANNA, 1))
    (chunk,) = chunks(bag.handle(added(1)))

    assert bag.handle(OutcomesReceived(ANNA, chunk.chunk, [(0, Status.UNCARRIED, b"")])) != []


def test_what_waits_behind_chunks_that_are_never_given_back_is_moved() -> None:
    bag = Bag()
    bag.handle(TimePassed(1.0))
    bag.handle(LenderReady(ANNA, 1))
    stuck, _ = chunks(bag.handle(added(3)))
    (own,) = chunks(bag.handle(LenderReady(BO, 1)))
    bag.handle(TasksCancelled(stuck.tasks))  # and Anna never says that it has ended
    bag.handle(TimePassed(1.1))
    bag.handle(OutcomesReceived(BO, own.chunk, [(0, 0, b"")]))
    bag.handle(ChunkEnded(BO, own.chunk, 0.1))

    assert [(chunk.peer, chunk.tasks) for chunk in chunks(bag.handle(TimePassed(3.0)))] == [(BO, (1,))]
    bag.validate()


def test_what_was_dealt_before_the_time_was_known_is_not_late_at_once() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))
    bag.handle(added(1))
    bag.handle(LenderReady(BO, 1))
    bag._lenders[BO].pace[FUNCTION] = Pace(1.0)

    assert bag.handle(TimePassed(1_000_000.0)) == []
    assert [chunk.peer for chunk in chunks(bag.handle(TimePassed(1_000_005.0)))] == [BO]


def test_a_task_goes_where_its_arguments_lie_and_elsewhere_if_there_is_no_slot() -> None:
    bag = Bag()
    for peer in (ANNA, BO):
        bag.handle(LenderReady(peer, 1))

    dealt = chunks(bag.handle(TasksAdded(FUNCTION, range(4), [1] * 4, near=[frozenset({BO})] * 4)))

    assert [(chunk.peer, chunk.tasks) for chunk in dealt] == [(BO, (0,)), (BO, (1,)), (ANNA, (2,)), (ANNA, (3,))]


def test_what_takes_longer_to_move_than_to_wait_for_is_not_moved() -> None:
    for size, moves in ((1_000, 1), (100_000_000, 0)):
        bag = Bag()
        bag.handle(LenderReady(ANNA, 1))
        bag.handle(TimePassed(1.0))
        first = chunks(bag.handle(TasksAdded(FUNCTION, range(3), [size] * 3, near=[frozenset({ANNA})] * 3)))
        bag.handle(OutcomesReceived(ANNA, first[0].chunk, [(0, 0, b"")]))
        bag.handle(ChunkEnded(ANNA, first[0].chunk, 0.5))

        assert len(chunks(bag.handle(LenderReady(BO, 1)))) == moves


def test_what_lies_at_a_lender_comes_before_what_lies_nowhere() -> None:
    bag = Bag()
    bag.handle(TasksAdded(FUNCTION, range(3), [1] * 3, near=[frozenset(), frozenset(), frozenset({BO})]))

    assert chunks(bag.handle(LenderReady(BO, 1)))[0].tasks == (2,)


def test_a_task_is_not_kept_for_a_peer_that_is_not_there() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))

    dealt = chunks(bag.handle(TasksAdded(FUNCTION, range(1), [1], near=[frozenset({CLEO})])))

    assert [(chunk.peer, chunk.tasks) for chunk in dealt] == [(ANNA, (0,))]


def test_a_copy_that_lacks_its_arguments_does_not_end_the_task() -> None:
    bag = Bag()
    bag.handle(LenderReady(ANNA, 1))
    first = chunks(bag.handle(added(1)))[0]
    bag.handle(OutcomesReceived(ANNA, first.chunk, []))
    bag.handle(TimePassed(1.0))
    bag.handle(LenderReady(BO, 1))
    paced = bag._lenders[ANNA].pace[FUNCTION]
    paced.learn(1, 0.1)
    copy = chunks(bag.handle(TimePassed(5.0)))[0]
    assert copy.peer == BO

    assert bag.handle(OutcomesReceived(BO, copy.chunk, [(0, Status.LOST, b"")])) == []
    assert isinstance(bag.handle(OutcomesReceived(ANNA, first.chunk, [(0, 0, b"")]))[0], Record)


def test_what_is_not_deterministic_is_never_copied_while_it_runs() -> None:
    for deterministic, copies in ((None, 1), (True, 1), (False, 0)):
        bag = Bag(0, deterministic)
        bag.handle(LenderReady(ANNA, 1))
        first = chunks(bag.handle(added(2)))
        bag.handle(OutcomesReceived(ANNA, first[0].chunk, [(0, 0, b"")]))
        bag.handle(ChunkEnded(ANNA, first[0].chunk, 0.1))
        bag.handle(TimePassed(1.0))
        bag.handle(TimePassed(20.0))

        assert len(chunks(bag.handle(LenderReady(BO, 1)))) == copies


def test_what_a_deterministic_task_raises_is_not_tried_again() -> None:
    for deterministic, again in ((None, True), (False, True), (True, False)):
        bag = Bag(1, deterministic)
        bag.handle(LenderReady(ANNA, 1))
        first = chunks(bag.handle(added(1)))[0]

        effects = bag.handle(OutcomesReceived(ANNA, first.chunk, [(0, Status.RAISED, b"")]))

        assert (effects == []) == again


def test_a_deterministic_task_that_died_is_tried_again() -> None:
    bag = Bag(1, True)
    bag.handle(LenderReady(ANNA, 1))
    first = chunks(bag.handle(added(1)))[0]

    assert bag.handle(OutcomesReceived(ANNA, first.chunk, [(0, Status.DIED, b"")])) == []
