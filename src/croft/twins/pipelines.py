"""Runs pipelines: has each stage called at whoever offers it, and lets them hand on to each other what they made.

The shell of `pipeline`. What a stage makes stays at the peer that made it and is fetched from there by the peer of the
next one; here come and go only the calls themselves. All is on disk: a pipeline goes on after a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol

from blake3 import blake3

from croft.errors import Busy, CroftError, NotFound, Refused, Usage, ValueLost
from croft.model.ids import PeerId, TwinId
from croft.model.kept import Held
from croft.twins import pipeline as core
from croft.twins.call_messages import (
    VALUE_PART_BYTES_MAX,
    AskCall,
    CallFailed,
    CallRaised,
    CallWaits,
    ToCaller,
    ValueKept,
    ValueRef,
)
from croft.twins.kept_values import KeptValues
from croft.twins.pipeline import Item, Pipeline, Provider
from croft.twins.pipeline_store import KeptPipeline, PipelineSpec, PipelineStore, StageSpec

if TYPE_CHECKING:
    from croft.ports import Clock, Database, Entropy
    from croft.twins.call import Candidate

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.5
ID_BYTES: Final = 8
KEY_BYTES: Final = 16
STAGES_MAX: Final = 32
ITEMS_MAX: Final = 100_000
PIPELINES_MAX: Final = 256
ITEM_BYTES_MAX: Final = 256 << 20
SMALL_BYTES: Final = 64 << 10
"""A result of at most so many bytes is brought here at once; larger ones stay where they were made."""
CONSENT_S: Final = 3_600.0
"""How long a stage's owner may take to consent to a call."""

OPEN, RUNNING, DONE, CANCELLED = "open", "running", "done", "cancelled"
ELSEWHERE: Final = frozenset({"unreachable", "call_lost", "busy", "not_found", "peer_misbehaved"})
"""Failures of a peer, not of what it was asked."""


class OpenCall(Protocol):
    """A call under way."""

    def stop(self) -> None: ...


class Calls(Protocol):
    """Makes calls."""

    def call(self, asked: AskCall, deliver: Callable[[ToCaller], None]) -> OpenCall:
        """Raises NotFound."""
        ...


class Directory(Protocol):
    """Knows who offers what."""

    def candidates(self, name: str, signature: bytes, of: str) -> tuple[Sequence[Candidate], bool]:
        """Raises NotFound."""
        ...


@dataclass(slots=True)
class Running:
    """A pipeline that has not ended, or whose results are still here."""

    kept: KeptPipeline
    core: Pipeline
    calls: dict[int, OpenCall] = field(default_factory=dict)
    waiting_for_consent: dict[int, None] = field(default_factory=dict)
    changed: dict[int, None] = field(default_factory=dict)
    released: list[Held] = field(default_factory=list)
    asks: list[str] = field(default_factory=list)
    """Whom it waits for: stages that nobody offers now."""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_live(self) -> bool:
        """Whether something may still run."""
        return self.kept.state in (OPEN, RUNNING)


class Pipelines:
    """The pipelines of this peer's owner. `load` before `serve`."""

    def __init__(
        self,
        own: PeerId,
        twin: TwinId,
        calls: Calls,
        directory: Directory,
        values: KeptValues,
        database: Database,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._own = own
        self._twin = twin
        self._calls = calls
        self._directory = directory
        self._values = values
        self._store = PipelineStore(database)
        self._clock = clock
        self._entropy = entropy
        self._all: dict[str, Running] = {}
        self._heard: deque[tuple[str, core.Event]] = deque()
        self._poke = asyncio.Event()

    # --- the owner's side --------------------------------------------------------------------------------------------

    async def open(self, spec: PipelineSpec) -> str:
        """A new pipeline that takes items; its id. Raises Usage, NotFound for a stage that nobody offers, Busy."""
        if not 0 < len(spec.stages) <= STAGES_MAX:
            raise Usage(f"a pipeline of {len(spec.stages)} stages", remedy=f"Between 1 and {STAGES_MAX} are possible.")
        for stage in spec.stages:
            self._directory.candidates(stage.name, stage.signature, stage.of)
        if len(self._all) >= PIPELINES_MAX:
            raise Busy(f"{PIPELINES_MAX} pipelines are kept here", remedy="Forget some: `croft pipeline rm ID`.")
        id_ = self._entropy.token(ID_BYTES).hex()
        kept = KeptPipeline(id_, spec, self._clock.now(), None, OPEN)
        await self._store.write(kept)
        self._all[id_] = Running(kept, Pipeline(len(spec.stages), spec.retries))
        return id_

    async def add(self, id_: str, parts: Sequence[bytes]) -> None:
        """One more item, in the safe codec; it is on disk when this returns. Raises NotFound, Refused, Busy, Failed."""
        running = self.get(id_)
        if running.kept.state != OPEN:
            raise Refused(f"pipeline {id_} takes no more items")
        if len(running.core.items) >= ITEMS_MAX or sum(map(len, parts)) > ITEM_BYTES_MAX:
            raise Usage("too many items, or one of over 256 MiB", remedy="Split the work.")
        value = await self._values.keep(self._twin, parts)
        number = len(running.core.items)
        running.core.handle(core.Added(value))
        await self._store.write(running.kept, [(number, running.core.items[number])])
        self._poke.set()

    async def close_input(self, id_: str) -> int:
        """No more items come; returns how many there are. Raises NotFound, Failed."""
        running = self.get(id_)
        if running.kept.state == OPEN:
            running.kept = replace(running.kept, state=RUNNING)
            await self._store.write(running.kept)
            self._poke.set()
        return len(running.core.items)

    def all(self) -> list[Running]:
        """Newest first."""
        return list(self._all.values())[::-1]

    def get(self, name: str) -> Running:
        """One, by its id, the start of that, or its name. Raises NotFound."""
        found = [one for one in self.all() if name in (one.kept.id, one.kept.spec.name)]
        found = found or [one for one in self.all() if name and one.kept.id.startswith(name)]
        if not found:
            raise NotFound(f"there is no pipeline `{name}`", remedy="See which there are: `croft pipeline list`.")
        return found[0]

    async def cancel(self, name: str) -> Running:
        """Ends a pipeline; what is through stays. Raises NotFound, Failed."""
        running = self.get(name)
        if running.is_live:
            self._stop(running)
            running.kept = replace(running.kept, state=CANCELLED, ended_at=self._clock.now())
            await self._store.write(running.kept)
            running.released += [
                value for item in running.core.items if not item.is_over for value in item.held if value is not None
            ]
            self._poke.set()
            running.news.set()
        return running

    async def forget(self, name: str) -> Running:
        """Ends a pipeline and drops its results. Raises NotFound, Failed."""
        running = await self.cancel(name)
        await self._store.forget(running.kept.id)
        del self._all[running.kept.id]
        results = [value for item in running.core.items if item.is_over for value in item.held if value is not None]
        await self._release([*running.released, *results])
        return running

    async def outcomes(self, name: str, *, is_in_order: bool) -> AsyncIterator[tuple[int, Item]]:
        """Items as they get to their end, until the pipeline is over. Raises NotFound."""
        running = self.get(name)
        told: set[int] = set()
        while True:
            running.news.clear()
            for number, item in enumerate(running.core.items):
                if number in told:
                    continue
                if item.is_over:
                    told.add(number)
                    yield number, item
                elif is_in_order and running.is_live:
                    break
            if not running.is_live:
                return
            await running.news.wait()

    def read(self, value: Held) -> AsyncIterator[bytes]:
        """What a stage made, from where it is. Raises NotFound, Unreachable."""
        return self._values.read(value)

    # --- running -----------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Takes in what the last run left on disk. Raises Failed."""
        for kept in await self._store.all():
            if kept.state == OPEN:
                # Whoever brought items is gone; those that came are run.
                kept = replace(kept, state=RUNNING)
            running = Running(kept, Pipeline(len(kept.spec.stages), kept.spec.retries))
            for item in await self._store.items(kept.id):
                running.core.resume(item)
            self._all[kept.id] = running

    async def serve(self) -> None:
        """Until cancelled; calls under way end then, and run again after the next start."""
        try:
            while True:
                self._poke.clear()
                self._settle()
                for running in list(self._all.values()):
                    if running.is_live:
                        self._deal(running)
                    await self._tend(running)
                is_idle = not any(running.is_live or running.released for running in self._all.values())
                try:
                    async with asyncio.timeout(None if is_idle else LOOK_EVERY_S):
                        await self._poke.wait()
                except TimeoutError:
                    pass
        finally:
            for running in self._all.values():
                self._stop(running)

    def _settle(self) -> None:
        """Takes in what was heard of calls."""
        while self._heard:
            id_, event = self._heard.popleft()
            running = self._all.get(id_)
            if running is not None and running.is_live:
                self._perform(running, running.core.handle(event))

    def _deal(self, running: Running) -> None:
        providers = []
        running.asks = []
        for stage in running.kept.spec.stages:
            found = self._providers(stage)
            providers.append(found)
            if not found:
                running.asks.append(stage.name)
        now = asyncio.get_running_loop().time()
        self._perform(running, running.core.handle(core.Looked(now, providers)))

    def _providers(self, stage: StageSpec) -> list[Provider]:
        try:
            candidates, _ = self._directory.candidates(stage.name, stage.signature, stage.of)
        except NotFound:
            return []
        return [Provider(one.peer, one.slots) for one in candidates if one.is_alive]

    def _perform(self, running: Running, effects: Iterable[core.Effect]) -> None:
        for effect in effects:
            match effect:
                case core.Run():
                    self._run(running, effect)
                case core.Release(value):
                    running.released.append(value)
                case core.Through(item) | core.GaveUp(item):
                    running.changed[item] = None
                    running.news.set()

    async def _tend(self, running: Running) -> None:
        """Writes what has changed, and only then has what is needless dropped."""
        is_ended = running.kept.state == RUNNING and running.core.is_over
        if not running.changed and not running.released and not is_ended:
            return
        numbers, running.changed = list(running.changed), {}
        released, running.released = running.released, []
        try:
            await self._bring_small(running, numbers, released)
            if is_ended:
                running.kept = replace(running.kept, state=DONE, ended_at=self._clock.now())
            await self._store.write(running.kept, [(number, running.core.items[number]) for number in numbers])
        except CroftError as error:
            log.warning("pipeline %s is not kept on disk now: %s", running.kept.id, error.message)
            running.changed = dict.fromkeys([*numbers, *running.changed])
            running.released = [*released, *running.released]
            if is_ended:
                running.kept = replace(running.kept, state=RUNNING, ended_at=None)
            return
        running.news.set()
        await self._release(released)

    async def _bring_small(self, running: Running, numbers: Sequence[int], released: list[Held]) -> None:
        """Small results are brought here: they are there also when those who made them are not."""
        for number in numbers:
            item = running.core.items[number]
            held = item.held[-1] if item.is_over and item.held else None
            if held is None or held.peer == self._own or held.size > SMALL_BYTES:
                continue
            try:
                value = await self._values.keep(self._twin, [part async for part in self._values.read(held)])
            except CroftError as error:
                log.info("a result of pipeline %s stays at its maker: %s", running.kept.id, error.message)
                continue
            item.held[-1] = value
            released.append(held)

    async def _release(self, values: Sequence[Held]) -> None:
        by_peer: dict[PeerId, list[bytes]] = {}
        for value in values:
            by_peer.setdefault(value.peer, []).append(value.token)
        for peer, tokens in by_peer.items():
            try:
                await self._values.release_at(peer, tokens)
            except CroftError as error:
                # They go by themselves there, after a day.
                log.info("%d values are not released: %s", len(tokens), error.message)

    def _stop(self, running: Running) -> None:
        for call in running.calls.values():
            call.stop()
        running.calls.clear()

    # --- calls -------------------------------------------------------------------------------------------------------

    def _run(self, running: Running, run: core.Run) -> None:
        stage = running.kept.spec.stages[run.stage]
        id_, number = running.kept.id, run.item
        key = blake3(f"{id_}/{number}/{run.stage}".encode()).digest(length=KEY_BYTES)
        asked = AskCall(
            0,
            stage.name,
            stage.arguments,
            signature=stage.signature,
            key=key,
            wait_s=CONSENT_S,
            time_s_max=stage.time_s_max,
            of=run.peer,
            refs=[ValueRef(stage.parameter, run.input.peer, run.input.token, run.input.size)],
            is_kept=True,
        )

        def deliver(message: ToCaller) -> None:
            event = self._event(running, run, message)
            if event is not None:
                running.calls.pop(number, None)
                running.waiting_for_consent.pop(number, None)
                running.changed[number] = None
                self._heard.append((id_, event))
                self._poke.set()

        try:
            call = self._calls.call(asked, deliver)
        except CroftError as error:
            self._heard.append((id_, core.Lost(number, asyncio.get_running_loop().time(), error.message)))
            return
        running.calls[number] = call

    def _event(self, running: Running, run: core.Run, message: ToCaller) -> core.Event | None:
        """What a message about a call means for its item; None while it goes on."""
        now = asyncio.get_running_loop().time()
        match message:
            case ValueKept(_, token, size):
                return core.Made(run.item, Held(run.peer, token, size))
            case CallRaised(_, name, text):
                return core.Refused(run.item, now, f"{name}: {text}")
            case CallFailed(_, code, text):
                if code == ValueLost.code:
                    return core.InputLost(run.item)
                return (core.Lost if code in ELSEWHERE else core.Refused)(run.item, now, text)
            case CallWaits():
                running.waiting_for_consent[run.item] = None
        return None


def whole_parts(data: bytes) -> list[bytes]:
    """A value in parts that fit a message."""
    return [data[at : at + VALUE_PART_BYTES_MAX] for at in range(0, max(1, len(data)), VALUE_PART_BYTES_MAX)]
