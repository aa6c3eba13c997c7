"""Gets environments ready for boxes: fetches the wheels that are lacking, has them unpacked in a box, keeps the result.

The asker's own peer has the wheels, and so have those that work for it already. Whatever comes is checked by its
digest; a peer that sends something else is named.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from croft.compute.environment import DIGEST_BYTES, Environment, Wheel, check_sound, digest_of, fitting
from croft.compute.environment_messages import (
    WHEEL_PART_BYTES,
    WHEELS_PURPOSE,
    BuilderAnswer,
    Built,
    GetWheel,
    NotBuilt,
    WheelAnswer,
    WheelEnd,
    WheelMissing,
    WheelPart,
)
from croft.errors import ConnectionLost, CroftError, Failed, NotFound, PeerMisbehaved, Refused, TooLarge
from croft.model.ids import PeerId
from croft.wire.codec import decode, decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.compute.lending_terms import Consumer
    from croft.compute.live_boxes import LiveBoxes
    from croft.ports import Box, BoxSpec, BoxUsage, Stream

log = logging.getLogger(__name__)

BUILD_S_MAX = 600.0
QUIET_S_MAX = 30.0
"""A source of wheels from which nothing comes for so long is given up."""
FETCHES_MAX = 16
FETCH_S_MIN = 60.0
FETCH_BYTES_PER_S_MIN = 64 << 10
"""A source that is slower than this, once that time is over, is given up."""
SERVED_MAX = 16
SOURCES_MAX = 4
UNPACKED_RATIO_MAX = 20
"""A wheel that unpacks to more than so many times its size, and what is below, is a bomb."""
UNPACKED_BYTES_MIN = 256 << 20
STEP = "wheels"


class Cache(Protocol):
    """Wheels and built environments on disk; see `croft.adapters.environment_cache`."""

    bytes_max: int

    @property
    def wheels(self) -> Path: ...

    def place(self, digest: bytes) -> Path: ...

    def has(self, digest: bytes) -> bool: ...

    async def read(self, digest: bytes, offset: int, size: int) -> bytes:
        """Raises NotFound."""
        ...

    async def keep(self, digest: bytes, parts: AsyncIterator[bytes]) -> bool:
        """Whether what came is what the digest says; else nothing is kept. Raises Failed."""
        ...

    def drop(self, digest: bytes) -> None: ...

    def find(self, digest: bytes) -> Path | None: ...

    async def adopt(self, digest: bytes, folder: Path) -> Path:
        """Raises Failed."""
        ...

    async def trim(self, used: Collection[str]) -> None: ...


class Builders(Protocol):
    """How this machine builds; part of `croft.compute.lending_terms.Policy`."""

    def python(self) -> str: ...

    def wheel_tags(self) -> Sequence[str]:
        """What wheels for this machine's Python are marked with, best first."""
        ...

    def build_box(self, wheels: Path, arguments: Sequence[str], bytes_max: int) -> BoxSpec:
        """A box that unpacks wheels, which are in the folder `wheels`, into its work folder. Raises Failed."""
        ...

    def discard(self, spec: BoxSpec) -> None: ...


class Neighbours(Protocol):
    """How to reach those who have wheels."""

    def name_of(self, peer: PeerId) -> str: ...

    async def open_stream(self, peer: PeerId, purpose: str) -> Stream:
        """Raises Unreachable."""
        ...


class Environments:
    """The environments of one peer: its own jobs' wheels, and what it builds for the jobs of others."""

    def __init__(self, cache: Cache, builders: Builders, live: LiveBoxes) -> None:
        self._cache = cache
        self._builders = builders
        self._live = live
        self._locks: weakref.WeakValueDictionary[bytes, asyncio.Lock] = weakref.WeakValueDictionary()
        self._held: Counter[str] = Counter()
        self._fetching = asyncio.Semaphore(FETCHES_MAX)
        self._serving = asyncio.Semaphore(SERVED_MAX)
        self._is_fuller = asyncio.Event()
        self.neighbours: Neighbours | None = None

    @cached_property
    def _tags(self) -> Mapping[str, int]:
        return {tag: rank for rank, tag in enumerate(self._builders.wheel_tags())}

    async def serve(self) -> None:
        """Keeps the cache within its bounds; runs until cancelled."""
        while True:
            await self._trim()
            self._is_fuller.clear()
            await self._is_fuller.wait()

    # --- for jobs of this machine ------------------------------------------------------------------------------------

    def check_here(self, environment: Environment) -> None:
        """Raises Failed if a wheel that a program of this machine wants to use was not put in, TooLarge."""
        check_sound(environment)
        total = sum(wheel.size for wheel in environment.wheels)
        if total > self._cache.bytes_max:
            raise TooLarge(
                f"the environment takes {total:,} bytes, this peer's cache holds {self._cache.bytes_max:,}",
                remedy="Give it more room: the setting `environments.cache`.",
            )
        self._is_fuller.set()
        for wheel in environment.wheels:
            if not self._cache.has(wheel.digest):
                raise Failed(
                    f"the wheel {wheel.name} is not in this peer's cache, or no more",
                    remedy="Submit the job again; if it is too large for the cache, set `environments.cache`.",
                )

    async def collect(self, environment: Environment, holder: PeerId) -> None:
        """Fetches all wheels of an environment, so as to give them to lenders in its holder's place. Raises Refused."""
        check_sound(environment)
        await self._fetch_all(environment.wheels, [holder])
        await self._trim()

    # --- for boxes ---------------------------------------------------------------------------------------------------

    def check(self, environment: Environment | None) -> None:
        """Raises Refused, with what does not fit this machine; PeerMisbehaved."""
        if environment is not None:
            self._fitting(environment)

    @contextlib.asynccontextmanager
    async def ready(
        self,
        environment: Environment | None,
        consumer: Consumer,
        sources: Sequence[str],
        on_used: Callable[[BoxUsage], None],
    ) -> AsyncIterator[str]:
        """Where the environment is, for the box that the block makes; "" for none. Raises Refused, Failed."""
        if environment is None:
            yield ""
            return
        wheels = self._fitting(environment)
        digest = digest_of(wheels, environment.python)
        async with self._locks.setdefault(digest, asyncio.Lock()):
            place = self._cache.find(digest)
            if place is None:
                holders = [PeerId(source) for source in sources[:SOURCES_MAX]]
                place = await self._make(digest, wheels, [*holders, consumer.peer], on_used)
            # Whoever comes next may trim: held before this one's turn is over.
            self._held[str(place)] += 1
        try:
            yield str(place)
        finally:
            self._held[str(place)] -= 1

    def _fitting(self, environment: Environment) -> list[Wheel]:
        check_sound(environment)
        return fitting(environment, self._builders.python(), self._tags, self._cache.bytes_max)

    async def _make(
        self, digest: bytes, wheels: Sequence[Wheel], holders: Sequence[PeerId], on_used: Callable[[BoxUsage], None]
    ) -> Path:
        await self._fetch_all(wheels, holders)
        answer, place = await self._build(digest, wheels, on_used)
        if isinstance(answer, NotBuilt) and answer.is_damaged:
            # It was whole when it came: this disk has changed it since.
            for wheel in wheels:
                if wheel.name == answer.wheel:
                    log.warning("the wheel %s was damaged on this disk, and is fetched again", wheel.name)
                    self._cache.drop(wheel.digest)
            await self._fetch_all(wheels, holders)
            answer, place = await self._build(digest, wheels, on_used)
        if isinstance(answer, NotBuilt):
            raise Refused(f"the wheel {answer.wheel} is refused: {answer.reason}", remedy="Use another wheel.")
        assert place is not None, "what was built was adopted"
        await self._trim(str(place))
        return place

    async def _build(
        self, digest: bytes, wheels: Sequence[Wheel], on_used: Callable[[BoxUsage], None]
    ) -> tuple[BuilderAnswer, Path | None]:
        packed = sum(wheel.size for wheel in wheels)
        bytes_max = min(self._cache.bytes_max, max(UNPACKED_BYTES_MIN, packed * UNPACKED_RATIO_MAX))
        arguments = [
            part for wheel in wheels for part in (wheel.name, wheel.digest.hex(), str(self._cache.place(wheel.digest)))
        ]
        place: Path | None = None
        spec = self._builders.build_box(self._cache.wheels, arguments, bytes_max)
        try:
            box = await self._live.open(spec)
            try:
                answer = await _answer(box)
            finally:
                used = await box.close()
                self._live.closed(box)
                on_used(used)
            if answer is None:
                raise Refused(f"the environment cannot be built here: {used.death or 'its builder ended'}")
            if isinstance(answer, Built):
                assert spec.work_dir is not None, "builders have a folder"
                place = await self._cache.adopt(digest, spec.work_dir)
            return answer, place
        finally:
            if place is None:
                await asyncio.to_thread(self._builders.discard, spec)

    async def _trim(self, made: str = "") -> None:
        held = {place for place, count in self._held.items() if count}
        await self._cache.trim({made, *held, *self._live.read_only_paths()})

    # --- between peers -----------------------------------------------------------------------------------------------

    async def _fetch_all(self, wheels: Sequence[Wheel], holders: Sequence[PeerId]) -> None:
        missing = [wheel for wheel in wheels if not self._cache.has(wheel.digest)]
        reasons: list[str] = []
        for holder in holders:
            if not missing:
                return
            async with self._fetching:
                missing = await self._fetch_from(holder, missing, reasons)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise Refused(
                f"the wheel {missing[0].name}{more} did not come: " + "; ".join(dict.fromkeys(reasons)),
                remedy="Submit the job again, from the peer that has them.",
            )

    async def _fetch_from(self, holder: PeerId, wheels: Sequence[Wheel], reasons: list[str]) -> list[Wheel]:
        """Fetches what it can; returns what is still missing, and adds why."""
        assert self.neighbours is not None, "assembled with neighbours"
        name = self.neighbours.name_of(holder)
        left = list(wheels)
        stream: Stream | None = None
        try:
            stream = await self.neighbours.open_stream(holder, WHEELS_PURPOSE)
            patience_s = FETCH_S_MIN + sum(wheel.size for wheel in wheels) / FETCH_BYTES_PER_S_MIN
            async with asyncio.timeout(patience_s), MessageStream(stream, step=STEP) as messages:
                for wheel in wheels:
                    try:
                        is_right = await self._cache.keep(wheel.digest, _receive(messages, wheel))
                    except NotFound:
                        reasons.append(f"{name} does not have {wheel.name}")
                        continue
                    if not is_right:
                        raise PeerMisbehaved(f"it sent as {wheel.name} what is not that wheel", step=STEP)
                    left.remove(wheel)
                await stream.finish()
        except PeerMisbehaved as fault:
            log.warning("peer %s (%s) broke the protocol: %s", name, holder[:10], fault)
            reasons.append(f"{name}: {fault}")
        except (ConnectionLost, TimeoutError) as lost:
            reasons.append(f"{name} was lost: {lost or 'nothing came'}")
        except CroftError as error:
            reasons.append(f"{name}: {error.message}")
        finally:
            if stream is not None:
                stream.abort()
        return left

    async def serve_wheels(self, consumer: Consumer, stream: Stream) -> None:
        """Serves one `wheels/1` stream until its opener closes it."""
        async with MessageStream(stream, step=STEP) as messages:
            while (payload := await messages.receive()) is not None:
                wanted = decode(payload, GetWheel, step=STEP)
                async with self._serving:
                    await self._send(wanted.digest, messages)
            await messages.flush()
            await stream.finish()

    async def _send(self, digest: bytes, messages: MessageStream) -> None:
        if len(digest) != DIGEST_BYTES or not self._cache.has(digest):
            await messages.send(WheelMissing())
            return
        offset = 0
        try:
            while part := await self._cache.read(digest, offset, WHEEL_PART_BYTES):
                offset += len(part)
                await messages.send(WheelPart(part))
        except NotFound as gone:
            raise ConnectionLost(gone.message) from None
        await messages.send(WheelEnd())


async def _receive(messages: MessageStream, wheel: Wheel) -> AsyncIterator[bytes]:
    """The bytes of a wheel as its holder sends them, and not one more than it has. Raises NotFound, PeerMisbehaved."""
    messages.post(GetWheel(wheel.digest))
    left = wheel.size
    while True:
        async with asyncio.timeout(QUIET_S_MAX):
            payload = await messages.receive()
        if payload is None:
            raise ConnectionLost("it closed the stream")
        answer: WheelAnswer = decode_union(payload, WheelAnswer, step=STEP)
        match answer:
            case WheelPart(data) if 0 < len(data) <= left:
                left -= len(data)
                yield data
            case WheelEnd():
                return
            case WheelMissing() if left == wheel.size:
                raise NotFound(f"{wheel.name} is not there")
            case _:
                raise PeerMisbehaved(f"more of {wheel.name} than there is", step=STEP)


async def _answer(box: Box) -> BuilderAnswer | None:
    """What the builder in a box says; None if it ends without a word."""
    async with MessageStream(box, step="builder") as messages:
        try:
            async with asyncio.timeout(BUILD_S_MAX):
                payload = await messages.receive()
        except (TimeoutError, ConnectionLost):
            return None
        if payload is None:
            return None
        try:
            answer: BuilderAnswer = decode_union(payload, BuilderAnswer, step="builder")
        except PeerMisbehaved:
            return None
        return answer
