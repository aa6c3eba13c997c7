"""Keeps operations on disk, and alike with other members: the shell of `community`'s anti-entropy.

Members tell each other the ids of the newest operations that they know, when a link comes up, when there is news, and
now and then; whoever lacks one asks for all that leads to it and is not in the past of what it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from croft.errors import CroftError, NotFound, PeerMisbehaved, Refused
from croft.identity.grants import verify_chain
from croft.model.ids import CommunityId, PeerId, TwinId, short
from croft.twins import community_messages as wire
from croft.twins.community import Community
from croft.twins.community_operation import open_operation, reopen_operation
from croft.wire.codec import decode, encode

if TYPE_CHECKING:
    import sqlite3

    from croft.ports import Clock, Database
    from croft.twins.community_graph import Placed
    from croft.twins.community_operation import Signed
    from croft.twins.community_terms import Line, Neighbours

log = logging.getLogger(__name__)

PULL_S_MAX: Final = 20.0
PULLS_WAITING_MAX: Final = 256
PAGES_MAX: Final = 2_048
COMPLAINT_EVERY_S: Final = 10.0
LOADED_AT_ONCE: Final = 2_000
UNWANTED_MAX: Final = 1_024
"""Operations that were offered and refused, and are not asked for again."""


class Exchange:
    """The state of every community that this peer is in. `load` before `serve`."""

    def __init__(self, own: TwinId, neighbours: Neighbours, database: Database, clock: Clock) -> None:
        self._own = own
        self._neighbours = neighbours
        self._database = database
        self._clock = clock
        self._known: dict[CommunityId, Community] = {}
        self._unsaved: list[tuple[CommunityId, Signed]] = []
        self._news: dict[CommunityId, list[bytes]] = {}
        self._has_news = asyncio.Event()
        self._pulls: deque[tuple[PeerId, CommunityId]] = deque(maxlen=PULLS_WAITING_MAX)
        self._has_pulls = asyncio.Event()
        self._wanted: dict[tuple[PeerId, CommunityId], Sequence[bytes]] = {}
        self._loaded: set[CommunityId] = set()
        self._compared: set[CommunityId] = set()
        self._unwanted: dict[bytes, None] = {}
        self._complained_at: dict[PeerId, float] = {}
        self.own_paths: dict[CommunityId, Sequence[TwinId]] = {}
        """Who let whom in, down to the owner, by the owner's grant."""
        self.on_change: list[Callable[[CommunityId], None]] = []
        neighbours.links.on_notice(wire.NOTICE_HEADS, self._heard)
        neighbours.links.on_call(wire.CALL_OPERATIONS, self._answer)
        neighbours.links.on_up(self.compare)

    def of(self, community: CommunityId) -> Community:
        """The state of a community that this peer is in. Raises NotFound."""
        known = self._known.get(community)
        if known is None:
            joined = next((one for one in self._neighbours.communities() if one.community == community), None)
            if joined is None:
                raise NotFound("this peer is in no such community", remedy="See them: `croft community`.")
            path = verify_chain(community, joined.chain, self._own, self._clock.now()).path
            self.own_paths[community] = path
            known = self._known[community] = Community(community, path[0])
        return known

    def get(self, community: CommunityId) -> Community | None:
        """The state of a community, if anything of it is known."""
        return self._known.get(community)

    def is_compared(self, community: CommunityId) -> bool:
        """Whether all is known here that some other member knew, or there is no other one."""
        others = any(one.twin != self._own for one in self._neighbours.community_members(community))
        return not others or community in self._compared

    def may_sign(self, community: CommunityId) -> bool:
        """Whether it is known here what the owner did before: else the same number might be signed twice."""
        return community in self._loaded or self.is_compared(community)

    def publish(self, community: CommunityId, record: bytes) -> None:
        """Takes in an operation that was signed here, to be saved and told. Raises Refused if it has no room."""
        try:
            signed = open_operation(record, community)
            self.of(community).take(signed, is_needed=True)
        except PeerMisbehaved as fault:
            raise Refused(str(fault), remedy="See what was done there: `croft community log`.") from None
        self._unsaved.append((community, signed))
        self._news.setdefault(community, []).append(record)
        self._has_news.set()

    async def forget(self, community: CommunityId) -> None:
        """This peer is in a community no more: nothing of it is kept."""
        self._known.pop(community, None)
        self.own_paths.pop(community, None)
        self._loaded.discard(community)
        self._compared.discard(community)
        self._news.pop(community, None)
        self._unsaved = [row for row in self._unsaved if row[0] != community]
        await self._database.run(
            lambda db: db.execute("DELETE FROM community_operation WHERE community = ?", (community,)).rowcount
        )

    async def load(self) -> None:
        """Takes in what the last run left on disk, which was verified when it came. Raises Failed."""
        joined = {one.community for one in self._neighbours.communities()}
        query = "SELECT number, community, record FROM community_operation WHERE number > ? ORDER BY number LIMIT ?"
        last = 0

        def read(db: sqlite3.Connection) -> list[tuple[int, str, bytes]]:
            return db.execute(query, (last, LOADED_AT_ONCE)).fetchall()

        while rows := await self._database.run(read):
            last = rows[-1][0]
            for _, name, record in rows:
                if (community := CommunityId(name)) not in joined:
                    continue
                self._loaded.add(community)
                try:
                    self.of(community).take(reopen_operation(record, community), is_needed=True)
                except (PeerMisbehaved, Refused) as fault:
                    log.warning("an operation on disk cannot be used, and will be fetched anew: %s", fault)

    async def serve(self) -> None:
        """Runs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pull_all(), name="communities.pull")
            tasks.create_task(self._tell_all(), name="communities.tell")

    def try_again(self) -> None:
        """Saves what could not be saved before."""
        if self._news or self._unsaved:
            self._has_news.set()

    async def _tell_all(self) -> None:
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            try:
                await self.save_and_tell()
            except CroftError as error:
                log.warning("what was done in a community is not saved, and will be tried again: %s", error.message)

    async def save_and_tell(self) -> None:
        """What was done is on disk when this returns, and on its way to the others. Raises Failed."""
        if not self._unsaved and not self._news:
            return
        unsaved, self._unsaved = self._unsaved, []
        rows = [(community, one.id, one.record) for community, one in unsaved]
        try:
            await self._database.run(
                lambda db: (
                    db.executemany(
                        "INSERT OR IGNORE INTO community_operation (community, id, record) VALUES (?, ?, ?)", rows
                    ).rowcount
                )
            )
        except CroftError:
            self._unsaved = unsaved + self._unsaved
            raise
        news, self._news = self._news, {}
        for community, fresh in news.items():
            if community in self._known:
                for line in self._neighbours.links.all():
                    self._tell(line, community, fresh)
                for callback in self.on_change:
                    callback(community)

    # --- the others --------------------------------------------------------------------------------------------------

    def compare(self, line: Line) -> None:
        """Tells a neighbour what is known here; it asks for what it lacks."""
        for community in sorted(self._neighbours.shared_with(line.peer)):
            self._tell(line, community, ())

    def _tell(self, line: Line, community: CommunityId, fresh: Sequence[bytes]) -> None:
        if community not in self._neighbours.shared_with(line.peer):
            return
        heads = self.of(community).heads(wire.HEADS_MAX)
        is_small = len(fresh) <= wire.FRESH_MAX and sum(map(len, fresh)) <= wire.FRESH_BYTES_MAX
        line.notify(wire.NOTICE_HEADS, encode(wire.Heads(community, heads, list(fresh) if is_small else [])))

    def _heard(self, line: Line, body: bytes) -> None:
        said = decode(body, wire.Heads, step=wire.STEP)
        community = CommunityId(said.community)
        if len(said.heads) > wire.HEADS_MAX or len(said.fresh) > wire.FRESH_MAX:
            raise PeerMisbehaved(f"{len(said.heads)} heads and {len(said.fresh)} operations at once", step=wire.STEP)
        if not self._serves(line, community):
            return
        self._take(community, said.fresh, line.peer)
        if not self._lacks(community, said.heads):
            self._compared.add(community)
        elif (line.peer, community) not in self._pulls:
            self._pulls.append((line.peer, community))
            self._wanted[line.peer, community] = said.heads
            self._has_pulls.set()

    async def _pull_all(self) -> None:
        while True:
            await self._has_pulls.wait()
            self._has_pulls.clear()
            while self._pulls:
                peer, community = self._pulls.popleft()
                wanted = self._wanted.pop((peer, community), [])
                try:
                    await self._pull(peer, community, wanted)
                except CroftError as error:
                    log.info("operations of %s do not come from %s: %s", short(community), short(peer), error.message)
                except PeerMisbehaved as fault:
                    log.warning("peer %s: %s", short(peer), fault)

    async def _pull(self, peer: PeerId, community: CommunityId, heads: Sequence[bytes]) -> None:
        """Fetches all that leads to these heads."""
        start, known = 0, self.of(community).sample(wire.KNOWN_MAX)
        for _ in range(PAGES_MAX):
            line = self._neighbours.links.get(peer)
            wanted = self._lacks(community, heads)
            if line is None:
                return
            if not wanted:
                break
            question = wire.OperationsWanted(community, wanted, known, start)
            answer = await line.call(wire.CALL_OPERATIONS, encode(question), deadline_s=PULL_S_MAX)
            page = decode(answer, wire.OperationsPage, step=wire.STEP)
            if len(page.records) > wire.PAGE_OPERATIONS_MAX:
                raise PeerMisbehaved(f"{len(page.records)} operations on a page", step=wire.STEP)
            self._take(community, page.records, peer)
            if page.next <= start:
                break
            start = page.next
        self._compared.add(community)
        # What is still lacking was refused; it is not asked for again and again.
        for one in self._lacks(community, heads):
            self._unwanted[one] = None
            if len(self._unwanted) > UNWANTED_MAX:
                del self._unwanted[next(iter(self._unwanted))]

    async def _answer(self, line: Line, body: bytes) -> bytes:
        asked = decode(body, wire.OperationsWanted, step=wire.STEP)
        community = CommunityId(asked.community)
        if len(asked.wanted) > wire.HEADS_MAX or len(asked.known) > wire.KNOWN_MAX:
            raise PeerMisbehaved("too many operations named", step=wire.STEP)
        if not self._serves(line, community):
            raise Refused("you are not in this community")
        await self.save_and_tell()
        page: list[Placed] = []
        for one in self.of(community).lacking(asked.known, asked.wanted, asked.start):
            page.append(one)
            if len(page) > wire.PAGE_OPERATIONS_MAX:
                break
        records: list[bytes] = []
        kept = await self._records(community, [one.id for one in page])
        for one in page:
            is_full = len(records) == wire.PAGE_OPERATIONS_MAX
            if is_full or sum(map(len, records)) + len(kept[one.id]) > wire.PAGE_BYTES_MAX:
                return encode(wire.OperationsPage(records, one.index))
            records.append(kept[one.id])
        return encode(wire.OperationsPage(records))

    async def _records(self, community: CommunityId, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        marks = ", ".join("?" * len(ids))
        query = f"SELECT id, record FROM community_operation WHERE community = ? AND id IN ({marks})"
        return dict(await self._database.run(lambda db: db.execute(query, (community, *ids)).fetchall()))

    def _serves(self, line: Line, community: CommunityId) -> bool:
        return community in self._neighbours.shared_with(line.peer) and not self.of(community).is_out(line.greeted.twin)

    def _lacks(self, community: CommunityId, heads: Iterable[bytes]) -> list[bytes]:
        known = self.of(community)
        return [one for one in heads if one not in known and one not in self._unwanted]

    def _complain(self, source: PeerId, fault: PeerMisbehaved) -> None:
        """Names in the log what is refused, but not each time: a flood must not fill our disk."""
        now = asyncio.get_running_loop().time()
        if now - self._complained_at.get(source, -COMPLAINT_EVERY_S) >= COMPLAINT_EVERY_S:
            self._complained_at[source] = now
            log.warning("an operation that %s sent is refused: %s", short(source), fault)

    def _take(self, community: CommunityId, records: Sequence[bytes], source: PeerId) -> None:
        """Takes in operations that came from elsewhere; those that are not valid are left out."""
        opened: list[Signed] = []
        for record in records:
            try:
                opened.append(open_operation(record, community))
            except PeerMisbehaved as fault:
                self._complain(source, fault)
        needed = _built_on(opened)
        known = self.of(community)
        for one in opened:
            try:
                new = known.take(one, is_needed=one.id in needed)
            except PeerMisbehaved as fault:
                self._complain(source, fault)
                continue
            self._unsaved += [(community, taken) for taken in new]
            if new:
                self._news.setdefault(community, [])
        if self._news:
            self._has_news.set()


def _built_on(operations: Sequence[Signed]) -> set[bytes]:
    """Which of these lie in the past of an act of another author."""
    needed: set[bytes] = set()
    authors = {one.id: one.author for one in operations}
    for one in reversed(operations):
        needed.update(
            parent for parent in one.operation.parents if one.id in needed or authors.get(parent) != one.author
        )
    return needed
