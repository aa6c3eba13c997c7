"""Holds shares of others on this machine's disk: within what the owner offers, each for whoever owns it.

What is acknowledged is on disk, and is what its id says. Room is held under a lease per owner, as boxes are, which
grows and shrinks with what is kept.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, assert_never

from croft.errors import Busy, ConnectionLost, CroftError, NotFound, PeerMisbehaved, Refused
from croft.model.amounts import DISK, Amounts
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.model.lease import Lease, Stage, Usage
from croft.model.lease import Request as LeaseRequest
from croft.ports import OWN_VALUES, Chunk, ChunkStore, Clock, Database, Offload, Stream
from croft.storage import merkle
from croft.storage.formats import SHARE_BYTES_MAX
from croft.storage.heads import HEAD_IS_OLD, open_head
from croft.storage.held_links import HeldLinks
from croft.storage.messages import (
    OWNER_BYTES,
    REQUEST_BYTES_MAX,
    SHARES_ASKED_MAX,
    SHARES_LISTED_MAX,
    Answer,
    Declined,
    Done,
    Dropped,
    DropShares,
    FindShares,
    Found,
    Heads,
    LinkRead,
    Listed,
    ListShares,
    PutHead,
    PutLink,
    PutProposal,
    PutShare,
    ReadHeads,
    ReadLink,
    ReadShare,
    Request,
    ShareFollows,
    Watch,
    check_watch,
)
from croft.storage.permits import Bearer, check_permit
from croft.storage.share_stream import STEP, receive_raw
from croft.wire import frames
from croft.wire.codec import decode_union, encode
from croft.wire.message_stream import receive_alone
from croft.wire.room import Room

log = logging.getLogger(__name__)

LEASE_PURPOSE: Final = "storage"
LUMP_BYTES: Final = 16 << 20
"""A lease grows and shrinks by so much, while there is room."""
ROOM_BYTES: Final = 48 << 20
"""What may be in memory at once for one owner."""
REQUESTS_MAX: Final = 256
"""Requests of one stream that are under way."""
SHARE_TIMEOUT_S: Final = 60.0
"""A share that has begun is here within that time, or the stream ends."""
DEVICES_MAX: Final = 64
WATCHED_MAX: Final = 1_000
PROVED_KEPT: Final = 256
"""Shares whose leaves' hashes are remembered, for reads of their parts."""
OPEN_AGAIN_S: Final = 0.1


class Offers(Protocol):
    """What the owner of this machine offers to whom."""

    def standing_for(self, consumer: Bearer) -> tuple[str, ...]:
        """The offers that stand for somebody at this moment. Raises Refused that says why none does."""
        ...


class Leases(Protocol):
    """See `croft.ledger.leasing.LeaseBook`."""

    def room(self, offers: Sequence[str]) -> Amounts: ...

    async def take(self, request: LeaseRequest, wait_s: float = 0.0) -> Lease: ...

    def resize(self, lease: Lease, wants: Amounts, offers: Sequence[str], *, is_taken: bool = False) -> Lease: ...

    def leave(self, lease: Lease, stage: Stage) -> None: ...

    def used(self, lease: Lease, usage: Usage) -> None: ...

    def ended(self, lease: Lease) -> None: ...


@dataclass(slots=True)
class _Account:
    """What is kept for one owner. `coming`: bytes that are let in and not on disk yet."""

    lease: Lease | None = None
    held: int = 0
    coming: int = 0
    room: Room = field(default_factory=lambda: Room(ROOM_BYTES))
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def wanted(self) -> int:
        return self.held + self.coming


@dataclass(frozen=True, slots=True)
class _Absent:
    """An owner for whom somebody else acts."""

    peer: PeerId
    twin: TwinId
    communities: frozenset[CommunityId]


@dataclass(frozen=True, slots=True)
class _Reply:
    """An answer, and the bytes that follow it; `done` once they are handed over."""

    answer: Answer
    data: bytes = b""
    done: Callable[[], None] = lambda: None


class Holder:
    """The holding side of storage."""

    def __init__(
        self,
        chunks: ChunkStore,
        leases: Leases,
        offers: Offers,
        database: Database,
        clock: Clock,
        offload: Offload,
    ) -> None:
        self._clock = clock
        self._chunks = chunks
        self._leases = leases
        self._offers = offers
        self._database = database
        self._offload = offload
        self.links = HeldLinks(database, clock)
        self.on_watch: Callable[[], None] = lambda: None
        self._accounts: dict[TwinId, _Account] = {}
        self._leaves: OrderedDict[bytes, list[bytes]] = OrderedDict()

    # --- running -----------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Takes up the leases of what is on the disk from earlier; until cancelled."""
        for owner in await self._chunks.owners():
            if owner == OWN_VALUES:
                continue
            twin = TwinId(owner.hex())
            while True:
                try:
                    await self._restore(twin, self._account(twin))
                    break
                except Busy:
                    await asyncio.sleep(OPEN_AGAIN_S)  # the book of leases is not open yet
        await asyncio.Event().wait()

    def reclaim(self, lease: Lease) -> None:
        """A lease whose owner holds nothing here any more is over."""
        self._leases.ended(lease)

    async def serve_shares(self, consumer: Bearer, stream: Stream) -> None:
        """Serves one `shares/1` stream until the other side ends it. Raises ConnectionLost, PeerMisbehaved."""
        replies: asyncio.Queue[asyncio.Task[_Reply] | None] = asyncio.Queue(REQUESTS_MAX)
        writing = asyncio.create_task(_write_all(stream, replies), name="shares.write")
        try:
            while (payload := await _next_frame(stream)) is not None:
                request: Request = decode_union(payload, Request, step=STEP)
                work = await self._begin(consumer, request, stream)
                await replies.put(asyncio.create_task(work, name="shares.answer"))
            await replies.put(None)
            await writing
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            left = [replies.get_nowait() for _ in range(replies.qsize())]
            for task in left:
                if task is not None:
                    task.cancel()
                    task.add_done_callback(_forget)

    async def _begin(self, consumer: Bearer, request: Request, stream: Stream) -> Coroutine[Any, Any, _Reply]:
        """Reads what belongs to a request; the work that answers it."""
        match request:
            case PutShare():
                return await self._take(consumer, request, stream)
            case ReadShare():
                return _declining(self._read(consumer, request))
            case FindShares():
                return _declining(self._find(consumer, request))
            case ListShares():
                return _declining(self._list(consumer, request))
            case DropShares():
                return _declining(self._drop(consumer, request))
            case PutHead():
                return _declining(self._put_head(consumer, request))
            case ReadHeads():
                return _declining(self._heads(consumer, request))
            case Watch():
                return _declining(self._watch(consumer, request))
            case PutLink():
                return _declining(self._put_link(consumer, request))
            case ReadLink():
                return _declining(self._read_link(consumer, request))
            case PutProposal():
                return _declining(self._propose(consumer, request))
            case _:
                assert_never(request)

    # --- shares ------------------------------------------------------------------------------------------------------

    async def _take(self, consumer: Bearer, request: PutShare, stream: Stream) -> Coroutine[Any, Any, _Reply]:
        if not 0 < request.size <= SHARE_BYTES_MAX or len(request.share) != merkle.HASH_BYTES:
            raise PeerMisbehaved(f"a share of {request.size} bytes", step=STEP)
        try:
            owner = self._owner(consumer, request.owner, request.permit, puts=True)
        except Refused as refusal:
            await receive_raw(stream, request.size)
            return _declining(_raise(refusal))
        account = self._account(owner.twin)
        await account.room.take(request.size)
        is_kept = False
        try:
            async with asyncio.timeout(SHARE_TIMEOUT_S):
                try:
                    await self._reserve(owner, account, request.size)
                except CroftError as error:
                    await receive_raw(stream, request.size)
                    return _declining(_raise(error))
                data = bytearray(request.size)
                try:
                    await receive_raw(stream, request.size, memoryview(data))
                except BaseException:
                    account.coming -= request.size
                    raise
            is_kept = True
            return _declining(self._keep(account, request, data))
        except TimeoutError:
            raise ConnectionLost(f"{STEP}: a share took longer than {SHARE_TIMEOUT_S:g} s") from None
        finally:
            if not is_kept:
                account.room.give(request.size)

    async def _keep(self, account: _Account, request: PutShare, data: bytearray) -> _Reply:
        try:
            if await self._offload.run(merkle.share_id, data) != request.share:
                raise PeerMisbehaved("a share that is not what its id says", step=STEP)
            (known,) = await self._chunks.sizes(request.owner, [request.share])
            await self._chunks.put([Chunk(request.owner, request.share, memoryview(data))])
            if known is None:
                account.held += len(data)
            if account.lease is not None:
                self._leases.used(account.lease, Usage(received_bytes=len(data)))
        finally:
            account.coming -= len(data)
            account.room.give(len(data))
        return _Reply(Done())

    async def _read(self, consumer: Bearer, request: ReadShare) -> _Reply:
        owner = self._owner(consumer, request.owner, request.permit)
        account = self._account(owner.twin)
        (size,) = await self._chunks.sizes(request.owner, [request.share])
        if size is None:
            raise NotFound("this share is not held here")
        is_part = bool(request.size) and (request.offset, request.size) != (0, size)
        if is_part and not 0 <= request.offset < request.offset + request.size <= size:
            raise PeerMisbehaved("a range outside of a share", step=STEP)
        wanted = request.size if is_part else size
        await account.room.take(wanted)
        try:
            proof: list[bytes] = []
            if is_part:
                leaves = await self._leaves_of(request.owner, request.share)
                proof = merkle.prove(leaves, request.offset, request.size)
                data = await self._chunks.read(request.owner, request.share, request.offset, request.size)
                if (
                    merkle.leaves(data)
                    != leaves[request.offset // merkle.LEAF_BYTES :][: -(-len(data) // merkle.LEAF_BYTES)]
                ):
                    del self._leaves[request.share]
                    await self._chunks.read(request.owner, request.share)  # says that it is damaged
            else:
                data = await self._chunks.read(request.owner, request.share)
        except BaseException:
            account.room.give(wanted)
            raise
        if account.lease is not None:
            self._leases.used(account.lease, Usage(sent_bytes=len(data)))
        return _Reply(ShareFollows(len(data), proof), data, lambda: account.room.give(wanted))

    async def _leaves_of(self, owner: bytes, share: bytes) -> list[bytes]:
        leaves = self._leaves.get(share)
        if leaves is None:
            whole = await self._chunks.read(owner, share)
            leaves = self._leaves[share] = await self._offload.run(merkle.leaves, whole)
            if len(self._leaves) > PROVED_KEPT:
                self._leaves.popitem(last=False)
        return leaves

    async def _find(self, consumer: Bearer, request: FindShares) -> _Reply:
        self._owner(consumer, request.owner, request.permit)
        _check_shares(request.shares)
        sizes = await self._chunks.sizes(request.owner, request.shares)
        return _Reply(Found([-1 if size is None else size for size in sizes]))

    async def _list(self, consumer: Bearer, request: ListShares) -> _Reply:
        owner = bytes.fromhex(consumer.twin)
        shares = await self._chunks.keys(owner, request.after, SHARES_LISTED_MAX)
        try:
            room = self._leases.room(self._offers.standing_for(consumer))[DISK]
        except Refused:
            room = 0
        return _Reply(Listed(shares, await self._chunks.held_bytes(owner), room))

    async def _drop(self, consumer: Bearer, request: DropShares) -> _Reply:
        _check_shares(request.shares)
        owner = bytes.fromhex(consumer.twin)
        account = self._account(consumer.twin)
        for share in request.shares:
            self._leaves.pop(share, None)
        freed = await self._chunks.delete(owner, request.shares)
        async with account.lock:
            account.held = await self._chunks.held_bytes(owner)
            self._shrink(account)
        return _Reply(Dropped(freed))

    # --- heads -------------------------------------------------------------------------------------------------------

    async def _put_head(self, consumer: Bearer, request: PutHead) -> _Reply:
        head = open_head(request.record)
        if head.owner.hex() != consumer.twin and not request.permit:
            raise Refused("a head is put by a device of its owner")
        self._offers.standing_for(self._owner(consumer, head.owner, request.permit, puts=True))
        row = (head.owner, head.device, head.sequence, request.record)

        def write(db: sqlite3.Connection) -> None:
            (others,) = db.execute("SELECT count(*) FROM held_head WHERE owner = ? AND device <> ?", row[:2]).fetchone()
            if others >= DEVICES_MAX:
                raise Refused(f"heads of more than {DEVICES_MAX} devices")
            db.execute(
                "INSERT INTO held_head VALUES (?, ?, ?, ?) ON CONFLICT (owner, device) DO UPDATE "
                "SET sequence = excluded.sequence, record = excluded.record WHERE excluded.sequence > sequence",
                row,
            )
            (kept,) = db.execute("SELECT record FROM held_head WHERE owner = ? AND device = ?", row[:2]).fetchone()
            if kept != request.record:
                raise Refused(HEAD_IS_OLD, remedy="Take that one in first.")

        await self._database.run(write)
        return _Reply(Done())

    async def _heads(self, consumer: Bearer, request: ReadHeads) -> _Reply:
        owner = request.owner or bytes.fromhex(consumer.twin)
        self._owner(consumer, owner, request.permit, puts=True)
        sql = "SELECT record FROM held_head WHERE owner = ? ORDER BY device"
        rows = await self._database.run(lambda db: db.execute(sql, (owner,)).fetchall())
        # An answer has its limit; owners with so many devices are asked for none that matter less.
        return _Reply(Heads([record for (record,) in rows][: DEVICES_MAX // 8]))

    async def _watch(self, consumer: Bearer, request: Watch) -> _Reply:
        check_watch(request)
        self._offers.standing_for(consumer)
        row = (bytes.fromhex(consumer.twin), bytes.fromhex(consumer.peer), request.sequence, encode(request))

        def write(db: sqlite3.Connection) -> None:
            (others,) = db.execute("SELECT count(*) FROM watched WHERE owner <> ?", row[:1]).fetchone()
            if others >= WATCHED_MAX:
                raise Busy(f"this peer looks after the data of {WATCHED_MAX} others already", remedy="Ask another one.")
            db.execute(
                "INSERT INTO watched VALUES (?, ?, ?, ?) ON CONFLICT (owner, device) DO UPDATE "
                "SET sequence = excluded.sequence, record = excluded.record WHERE excluded.sequence > sequence",
                row,
            )

        await self._database.run(write)
        self.on_watch()
        return _Reply(Done())

    # --- links -------------------------------------------------------------------------------------------------------

    async def _put_link(self, consumer: Bearer, request: PutLink) -> _Reply:
        self._offers.standing_for(consumer)
        await self.links.keep(consumer, request.record)
        return _Reply(Done())

    async def _read_link(self, consumer: Bearer, request: ReadLink) -> _Reply:
        return _Reply(LinkRead(*await self.links.read(consumer, request.owner, request.id)))

    async def _propose(self, consumer: Bearer, request: PutProposal) -> _Reply:
        await self.links.propose(consumer, request.record)
        return _Reply(Done())

    # --- whose shares, and room for them -----------------------------------------------------------------------------

    def _owner(self, consumer: Bearer, owner: bytes, permit: bytes, *, puts: bool = False) -> Bearer:
        """Whose shares are meant. Raises Refused unless whoever asks has a right to them."""
        if len(owner) != OWNER_BYTES:
            raise PeerMisbehaved("an owner that is no key", step=STEP)
        if owner.hex() == consumer.twin:
            return consumer
        check_permit(permit, owner, consumer, self._clock.now(), puts=puts)
        return _Absent(PeerId(owner.hex()), TwinId(owner.hex()), consumer.communities)

    def _account(self, twin: TwinId) -> _Account:
        return self._accounts.setdefault(twin, _Account())

    async def _restore(self, twin: TwinId, account: _Account) -> None:
        async with account.lock:
            if account.lease is not None:
                return
            account.held = await self._chunks.held_bytes(bytes.fromhex(twin))
            # The lease of the last run is known by its key, whatever is offered today.
            wants = Amounts.of({DISK: max(1, account.wanted)})
            request = LeaseRequest(_key(twin), PeerId(twin), twin, LEASE_PURPOSE, "", (), wants)
            try:
                lease = await self._leases.take(request)
            except Busy:
                raise
            except CroftError as error:
                log.warning("what is kept for %s is under no lease: %s", twin[:10], error.message)
                return
            account.lease = self._leases.resize(lease, wants, (), is_taken=True)

    async def _reserve(self, owner: Bearer, account: _Account, size: int) -> None:
        """Room for so much more, which counts as coming from now on. Raises Refused, Full, Failed."""
        offers = self._offers.standing_for(owner)
        async with account.lock:
            wanted = account.wanted + size
            if account.lease is None or wanted > account.lease.amounts[DISK]:
                account.lease = await self._grow(owner, account, wanted, offers)
            account.coming += size

    async def _grow(self, owner: Bearer, account: _Account, wanted: int, offers: tuple[str, ...]) -> Lease:
        async def hold(size: int) -> Lease:
            wants = Amounts.of({DISK: size})
            if account.lease is not None:
                return self._leases.resize(account.lease, wants, offers)
            request = LeaseRequest(_key(owner.twin), owner.peer, owner.twin, LEASE_PURPOSE, "", offers, wants)
            return await self._leases.take(request)

        try:
            return await hold(_lumps(wanted))
        except Refused:
            return await hold(wanted)

    def _shrink(self, account: _Account) -> None:
        lease = account.lease
        if lease is None:
            return
        if account.wanted == 0:
            account.lease = None
            self._leases.leave(lease, Stage.ENDING)
            self._leases.ended(lease)
        elif lease.amounts[DISK] > _lumps(account.wanted):
            account.lease = self._leases.resize(lease, Amounts.of({DISK: _lumps(account.wanted)}), ())


def _key(twin: TwinId) -> str:
    return f"{twin}/{LEASE_PURPOSE}"


def _lumps(size: int) -> int:
    return -(-size // LUMP_BYTES) * LUMP_BYTES


def _check_shares(shares: Sequence[bytes]) -> None:
    if len(shares) > SHARES_ASKED_MAX or any(len(share) != merkle.HASH_BYTES for share in shares):
        raise PeerMisbehaved("too many shares at once, or what is no share", step=STEP)


async def _next_frame(stream: Stream) -> bytes | None:
    try:
        return await receive_alone(stream, step=STEP, frame_bytes_max=REQUEST_BYTES_MAX)
    except ConnectionLost:
        return None


async def _declining(work: Awaitable[_Reply]) -> _Reply:
    try:
        return await work
    except CroftError as error:
        return _Reply(Declined(error.code, error.message, error.remedy))


def _forget(task: asyncio.Task[_Reply]) -> None:
    """What nobody waits for any more gives its room back."""
    if not task.cancelled() and task.exception() is None:
        task.result().done()


async def _raise(error: CroftError) -> _Reply:
    raise error


async def _write_all(stream: Stream, replies: asyncio.Queue[asyncio.Task[_Reply] | None]) -> None:
    """Answers in order, as many at once as are ready. Once the other side is gone, answers are awaited all the same.

    Raises PeerMisbehaved at the end, if a request was answered by it.
    """
    is_lost = False
    fault: PeerMisbehaved | None = None
    following = await replies.get()
    while following is not None:
        batch, done, data = bytearray(), [], b""
        while following is not None:
            try:
                reply = await following
                done.append(reply.done)
                batch += frames.frame(encode(reply.answer))
                data = reply.data
            except PeerMisbehaved as misbehaved:
                fault, is_lost = misbehaved, True
                stream.abort()
            has_more = not data and not replies.empty()
            following = replies.get_nowait() if has_more else None
            if not has_more or following is None or not following.done():
                break
        try:
            if not is_lost:
                await stream.write(bytes(batch))
                if data:
                    await stream.write(data)
        except ConnectionLost:
            is_lost = True
        finally:
            for call in done:
                call()
        if not has_more:
            following = await replies.get()
    if fault is not None:
        raise fault
    if not is_lost:
        await stream.finish()
