"""What other rooms ask about communities, and what their owner does in them: the shell of `community`.

`community_exchange` keeps the operations on disk and alike with the other members.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from croft.errors import Busy, NotFound, Refused
from croft.identity.grants import found
from croft.identity.keys import SecretKey, community_key
from croft.model.ids import CommunityId, TwinId
from croft.twins.community_exchange import Exchange
from croft.twins.community_operation import (
    ADMIN,
    ADMIT,
    CREATE,
    FOUNDER,
    GUEST,
    ROLE,
    Operation,
    is_fit,
    write_operation,
)
from croft.twins.community_reducer import GUESTS_INVITE_NOBODY, NO_ROLE, RULE_FORBIDS, STAYS_OUT

if TYPE_CHECKING:
    from croft.ports import Clock, Database, Entropy
    from croft.twins.community import Community
    from croft.twins.community_terms import Joined, Neighbours

LOOK_EVERY_S: Final = 5.0
COMPARE_EVERY_S: Final = 20.0
"""Between two comparisons with a linked peer; each time with the next one."""
SALT_BYTES: Final = 16
FIRST: Final = b"first"
"""The salt of the community that a peer founds by its first invitation."""
REMOVED: Final = "removed"
"""The code by which is refused who was removed, or left."""
VOUCHED_MAX: Final = 1_024
ADMINS_NAMED_MAX: Final = 5
NEEDS_KEY: Final = "Do it on the device that holds your key: the one you began with. See `croft device list` there."


class Communities:
    """The state of every community that this peer is in. `load` before `serve`."""

    def __init__(
        self,
        own: TwinId,
        root: bytes | None,
        twin_key: SecretKey | None,
        neighbours: Neighbours,
        database: Database,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._own = own
        self._root = root
        self._twin_key = twin_key
        self._neighbours = neighbours
        self._clock = clock
        self._entropy = entropy
        self._exchange = Exchange(own, neighbours, database, clock)
        self._turn = 0

    # --- what other rooms ask ----------------------------------------------------------------------------------------

    def of(self, community: CommunityId) -> Community:
        """The state of a community that this peer is in. Raises NotFound."""
        return self._exchange.of(community)

    def role_of(self, community: CommunityId, twin: TwinId) -> str:
        """`founder`, `admin`, `member` or `guest`; empty for whoever is no member, as far as this peer knows."""
        try:
            known = self.of(community)
        except NotFound:
            return ""
        # Only for those whom no operation admits, their own descriptors have to be looked for.
        path = () if known.is_present(twin) or known.is_out(twin) else self._path(community, twin)
        return known.role(twin, path)

    def members_of(self, community: CommunityId) -> set[TwinId]:
        """Everybody who is a member, as far as this peer knows; guests too."""
        try:
            known = self.of(community)
        except NotFound:
            return set()
        told = {twin for twin, (path, _) in self._people(community).items() if not known.refusal(twin, path)}
        return told | set(known.members())

    def on_change(self, callback: Callable[[CommunityId], None]) -> None:
        """Tells `callback` whenever members, roles or rules of a community may have changed."""
        self._exchange.on_change.append(callback)

    def refusal(self, community: CommunityId, twin: TwinId, path: Sequence[TwinId]) -> Refused | None:
        """Why somebody is kept out of a community in spite of a valid grant, in words for them; None if they are not.

        `path`: who let whom in, by the grant.
        """
        try:
            known = self.of(community)
        except NotFound:
            return None
        why = known.refusal(twin, path)
        if not why:
            return None
        message = f"your membership of {self._name(community)} does not hold: {why}"
        if (by := known.was_removed_by(twin)) is not None:
            who = "its founder" if by == known.founder else f"its admin {known.name_of(by) or by[:10]}"
            message = f"you were removed from {self._name(community)} by {who}"
        elif known.is_out(twin):
            message = f"you left {self._name(community)}"
        refusal = Refused(message, remedy="An admin lets you in again by a new invitation: `croft community invite`.")
        if known.is_out(twin):
            refusal.code = REMOVED
        return refusal

    def is_out(self, community: CommunityId, twin: TwinId) -> bool:
        """Whether somebody was removed, or left."""
        known = self._exchange.get(community)
        return known is not None and known.is_out(twin)

    def serves(self, twin: TwinId, communities: frozenset[CommunityId]) -> frozenset[CommunityId]:
        """In which of these somebody may use what is for members: not where they are a guest, or out."""
        return frozenset(one for one in communities if self._serves(one, twin))

    def _serves(self, community: CommunityId, twin: TwinId) -> bool:
        known = self._exchange.get(community)
        return known is None or not (known.is_out(twin) or known.is_guest(twin))

    # --- what the owner does -----------------------------------------------------------------------------------------

    async def create(self, name: str, enter: Callable[[CommunityId, Sequence[bytes]], Awaitable[None]]) -> CommunityId:
        """Founds a community; `enter` makes this peer a member by the grant. Raises Refused without the twin's key."""
        self._key("found a community")
        assert self._root is not None, "whoever holds the twin's key holds what it is made from"
        key = community_key(self._root, self._entropy.token(SALT_BYTES))
        community = CommunityId(key.public)
        await enter(community, found(key, self._own))
        self._create(community, key, name)
        await self._exchange.save_and_tell()
        return community

    async def act(self, community: CommunityId, act: str, subject: str, value: str = "") -> None:
        """Does something in a community; on disk when this returns, and on its way to the others.

        Raises Refused if it would have no effect, and says why.
        """
        self.check(community, act, subject, value)
        self._sign(community, act, subject, value)
        await self._exchange.save_and_tell()

    def check(self, community: CommunityId, act: str, subject: str, value: str = "") -> None:
        """Raises Refused if an act of the owner would have no effect, and says why."""
        self._key("do nothing in a community")
        if not self._exchange.may_sign(community):
            raise Busy(
                f"this peer has heard from no other member of {self._name(community)} since it came in",
                remedy="Try again when one is linked: `croft peers`.",
            )
        if why := self.of(community).would_count(self._own, act, subject, value, self._exchange.own_paths[community]):
            raise Refused(
                f"this would have no effect in {self._name(community)}: {why}", remedy=self._who_may(community, why)
            )

    def vouch(self, community: CommunityId, let_in_by: TwinId | None = None) -> int:
        """Confirms members whom only their grant admits, of whoever let them in or of all; how many.

        Before somebody who let others in is removed, or may no more: else those would go too, because nothing tells
        whether they came before.
        """
        known, count = self.of(community), 0
        for twin, (path, name) in list(self._people(community).items()):
            is_meant = let_in_by is None or let_in_by in path[:-1]
            is_bare = not known.is_admitted(twin) and not known.refusal(twin, path)
            if is_meant and is_bare and count < VOUCHED_MAX and self._may_admit(community, twin):
                self._sign(community, ADMIT, twin, name)
                count += 1
        return count

    def check_invites(self, community: CommunityId, is_for_guest: bool = False) -> None:
        """Raises Refused if the owner may let nobody in, or nobody as a guest."""
        if why := self.of(community).may_invite(self._own, self._exchange.own_paths[community]):
            raise Refused(
                f"you may invite nobody to {self._name(community)}: {why}", remedy=self._who_may(community, why)
            )
        if is_for_guest and self.of(community).role(self._own) not in (FOUNDER, ADMIN):
            raise Refused(
                f"you may invite no guest to {self._name(community)}: {NO_ROLE}",
                remedy=self._who_may(community, NO_ROLE),
            )

    def check_admits(self, community: CommunityId, twin: TwinId, is_for_guest: bool = False) -> None:
        """Raises Refused if the owner may not let this one in, Busy if whether as a guest is not known here yet."""
        known = self.of(community)
        if known.is_present(twin):
            return
        if is_for_guest:
            self.check(community, ROLE, twin, GUEST)
        if why := known.would_count(self._own, ADMIT, twin, "", self._exchange.own_paths[community]):
            raise Refused(f"the owner of this peer may not let you in: {why}", remedy="Ask an admin to invite you.")

    def admitted(self, community: CommunityId, twin: TwinId, name: str, is_for_guest: bool = False) -> None:
        """The owner has just let somebody in."""
        # What cannot be signed yet, `_catch_up` signs.
        if self._exchange.may_sign(community) and not self.of(community).is_present(twin):
            if is_for_guest:
                # First, so that nobody ever sees them as a member: whoever knows the second act knows this one.
                self._sign(community, ROLE, twin, GUEST)
            self._sign(community, ADMIT, twin, name)

    async def load(self) -> None:
        """Takes in what the last run left on disk. Raises Failed."""
        await self._exchange.load()

    async def forget(self, community: CommunityId) -> None:
        """This peer is in a community no more: nothing of it is kept."""
        await self._exchange.forget(community)

    # --- running -----------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Keeps alike with others what is known, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._exchange.serve(), name="communities.exchange")
            tasks.create_task(self._look(), name="communities.look")

    async def _look(self) -> None:
        compared_at = 0.0
        while True:
            for joined in list(self._neighbours.communities()):
                with contextlib.suppress(Refused):
                    self._catch_up(joined)
            self._exchange.try_again()
            now = asyncio.get_running_loop().time()
            if now - compared_at >= COMPARE_EVERY_S:
                compared_at = now
                self._turn += 1
                if links := self._neighbours.links.all():
                    self._exchange.compare(links[self._turn % len(links)])
            await asyncio.sleep(LOOK_EVERY_S)

    def _catch_up(self, joined: Joined) -> None:
        """Signs what was done before there were operations, or was not written down when this peer ended."""
        if self._twin_key is None or self._root is None:
            return
        known = self.of(joined.community)
        if not self._exchange.is_compared(joined.community):
            return
        if known.founder == self._own and not known.name:
            key = community_key(self._root, FIRST)
            if key.public == joined.community:
                self._create(joined.community, key, joined.name)
        for twin, (path, name) in self._people(joined.community).items():
            is_bare = len(path) > 1 and path[-2] == self._own and not known.is_admitted(twin)
            if is_bare and self._may_admit(joined.community, twin):
                self._sign(joined.community, ADMIT, twin, name)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _may_admit(self, community: CommunityId, twin: TwinId) -> bool:
        path = self._exchange.own_paths[community]
        return not self.of(community).would_count(self._own, ADMIT, twin, "", path)

    def _sign(self, community: CommunityId, act: str, subject: str, value: str) -> None:
        key = self._key("do nothing in a community")
        chain = next(one.chain for one in self._neighbours.communities() if one.community == community)
        value = value if is_fit(value) else ""
        operation = self.of(community).next_operation(self._own, act, subject, value, at=self._clock.now(), chain=chain)
        self._exchange.publish(community, write_operation(key, operation))

    def _create(self, community: CommunityId, key: SecretKey, name: str) -> None:
        operation = Operation(community, 0, [], CREATE, self._own, name, self._clock.now())
        self._exchange.publish(community, write_operation(key, operation))

    def _key(self, what: str) -> SecretKey:
        if self._twin_key is None:
            raise Refused(f"this device does not hold your key, and can {what}", remedy=NEEDS_KEY)
        return self._twin_key

    def _people(self, community: CommunityId) -> Mapping[TwinId, tuple[Sequence[TwinId], str]]:
        return {one.twin: (one.path, one.name) for one in self._neighbours.community_members(community)}

    def _path(self, community: CommunityId, twin: TwinId) -> Sequence[TwinId]:
        if twin == self._own:
            return self._exchange.own_paths.get(community, ())
        return next((one.path for one in self._neighbours.community_members(community) if one.twin == twin), ())

    def _who_may(self, community: CommunityId, why: str) -> str:
        if why not in (NO_ROLE, RULE_FORBIDS, GUESTS_INVITE_NOBODY, STAYS_OUT):
            return "See who is what there, and since when: `croft community members`, `croft community log`."
        known, people = self.of(community), self._people(community)
        admins = [who for who in known.members() if known.role(who) in (FOUNDER, ADMIN)]
        names = [people[who][1] if who in people else known.name_of(who) or who[:10] for who in admins]
        return f"Ask one of its admins: {', '.join(names[:ADMINS_NAMED_MAX])}."

    def _name(self, community: CommunityId) -> str:
        joined = next((one.name for one in self._neighbours.communities() if one.community == community), "")
        return joined or community[:10]
