"""The bag of tasks under any order of events."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from croft.compute.job import (
    Bag,
    ChunkEnded,
    Effect,
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
from croft.model.ids import PeerId

PEERS = [PeerId(name) for name in ("anna", "bo", "cleo")]


class AnyOrder(RuleBasedStateMachine):
    """Lenders come, go, answer in part, answer twice; tasks come and are cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = Bag(retries=1)
        self.added = 0
        self.now = 0.0
        self.ended: set[int] = set()
        self.chunks: dict[int, SendChunk] = {}
        self.live: set[PeerId] = set()

    def perform(self, effects: object) -> None:
        assert isinstance(effects, list | tuple)
        for effect in effects:
            self.perform_one(effect)

    def perform_one(self, effect: Effect) -> None:
        match effect:
            case SendChunk(_, chunk):
                assert effect.peer in self.live
                self.chunks[chunk] = effect
            case Record(_, outcomes):
                for task, _, _ in outcomes:
                    assert task not in self.ended, "recorded twice"
                    self.ended.add(task)
            case GiveUp(task, _):
                assert task not in self.ended
                self.ended.add(task)
            case RevokeChunk():
                pass

    @rule(count=st.integers(1, 30), near=st.frozensets(st.sampled_from(PEERS)))
    def tasks_come(self, count: int, near: frozenset[PeerId]) -> None:
        tasks = range(self.added, self.added + count)
        self.added += count
        self.perform(self.bag.handle(TasksAdded(b"f", tasks, [1] * count, near=[near] * count)))

    @rule(peer=st.sampled_from(PEERS), slots=st.integers(1, 3))
    def a_lender_comes(self, peer: PeerId, slots: int) -> None:
        if peer not in self.live:
            self.live.add(peer)
            self.perform(self.bag.handle(LenderReady(peer, slots)))

    @rule(peer=st.sampled_from(PEERS))
    def a_lender_is_lost(self, peer: PeerId) -> None:
        self.live.discard(peer)
        self.perform(self.bag.handle(LenderLost(peer)))

    @rule(seconds=st.floats(0.1, 20.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.perform(self.bag.handle(TimePassed(self.now)))

    @precondition(lambda self: self.chunks)
    @rule(data=st.data())
    def a_lender_answers(self, data: st.DataObject) -> None:
        chunk = data.draw(st.sampled_from(sorted(self.chunks.values(), key=lambda c: c.chunk)))
        if chunk.peer in self.live:
            indices = data.draw(st.lists(st.integers(0, len(chunk.tasks) - 1)))
            self.perform(
                self.bag.handle(
                    OutcomesReceived(chunk.peer, chunk.chunk, [(i, data.draw(st.integers(0, 8)), b"") for i in indices])
                )
            )
            if data.draw(st.booleans()):
                self.perform(self.bag.handle(ChunkEnded(chunk.peer, chunk.chunk, 0.001)))
                self.chunks.pop(chunk.chunk)

    @precondition(lambda self: self.added)
    @rule(data=st.data())
    def tasks_are_cancelled(self, data: st.DataObject) -> None:
        tasks = data.draw(st.lists(st.integers(0, self.added - 1), unique=True, max_size=5))
        open_before = self.bag.open_tasks
        gone = [task for task in tasks if task not in self.ended]
        self.perform(self.bag.handle(TasksCancelled(tasks)))
        assert self.bag.open_tasks == open_before - len(gone)
        self.ended.update(gone)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        self.bag.validate()
        assert self.bag.open_tasks == self.added - len(self.ended)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
