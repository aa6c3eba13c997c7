"""Decides which item of a pipeline runs through which stage next, at whom, and what is kept until then. Sans-IO.

Every item goes through all stages in order. What a stage made of it is kept by the peer that made it, until the item is
through: if a later stage is lost, only that is run again. A stage is given new items only while those behind it keep
up, so that what is kept stays small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

from croft.model.ids import PeerId
from croft.model.kept import Held

AHEAD_PER_PEER: Final = 1
"""Items that a peer has besides those its slots run: it fetches their input meanwhile."""
AHEAD_MIN: Final = 4
TRIES_MAX: Final = 8
"""Of one stage of an item, where peers are lost; whoever is not there at all is waited for without end."""
RETRY_S_MIN: Final = 1.0
RETRY_S_MAX: Final = 30.0


@dataclass(frozen=True, slots=True)
class Provider:
    """Somebody who runs a stage, and how many calls at a time."""

    peer: PeerId
    slots: int = 1


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Added:
    """One more item, the number of which is how many there were before."""

    input: Held


@dataclass(frozen=True, slots=True)
class Looked:
    """Who runs each stage now, the better first. `now`: seconds of any clock that only goes forward."""

    now: float
    providers: Sequence[Sequence[Provider]]


@dataclass(frozen=True, slots=True)
class Made:
    """A stage is through with an item."""

    item: int
    value: Held


@dataclass(frozen=True, slots=True)
class Lost:
    """Whoever ran an item cannot be reached, died or was too busy: it runs again."""

    item: int
    now: float
    why: str


@dataclass(frozen=True, slots=True)
class InputLost:
    """What an item's stage needs is not kept any more: the stage before it runs again."""

    item: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The stage itself failed on an item: it raised, or refuses what it is given."""

    item: int
    now: float
    why: str


Event = Added | Looked | Made | Lost | InputLost | Refused


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """Have a peer run a stage."""

    item: int
    stage: int
    peer: PeerId
    input: Held


@dataclass(frozen=True, slots=True)
class Release:
    """Nobody needs this any more."""

    value: Held


@dataclass(frozen=True, slots=True)
class Through:
    """An item has passed all stages."""

    item: int
    value: Held


@dataclass(frozen=True, slots=True)
class GaveUp:
    """An item does not get through. `stage`: where it failed."""

    item: int
    stage: int
    why: str


Effect = Run | Release | Through | GaveUp


@dataclass(slots=True)
class Item:
    """Where an item is. `held`: the input of each stage up to the one it is at; after the last, its result. `error`:
    what went wrong last, at this stage."""

    stage: int
    held: list[Held | None]
    peer: PeerId | None = None
    tries: int = 0
    refusals: int = 0
    not_before: float = 0.0
    error: str = ""
    is_over: bool = False


@dataclass(slots=True)
class StageCount:
    """How a stage stands. `done`: by peer."""

    waiting: int = 0
    running: Counter[PeerId] = field(default_factory=Counter)
    done: Counter[PeerId] = field(default_factory=Counter)
    failed: int = 0


class Pipeline:
    """The items of one pipeline. `retries`: how often a stage may fail on an item by itself before that is given up."""

    def __init__(self, stages: int, retries: int = 0) -> None:
        assert stages > 0
        self._retries = retries
        self.items: list[Item] = []
        self.counts = [StageCount() for _ in range(stages)]
        self._waiting: list[dict[int, None]] = [{} for _ in range(stages)]
        self._open = 0

    @property
    def is_over(self) -> bool:
        """Whether no item is on its way."""
        return self._open == 0

    def handle(self, event: Event) -> Sequence[Effect]:
        """What is to be done now."""
        match event:
            case Added(value):
                self.items.append(Item(0, [value]))
                self._open += 1
                self._wait(len(self.items) - 1)
                return []
            case Looked(now, providers):
                return self._deal(now, providers)
            case Made(number, value):
                return self._made(number, value)
            case Lost(number, now, why):
                return self._lost(number, now, why)
            case InputLost(number):
                return self._input_lost(number)
            case Refused(number, now, why):
                item = self.items[number]
                item.refusals += 1
                if item.refusals > self._retries:
                    self._leave(number)
                    return self._give_up(number, why)
                return self._again(number, now, item.refusals, why)
            case _:
                assert_never(event)

    def resume(self, item: Item) -> None:
        """An item as an earlier run left it."""
        self.items.append(item)
        if item.is_over:
            if item.error:
                self.counts[item.stage].failed += 1
            return
        self._open += 1
        self._wait(len(self.items) - 1)

    # --- dealing -----------------------------------------------------------------------------------------------------

    def _deal(self, now: float, providers: Sequence[Sequence[Provider]]) -> Sequence[Effect]:
        effects: list[Effect] = []
        # The last stages first: what is nearly through frees what is kept for it.
        for stage in reversed(range(len(self.counts))):
            room = self._room_behind(stage, providers)
            for number in list(self._waiting[stage]):
                if room <= 0:
                    break
                item = self.items[number]
                if item.not_before > now:
                    continue
                provider = self._choose(stage, providers[stage], item)
                if provider is None:
                    break
                room -= 1
                effects.append(self._run(number, provider))
        return effects

    def _room_behind(self, stage: int, providers: Sequence[Sequence[Provider]]) -> int:
        """How many items may begin at a stage before those behind it have more than enough to do."""
        if stage + 1 == len(self.counts):
            return len(self._waiting[stage])
        capacity = sum(one.slots + AHEAD_PER_PEER for one in providers[stage + 1])
        ahead = len(self._waiting[stage + 1]) + sum(self.counts[stage].running.values())
        return max(AHEAD_MIN, 2 * capacity) - ahead

    def _choose(self, stage: int, providers: Sequence[Provider], item: Item) -> Provider | None:
        running = self.counts[stage].running
        free = [one for one in providers if running[one.peer] < one.slots + AHEAD_PER_PEER]
        held = item.held[stage]
        here = held.peer if held is not None else None

        def load(one: Provider) -> tuple[float, bool]:
            return running[one.peer] / one.slots, one.peer != here

        return min(free, key=load, default=None)

    def _run(self, number: int, provider: Provider) -> Run:
        item = self.items[number]
        value = item.held[item.stage]
        assert value is not None, "a waiting item has its input"
        del self._waiting[item.stage][number]
        item.peer = provider.peer
        self.counts[item.stage].waiting -= 1
        self.counts[item.stage].running[provider.peer] += 1
        return Run(number, item.stage, provider.peer, value)

    # --- what came of it ---------------------------------------------------------------------------------------------

    def _made(self, number: int, value: Held) -> Sequence[Effect]:
        item = self.items[number]
        peer = self._leave(number)
        self.counts[item.stage].done[peer] += 1
        item.held.append(value)
        item.stage, item.tries, item.refusals, item.not_before, item.error = item.stage + 1, 0, 0, 0.0, ""
        if item.stage < len(self.counts):
            self._wait(number)
            return []
        item.is_over = True
        self._open -= 1
        return [Through(number, value), *self._release(item, keep_last=True)]

    def _lost(self, number: int, now: float, why: str) -> Sequence[Effect]:
        item = self.items[number]
        item.tries += 1
        if item.tries >= TRIES_MAX:
            self._leave(number)
            return self._give_up(number, why)
        return self._again(number, now, item.tries, why)

    def _input_lost(self, number: int) -> Sequence[Effect]:
        item = self.items[number]
        self._leave(number)
        item.held[item.stage] = None
        while item.stage and item.held[item.stage] is None:
            item.held.pop()
            item.stage -= 1
        if item.held[item.stage] is None:
            return self._give_up(number, "its input is not there any more")
        self._wait(number)
        return []

    def _again(self, number: int, now: float, times: int, why: str) -> Sequence[Effect]:
        item = self.items[number]
        self._leave(number)
        item.error = why
        item.not_before = now + min(RETRY_S_MAX, RETRY_S_MIN * 2 ** (times - 1))
        self._wait(number)
        return []

    def _give_up(self, number: int, why: str) -> Sequence[Effect]:
        item = self.items[number]
        item.is_over, item.error = True, why
        self._open -= 1
        self.counts[item.stage].failed += 1
        return [GaveUp(number, item.stage, why), *self._release(item, keep_last=False)]

    def _release(self, item: Item, *, keep_last: bool) -> list[Effect]:
        needless = item.held[:-1] if keep_last else item.held
        item.held = item.held[-1:] if keep_last else []
        return [Release(value) for value in needless if value is not None]

    def _leave(self, number: int) -> PeerId:
        """An item does not run any more; returns where it did."""
        item = self.items[number]
        peer = item.peer
        assert peer is not None, "it ran"
        item.peer = None
        running = self.counts[item.stage].running
        running[peer] -= 1
        if not running[peer]:
            del running[peer]
        return peer

    def _wait(self, number: int) -> None:
        stage = self.items[number].stage
        self._waiting[stage][number] = None
        self.counts[stage].waiting += 1


def next_look_s(items: Iterable[Item], now: float) -> float | None:
    """When the first of those that wait after a failure may run again, in seconds from now; None for none."""
    times = [item.not_before - now for item in items if item.not_before > now and not item.is_over]
    return min(times, default=None)


def kept_at(items: Iterable[Item]) -> Mapping[PeerId, int]:
    """How many bytes each peer keeps for items on their way."""
    kept: Counter[PeerId] = Counter()
    for item in items:
        for value in item.held:
            if value is not None:
                kept[value.peer] += value.size
    return kept
