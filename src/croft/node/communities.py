"""Communities: what follows for this peer when members change, and what the local API shows and does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from croft.control import schema
from croft.control.naming import ID_PREFIX_MIN, find_person
from croft.errors import Busy, NotFound, Usage
from croft.model.ids import CommunityId, PeerId, TwinId, short
from croft.overlay.messages import Rejected
from croft.overlay.passport import Membership
from croft.twins.communities import REMOVED
from croft.twins.community import Act
from croft.twins.community_operation import LEAVE, REMOVE, ROLE, ROLES_GIVEN, RULE, is_fit
from croft.twins.community_reducer import INVITE, RULES, WHO_INVITES

if TYPE_CHECKING:
    from croft.node.assemble import Parts
    from croft.node.health import Health
    from croft.overlay.link import Link
    from croft.overlay.service import Overlay
    from croft.ports import Clock
    from croft.twins.communities import Communities

log = logging.getLogger(__name__)

SETTLE_S: Final = 0.5
"""Whoever was removed is told so before links to them are cut."""
LOOK_EVERY_S: Final = 5.0
REJOINED_S: Final = 20.0
"""After coming in, what undid an earlier removal may be heard of later than the removal."""
NAME_CHARS_MAX: Final = 64
REFUSED: Final = "community.refused."


class CommunityKeeper:
    """Cuts off whoever is a member no more; leaves communities whose member this peer's owner is no more."""

    def __init__(self, communities: Communities, overlay: Overlay, health: Health, clock: Clock) -> None:
        self._clock = clock
        self._communities = communities
        self._overlay = overlay
        self._health = health
        self._changed: set[CommunityId] = set()
        self._has_changed = asyncio.Event()
        self._left: set[CommunityId] = set()
        self._guests: dict[CommunityId, frozenset[TwinId]] = {}
        communities.on_change(self._on_change)
        overlay.links.on_refused = self._refused
        overlay.links.on_up(self._link_up)

    async def load(self) -> None:
        """Takes in what the last run left on disk, after the overlay did."""
        await self._communities.load()
        for membership in self._overlay.communities():
            self._overlay.standing_changed(membership.community)
            self._guests[membership.community] = self._communities.of(membership.community).guests()

    async def serve(self) -> None:
        """Runs until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._has_changed.wait()
                    await asyncio.sleep(SETTLE_S)
            self._has_changed.clear()
            changed, self._changed = sorted(self._changed), set()
            for community in changed:
                self._overlay.standing_changed(community)
                self._cut_new_guests(community)
            for membership in self._overlay.communities():
                if membership.community in self._left:
                    await self.leave(membership, "its owner left the community")
                else:
                    await self._leave_if_out(membership)
            self._left.clear()

    def _cut_new_guests(self, community: CommunityId) -> None:
        """Ends what those who became guests had begun as members; what is for them they can begin again."""
        with contextlib.suppress(NotFound):
            guests = self._communities.of(community).guests()
            new = guests - self._guests.get(community, frozenset())
            self._guests[community] = guests
            for link in self._overlay.links.all():
                if link.greeted.twin in new:
                    self._overlay.links.cut(link.peer, "a guest from now on")

    def left_elsewhere(self, community: CommunityId) -> None:
        """Another device of the owner's says that the owner is in a community no more."""
        self._left.add(community)
        self._has_changed.set()

    async def leave(self, membership: Membership, reason: str) -> None:
        """This peer is in a community no more."""
        self._left.discard(membership.community)
        await self._overlay.leave(membership.community, reason)
        await self._communities.forget(membership.community)
        for warning in self._health.warnings():
            if warning.code.startswith(REFUSED):
                self._health.clear(warning.code)

    async def _leave_if_out(self, membership: Membership) -> None:
        community, own = membership.community, self._overlay.own.twin
        in_s = self._clock.now() - self._overlay.joined_at[community]
        if not self._communities.is_out(community, own) or 0 <= in_s < REJOINED_S:
            return
        by = self._communities.of(community).was_removed_by(own)
        if by is not None:
            known = self._communities.of(community)
            who = "its founder" if by == known.founder else known.name_of(by) or by[:10]
            self._health.warn(
                f"community.removed.{community[:10]}",
                f"You were removed from {membership.name} by {who}.",
                remedy="An admin lets you in again by a new invitation: croft join.",
            )
        log.info("a member of %s no more", membership.name)
        await self.leave(membership, "its owner is no member any more")

    def _refused(self, peer: PeerId, rejected: Rejected) -> None:
        """Somebody says that this peer's owner was removed. It shows no proof, so that is only told."""
        if rejected.code == REMOVED and self._overlay.communities_of(peer):
            self._health.warn(
                f"{REFUSED}{short(peer)}",
                f"{self._overlay.name_of(peer)} says: {rejected.message}.",
                remedy="An admin lets you in again by a new invitation; leave it by `croft community leave`. If others "
                "still let you in, it may be mistaken.",
            )

    def _link_up(self, link: Link) -> None:
        self._health.clear(f"{REFUSED}{short(link.peer)}")

    def _on_change(self, community: CommunityId) -> None:
        self._changed.add(community)
        self._has_changed.set()


class CommunityDesk:
    """Fulfils `croft.control.community_app.CommunityBook`."""

    def __init__(
        self,
        parts: Parts,
        peers: Callable[[], list[schema.Peer]],
        contacts: Callable[[], list[schema.Contact]],
    ) -> None:
        self._parts = parts
        self._peers = peers
        self._contacts = contacts

    def communities(self) -> list[schema.Community]:
        """Those that this peer is in."""
        return [self._shown(one) for one in self._parts.overlay.communities()]

    async def create(self, wanted: schema.CommunityWanted) -> schema.Community:
        """Founds one. Raises Usage, Refused."""
        name = wanted.community.strip()
        if not name or not is_fit(name, NAME_CHARS_MAX):
            raise Usage("a community needs a name", remedy=f"Up to {NAME_CHARS_MAX} printable characters.")
        if any(name.casefold() == one.name.casefold() for one in self._parts.overlay.communities()):
            raise Usage(f"you are in a community called {name} already", remedy="Choose another name.")

        async def enter(community: CommunityId, chain: Sequence[bytes]) -> None:
            await self._parts.overlay.enter(Membership(community, name, tuple(chain)))

        community = await self._parts.communities.create(name, enter)
        self._parts.devices.tell()
        return self._shown(self._parts.overlay.passport.memberships[community])

    def members(self, wanted: schema.CommunityWanted) -> list[schema.CommunityMember]:
        """Everybody in one, its founder first. Raises NotFound, Usage."""
        community = self.named(wanted.community).community
        return self._members(community)

    async def set_role(self, wanted: schema.RoleWanted) -> schema.CommunityMember:
        """Makes somebody an admin, a member or a guest. Raises NotFound, Usage, Refused."""
        if wanted.role not in ROLES_GIVEN:
            raise Usage(f"`{wanted.role}` is not a role", remedy=f"Use one of {', '.join(ROLES_GIVEN)}.")
        community = self.named(wanted.community).community
        who = self._person(community, wanted.who)
        if wanted.role != who.role:
            await self._parts.communities.act(community, ROLE, who.twin, wanted.role)
        return self._person(community, who.twin)

    async def remove(self, wanted: schema.RemovalOfMember) -> schema.CommunityMember:
        """Removes somebody; links to them end within seconds, everywhere. Raises NotFound, Usage, Refused."""
        community = self.named(wanted.community).community
        who, communities = self._person(community, wanted.who), self._parts.communities
        if who.is_self:
            raise Usage("this is yourself", remedy="Leave: `croft community leave`.")
        communities.check(community, REMOVE, who.twin)
        communities.vouch(community, TwinId(who.twin))
        await communities.act(community, REMOVE, who.twin)
        return who

    async def leave(self, wanted: schema.CommunityWanted) -> schema.Community:
        """Leaves one. Raises NotFound, Usage, Refused."""
        membership = self.named(wanted.community)
        shown = self._shown(membership)
        own = self._parts.overlay.own.twin
        with contextlib.suppress(Busy):  # nobody is there to be told
            await self._parts.communities.act(membership.community, LEAVE, own)
        # Those who are linked are told before the links end.
        await asyncio.sleep(SETTLE_S)
        await self._parts.community_keeper.leave(membership, "its owner left the community")
        self._parts.devices.tell()
        return shown

    async def set_rules(self, wanted: schema.RulesWanted) -> schema.Community:
        """Sets rules. Raises NotFound, Usage, Refused."""
        membership, communities = self.named(wanted.community), self._parts.communities
        community = membership.community
        for rule, value in wanted.rules.items():
            if rule not in RULES:
                raise Usage(f"there is no rule `{rule[:40]}`", remedy=f"Use one of {', '.join(RULES)}.")
            if rule == INVITE and value not in WHO_INVITES:
                raise Usage(f"`{rule}` is not `{value[:40]}`", remedy=f"Use one of {', '.join(WHO_INVITES)}.")
            if not is_fit(value):
                raise Usage(f"`{rule}` is too long, or unprintable", remedy="Up to 512 characters in one line.")
        for rule, value in wanted.rules.items():
            if communities.of(community).rules()[rule] == value:
                continue
            communities.check(community, RULE, rule, value)
            if rule == INVITE:
                communities.vouch(community)
            await communities.act(community, RULE, rule, value)
        return self._shown(membership)

    def log(self, wanted: schema.LogWanted) -> list[schema.CommunityAct]:
        """What was done in one, in an order that is the same everywhere; at last what this peer refused of late."""
        community = self.named(wanted.community).community
        known = self._parts.communities.of(community)
        names = {TwinId(one.twin): one.name for one in self._members(community)}

        def name(who: str) -> str:
            if who == community:
                return "the community's key"
            return names.get(TwinId(who)) or known.name_of(TwinId(who)) or who[:10]

        def shown(act: Act, is_refused: bool) -> schema.CommunityAct:
            return schema.CommunityAct(
                id=act.id.hex(),
                at=act.at,
                author=name(act.author),
                author_twin=act.author,
                act=act.act,
                subject=act.subject if act.act == RULE else name(act.subject),
                value=act.value,
                why_not=act.why_not,
                is_refused=is_refused,
            )

        acts = [(act, False) for act in known.log()] + [(act, True) for act in known.refused]
        return [shown(act, is_refused) for act, is_refused in (acts[-wanted.last :] if wanted.last else acts)]

    def named(self, name: str) -> Membership:
        """The community that a name or the start of an id means; empty: the only one. Raises NotFound, Usage."""
        joined = self._parts.overlay.communities()
        if not joined:
            raise NotFound("this peer is in no community", remedy="Make one: `croft community new NAME`; or join one.")
        if not name:
            found = joined
        else:
            found = [one for one in joined if one.community == name]
            found = found or [one for one in joined if one.name.casefold() == name.casefold()]
            found = found or [one for one in joined if len(name) >= ID_PREFIX_MIN and one.community.startswith(name)]
        if not found:
            raise NotFound(f"this peer is in no community called `{name[:40]}`", remedy="See them: `croft community`.")
        if len(found) > 1:
            names = ", ".join(f"{one.name} ({one.community[:10]})" for one in found)
            raise Usage(f"which of your communities: {names}?", remedy="Name it, or give the start of its id.")
        return found[0]

    # --- inside ------------------------------------------------------------------------------------------------------

    def _shown(self, membership: Membership) -> schema.Community:
        communities, community = self._parts.communities, membership.community
        known = communities.of(community)
        rules = known.rules()
        return schema.Community(
            community=community,
            name=membership.name,
            members=len(communities.members_of(community)),
            role=communities.role_of(community, self._parts.overlay.own.twin),
            invite=rules["invite"],
            text=rules["text"],
            digest=known.digest().hex(),
        )

    def _members(self, community: CommunityId) -> list[schema.CommunityMember]:
        communities, own = self._parts.communities, self._parts.overlay.own.twin
        devices: dict[str, list[str]] = {}
        for peer in self._peers():
            if community in peer.communities or peer.is_self:
                devices.setdefault(peer.twin, []).append(peer.name)
        petnames = {contact.twin: contact.petname for contact in self._contacts()}
        known = communities.of(community)
        members = []
        for twin in communities.members_of(community):
            called = devices.get(twin, [])
            name = petnames.get(twin) or (called[0] if called else known.name_of(twin) or twin[:10])
            role = communities.role_of(community, twin)
            members.append(
                schema.CommunityMember(twin=twin, name=name, role=role, devices=sorted(called), is_self=twin == own)
            )
        order = ("founder", "admin", "member", "guest", "")
        return sorted(members, key=lambda one: (order.index(one.role), one.name, one.twin))

    def _person(self, community: CommunityId, who: str) -> schema.CommunityMember:
        """The member that a name means. Raises NotFound, Usage."""
        members = self._members(community)
        found = [one for one in members if who == one.twin or who.casefold() == one.name.casefold()]
        found = found or [one for one in members if who in one.devices]
        found = found or [one for one in members if len(who) >= ID_PREFIX_MIN and one.twin.startswith(who)]
        if len(found) > 1:
            ids = ", ".join(one.twin[:10] for one in found)
            raise Usage(f"several members are called `{who}`: {ids}", remedy="Use the start of one of these ids.")
        if found:
            return found[0]
        twin = find_person(self._contacts(), self._peers(), who)
        for one in members:
            if one.twin == twin:
                return one
        raise NotFound(f"`{who}` is no member of this community", remedy="See them: `croft community members`.")
