"""Puts contents, and reads them: segments sealed, small ones packed, many stripes on their way at once.

Memory is bounded whatever the size of a content is; work on bytes is done in threads.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self

from croft.model.ids import PeerId
from croft.ports import Entropy, Offload
from croft.storage.formats import (
    FORMAT,
    PARTS_INLINE_BYTES_MAX,
    Content,
    Part,
    PartList,
    Stripe,
    check_content,
    decode_stored,
)
from croft.storage.placement import Layout, Place, Rule, first_of_domains, ranked
from croft.storage.sealing import KEY_BYTES, SEGMENT_BYTES, damaged, seal, sealed_bytes_max, unseal
from croft.storage.share_client import Holders
from croft.storage.stripes import PACK_BYTES, Buffers, buffer_bytes, close_pack, seal_and_code
from croft.storage.transfer import Sending
from croft.wire.codec import encode

INLINE_BYTES: Final = 64 << 10
HEAD_BYTES: Final = 512 << 10
"""What is smaller is sealed where it is: a thread would cost more."""
AHEAD: Final = 6
"""Segments that are fetched before they are asked for."""
PACKS_KEPT: Final = 3
STRAGGLERS_S: Final = 5.0
"""Shares that are still on their way so long after all stripes count are left to repair."""
SEED_BYTES: Final = 16
DEPTH_SHIFT: Final = 64


class Source(Protocol):
    """Where the bytes of a content come from."""

    async def fill(self, into: memoryview) -> int:
        """Fills `into` with what comes next; fewer bytes than fit: these were the last. Raises Failed."""
        ...


class BytesSource:
    """Bytes that are here."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._left = memoryview(data)

    async def fill(self, into: memoryview) -> int:
        """See `Source`."""
        part, self._left = self._left[: len(into)], self._left[len(into) :]
        into[: len(part)] = part
        return len(part)


class PiecesSource:
    """Bytes that come piece by piece."""

    def __init__(self, pieces: AsyncIterator[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    async def fill(self, into: memoryview) -> int:
        """See `Source`."""
        at = 0
        while at < len(into):
            if not self._left:
                try:
                    self._left = memoryview(await anext(self._pieces))
                except StopAsyncIteration:
                    break
            part, self._left = self._left[: len(into) - at], self._left[len(into) - at :]
            into[at : at + len(part)] = part
            at += len(part)
        return at


@dataclass(slots=True)
class _Shipped:
    """A stripe that is on its way, or still being filled."""

    size: int = 0
    sending: Sending | None = None

    @property
    def stripe(self) -> Stripe:
        assert self.sending is not None, "a stripe is known once it is coded"
        return self.sending.stripe(self.size)


@dataclass(slots=True)
class Pending:
    """A content on its way. `content` is complete once `Putting.finish` has returned."""

    key: bytes
    size: int = 0
    depth: int = 0
    _parts: list[tuple[_Shipped, int, int, int, int]] = field(default_factory=list)

    @property
    def content(self) -> Content:
        """What was put."""
        parts = [Part(shipped.stripe, *rest) for shipped, *rest in self._parts]
        return Content(FORMAT, self.size, self.key, self.depth, parts)


class Putting:
    """Puts contents under one rule: `add` each of them, then `finish`. An async context manager."""

    def __init__(
        self,
        rule: Rule,
        owner: bytes,
        holders: Holders,
        offload: Offload,
        buffers: Buffers,
        entropy: Entropy,
        layout: Layout,
        places: Sequence[Place],
    ) -> None:
        self.rule = rule
        self._owner = owner
        self._holders = holders
        self._offload = offload
        self._buffers = buffers
        self._entropy = entropy
        self.layout = layout
        ranking = ranked(entropy.token(SEED_BYTES), [place for place in places if place.is_alive])
        self.chosen = first_of_domains(ranking, layout.n)
        self._spare = [place for place in ranking if place not in self.chosen]
        self._stripes = 0
        self.began_at = asyncio.get_running_loop().time()
        self._shipped: list[_Shipped] = []
        self._pack: bytearray | None = None
        self._packed = _Shipped()
        self._pending: list[Pending] = []
        self._running: set[asyncio.Task[None]] = set()
        self._plain: bytearray = bytearray()
        self.on_progress: Callable[[int], None] = lambda size: None
        self.on_exit: Callable[[Putting], None] = lambda putting: None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self.on_exit(self)
        if self._pack is not None:
            self._buffers.give(self._pack)
            self._pack = None

    @property
    def holders(self) -> dict[PeerId, int]:
        """How many shares each peer took."""
        count: dict[PeerId, int] = {}
        for shipped in self._shipped:
            assert shipped.sending is not None, "it is on its way"
            for index, holder in enumerate(shipped.stripe.holders):
                if index not in shipped.sending.missing:
                    peer = PeerId(holder.hex())
                    count[peer] = count.get(peer, 0) + 1
        return count

    def shares(self) -> set[bytes]:
        """Every share that was sent."""
        return {share for shipped in self._shipped if shipped.sending for share in shipped.sending.shares}

    def stripes(self) -> list[Stripe]:
        """Every stripe that was sent."""
        return [shipped.stripe for shipped in self._shipped if shipped.sending]

    @property
    def stored_bytes(self) -> int:
        """What all shares take."""
        return sum(shipped.stripe.share_bytes * self.layout.n for shipped in self._shipped)

    @property
    def losses(self) -> int:
        """How many holders may be lost of what has been put so far."""
        missing = [len(shipped.sending.missing) for shipped in self._shipped if shipped.sending is not None]
        return self.layout.losses - max(missing, default=0)

    @property
    def missing(self) -> int:
        """How many shares nobody took; repair makes up for them."""
        return sum(len(shipped.sending.missing) for shipped in self._shipped if shipped.sending is not None)

    async def add(self, source: Source, *, has_head: bool = False) -> Pending:
        """Reads a content to its end. Raises CroftError if it cannot be read, or holders refuse.

        `has_head`: of a long one the first bytes are a small segment of their own, so that they are soon there.
        """
        pending = Pending(self._entropy.token(KEY_BYTES))
        self._plain = self._plain or bytearray(SEGMENT_BYTES)
        plain, self._plain = self._plain, bytearray()
        try:
            view = memoryview(plain)
            while count := await source.fill(view):
                is_long = has_head and not pending._parts and count == SEGMENT_BYTES
                head = HEAD_BYTES if is_long else count
                await self._seal(pending, view[:head])
                if is_long:
                    await self._seal(pending, view[head:count])
                pending.size += count
                self.on_progress(count)
                if count < SEGMENT_BYTES:
                    break
        finally:
            self._plain = plain
        self._pending.append(pending)
        return pending

    async def finish(self) -> None:
        """Returns once everything that was added counts. Raises CroftError if something does not."""
        await self._settle()
        while long := [pending for pending in self._pending if _is_long(pending)]:
            for pending in long:
                await self._deepen(pending)
            await self._settle()
        self._pending.clear()
        if self._running:
            await asyncio.wait(self._running, timeout=STRAGGLERS_S)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _seal(self, pending: Pending, plain: memoryview) -> None:
        number = len(pending._parts) | pending.depth << DEPTH_SHIFT
        if len(plain) < INLINE_BYTES:
            at = await self._room_in_pack(sealed_bytes_max(len(plain)))
            assert self._pack is not None, "there is room in it"
            length, method = seal(pending.key, number, plain, memoryview(self._pack)[at:])
            self._packed.size = at + length
            pending._parts.append((self._packed, at, length, len(plain), method))
            return
        buffer = await self._buffers.take(buffer_bytes(self.layout))
        try:
            length, method, shares = await self._offload.run(
                seal_and_code, pending.key, number, plain, buffer, self.layout
            )
        except BaseException:
            self._buffers.give(buffer)
            raise
        if shares:
            shipped = _Shipped(length)
            self._ship(shipped, buffer, shares)
            pending._parts.append((shipped, 0, length, len(plain), method))
            return
        try:
            at = await self._room_in_pack(length)
            assert self._pack is not None, "there is room in it"
            memoryview(self._pack)[at : at + length] = memoryview(buffer)[:length]
        finally:
            self._buffers.give(buffer)
        self._packed.size = at + length
        pending._parts.append((self._packed, at, length, len(plain), method))

    async def _room_in_pack(self, size: int) -> int:
        """Where in the pack there is room for so much."""
        if self._pack is not None and self._packed.size + size > PACK_BYTES:
            await self._close_pack()
        if self._pack is None:
            self._pack = await self._buffers.take(buffer_bytes(self.layout))
            self._packed = _Shipped()
        return self._packed.size

    async def _close_pack(self) -> None:
        if self._pack is None:
            return
        buffer, self._pack = self._pack, None
        try:
            size, shares = await self._offload.run(close_pack, buffer, self.layout, self._packed.size)
        except BaseException:
            self._buffers.give(buffer)
            raise
        self._packed.size = size
        self._ship(self._packed, buffer, shares)

    def _ship(self, shipped: _Shipped, buffer: bytearray, shares: Sequence[bytes]) -> None:
        turn = self._stripes % len(self.chosen)
        ranking = [*self.chosen[turn:], *self.chosen[:turn], *self._spare]
        self._stripes += 1
        shipped.sending = Sending(self._owner, self._holders, self.layout, ranking, shares)
        self._shipped.append(shipped)

        async def run(sending: Sending) -> None:
            try:
                await sending.run(buffer, shipped.size)
            except BaseException as error:
                if not sending.committed.done():
                    sending.committed.set_exception(error)
                    sending.committed.exception()
                raise
            finally:
                self._buffers.give(buffer)

        for sent in self._shipped[-AHEAD:]:
            assert sent.sending is not None, "it is on its way"
            if sent.sending.committed.done():
                sent.sending.committed.result()  # holders refuse: no need to send more
        task = asyncio.create_task(run(shipped.sending), name="stripe.send")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _settle(self) -> None:
        await self._close_pack()
        for shipped in self._shipped:
            assert shipped.sending is not None, "it is on its way"
            await shipped.sending.committed

    async def _deepen(self, pending: Pending) -> None:
        """Stores the list of a content's parts; what is left is where the list lies."""
        listed = encode(PartList(FORMAT, pending.content.parts))
        pending.depth += 1
        pending._parts = []
        for at in range(0, len(listed), SEGMENT_BYTES):
            await self._seal(pending, memoryview(listed)[at : at + SEGMENT_BYTES])


def _is_long(pending: Pending) -> bool:
    return len(pending._parts) > 1 and len(encode(pending.content.parts)) > PARTS_INLINE_BYTES_MAX


class Stripes(Protocol):
    """Where stripes come from."""

    async def stripe(self, stripe: Stripe) -> bytearray:
        """A buffer that begins with the bytes of the stripe; give it back. Raises Unreachable, NotFound, Failed."""
        ...

    def done(self, buffer: bytearray) -> None:
        """Takes a buffer back."""
        ...

    async def part(self, stripe: Stripe, offset: int, length: int) -> bytes | None:
        """A range of it, if that can be had without the rest."""
        ...


class Reading:
    """Reads contents of one owner."""

    def __init__(self, receiving: Stripes, offload: Offload) -> None:
        self._receiving = receiving
        self._offload = offload
        self._packs: OrderedDict[bytes, asyncio.Task[bytes]] = OrderedDict()

    def read(
        self, content: Content, offset: int = 0, size: int | None = None, *, is_bulk: bool = False
    ) -> AsyncIterator[bytes | memoryview]:
        """The bytes of a content, in order, as they come. `is_bulk`: other contents of the same packs follow.

        Raises:
            Unreachable: too few shares are to be had. Failed: they are not what was put.
        """
        end = content.size if size is None else min(content.size, offset + size)
        return self._read(content, min(offset, end), end, is_bulk)

    async def whole(self, content: Content) -> bytes:
        """All of a content that is small."""
        return b"".join([bytes(piece) async for piece in self.read(content)])

    async def parts(self, content: Content) -> list[Part]:
        """The parts of a content's bytes, however deep its list of them lies."""
        parts, depth = content.parts, content.depth
        check_content(content)
        while depth:
            listed = [
                await self._open(content.key, number | depth << DEPTH_SHIFT, part, is_bulk=False)
                for number, part in enumerate(parts)
            ]
            depth -= 1
            parts = decode_stored(b"".join(listed), PartList).parts
            check_content(Content(FORMAT, content.size, content.key, depth, parts))
        return parts

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _read(self, content: Content, offset: int, end: int, is_bulk: bool) -> AsyncIterator[bytes | memoryview]:
        ahead: deque[tuple[int, asyncio.Task[bytes | memoryview]]] = deque()
        todo: deque[tuple[int, int, Part]] = deque()
        at = 0
        for number, part in enumerate(await self.parts(content) if offset < end else []):
            if at < end and at + part.size > offset:
                todo.append((at, number, part))
            at += part.size
        wanted = 1
        try:
            while todo or ahead:
                # At first one alone, so that it need not share the way with those that follow.
                while todo and len(ahead) < wanted:
                    at, number, part = todo.popleft()
                    work = self._open(content.key, number, part, is_bulk=is_bulk)
                    ahead.append((at, asyncio.create_task(work, name="part.read")))
                at, opening = ahead[0]
                piece = await opening
                ahead.popleft()
                wanted = min(AHEAD, 2 * wanted)
                yield piece[max(0, offset - at) : end - at]
        finally:
            for _, task in ahead:
                task.cancel()
            await asyncio.gather(*(task for _, task in ahead), return_exceptions=True)

    async def _open(self, key: bytes, number: int, part: Part, *, is_bulk: bool) -> bytes | memoryview:
        stripe = part.stripe
        if (part.offset, part.length) == (0, stripe.size):
            buffer = await self._receiving.stripe(stripe)
            try:
                return await self._offload.run(
                    unseal, key, number, memoryview(buffer)[: stripe.size], part.method, part.size
                )
            finally:
                self._receiving.done(buffer)
        sealed: bytes | memoryview | None = None
        if not is_bulk and stripe.id not in self._packs:
            sealed = await self._receiving.part(stripe, part.offset, part.length)
        if sealed is None:
            sealed = memoryview(await self._pack(stripe))[part.offset : part.offset + part.length]
        if part.size < INLINE_BYTES:
            return unseal(key, number, sealed, part.method, part.size)
        return await self._offload.run(unseal, key, number, sealed, part.method, part.size)

    async def _pack(self, stripe: Stripe) -> bytes:
        """A pack, of which a few are kept; many who want one share the way there."""
        name = stripe.id
        fetching = self._packs.get(name)
        if fetching is None or (fetching.done() and (fetching.cancelled() or fetching.exception())):
            fetching = self._packs[name] = asyncio.create_task(self._fetch_pack(stripe), name="pack.read")
            fetching.add_done_callback(_seen)
            while len(self._packs) > PACKS_KEPT and next(iter(self._packs.values())).done():
                self._packs.popitem(last=False)
        self._packs.move_to_end(name)
        try:
            return await asyncio.shield(fetching)
        except asyncio.CancelledError:
            if fetching.cancelled():
                raise damaged() from None
            raise

    async def _fetch_pack(self, stripe: Stripe) -> bytes:
        buffer = await self._receiving.stripe(stripe)
        try:
            return bytes(memoryview(buffer)[: stripe.size])
        finally:
            self._receiving.done(buffer)


def _seen(task: asyncio.Task[bytes]) -> None:
    """Whoever waited for it may be gone; why it failed is told to those who still do."""
    if not task.cancelled():
        task.exception()
