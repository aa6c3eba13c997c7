"""Links to stored files as the local API makes them, and names that begin with one: `LINE/page`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from croft.control import schema
from croft.control.naming import find_person
from croft.errors import NotFound, Usage
from croft.model.ids import CommunityId, TwinId
from croft.storage.contents import Putting
from croft.storage.formats import Entry, Version
from croft.storage.linked_files import OpenedLink
from croft.storage.links import LINK_PREFIX, VERIFY_PREFIX, Link, OwnLink, read_link
from croft.storage.placement import Rule, rule_of
from croft.storage.proposing import check_place
from croft.storage.sharing import Named

if TYPE_CHECKING:
    from croft.node.assemble import Parts
    from croft.overlay.membership import Member

NAMED_MAX: Final = 256
REPAIRERS_MAX: Final = 64


def split_link(name: bytes) -> tuple[Link, bytes] | None:
    """The link that a name begins with, and what follows it; None for a name without one. Raises Usage."""
    if not name.startswith((LINK_PREFIX.encode(), VERIFY_PREFIX.encode())):
        return None
    line, _, below = name.partition(b"/")
    return read_link(line.decode(errors="replace")), below


class LinkDesk:
    """Links of the owner, and what lies behind those of others."""

    def __init__(
        self,
        parts: Parts,
        peers: Callable[[], list[schema.Peer]],
        contacts: Callable[[], list[schema.Contact]],
    ) -> None:
        self._parts = parts
        self._peers = peers
        self._contacts = contacts

    # --- links of the owner ------------------------------------------------------------------------------------------

    async def links(self) -> list[schema.FileLink]:
        """All of them, on whatever device they were made."""
        return [self._shown(link) for link in await self._parts.links.sharing.links()]

    async def make(self, name: bytes, wanted: schema.LinkWanted) -> schema.FileLink:
        """Lets others read files, and write them. Raises NotFound, Usage."""
        if not wanted.to and not wanted.writers:
            raise Usage("a link is for somebody", remedy="Say it like --to bob, or --write bob.")
        if len(wanted.to) + len(wanted.writers) > NAMED_MAX or not wanted.for_s > 0:
            raise Usage("a link is for some people, and for some time", remedy="Say it like --to bob --for 30d.")
        if wanted.repairs and not wanted.verifies:
            raise Usage("who repairs has to verify", remedy="Say it like --to bob --verify --repair.")
        if wanted.writers and wanted.verifies:
            raise Usage("who verifies neither reads nor writes", remedy="Make one link for each: --verify, --write.")
        readers, writers = self._named(wanted.to), self._named(wanted.writers)
        repairers = [bytes.fromhex(one.peer) for one in self._parts.overlay.members() if self._is_of(one, readers)]
        link = await self._parts.links.sharing.make(
            *(name, readers, writers, self._parts.ports.clock.now() + wanted.for_s),
            verifies=wanted.verifies,
            repairers=repairers[:REPAIRERS_MAX] if wanted.repairs else [],
        )
        return self._shown(link)

    def _is_of(self, member: Member, named: Named) -> bool:
        """Whether a device belongs to somebody who is named, or to a member of a community that is."""
        communities = (CommunityId(one.hex()) for one in named.communities)
        known = self._parts.communities
        return bytes.fromhex(member.twin) in named.twins or any(
            member.peer in {one.peer for one in self._parts.overlay.community_members(community)}
            and community in known.serves(member.twin, frozenset([community]))
            for community in communities
        )

    async def verify(self, wanted: schema.VerificationWanted) -> schema.LinkVerified:
        """Has holders prove that all behind a link is there. Raises Refused, NotFound, Usage, Unreachable."""
        link = read_link(wanted.line, VERIFY_PREFIX)
        report = await self._parts.links.verifier.verify(link, is_deep=wanted.is_deep, mends=wanted.repairs)
        return schema.LinkVerified(
            name=link.name.decode(errors="replace"),
            stripes=report.stripes,
            short=len(report.short),
            unreadable=report.unreadable,
            rebuilt=report.rebuilt,
            faults=list(report.caught),
        )

    async def revoke(self, wanted: schema.LinkNamed) -> schema.FileLink:
        """Has a link lead to nothing any more. Raises NotFound, Usage, Unreachable."""
        return self._shown(await self._parts.links.sharing.revoke(wanted.link))

    def _named(self, names: Sequence[str]) -> Named:
        communities = {one.name: one.community for one in self._parts.overlay.communities()}
        people = [find_person(self._contacts(), self._peers(), who) for who in names if who not in communities]
        return Named(
            [bytes.fromhex(twin) for twin in people],
            [bytes.fromhex(communities[who]) for who in names if who in communities],
        )

    def _shown(self, link: OwnLink) -> schema.FileLink:
        made = link.made
        return schema.FileLink(
            link=made.id.hex(),
            name=made.name.decode(errors="replace"),
            to=self._names(made.twins, made.communities),
            writers=self._names(made.writers, made.writing_communities),
            made_at=made.made_at,
            expires_at=made.expires_at,
            is_revoked=link.is_revoked,
            verifies=made.verifies,
            repairs=bool(made.repairers),
            line=link.line(bytes.fromhex(self._parts.overlay.own.twin)),
        )

    def _names(self, twins: Sequence[bytes], communities: Sequence[bytes]) -> list[str]:
        names = {one.community: one.name for one in self._parts.overlay.communities()}
        devices = {member.twin: member.name for member in self._parts.overlay.members()}
        contacts = self._parts.plan.contacts
        people = [TwinId(twin.hex()) for twin in twins]
        shown = [contacts.get(twin).petname or devices.get(twin, twin[:10]) for twin in people]
        return [*shown, *(names.get(CommunityId(one.hex()), one.hex()[:10]) for one in communities)]

    # --- what lies behind a link -------------------------------------------------------------------------------------

    async def open(self, link: Link) -> OpenedLink:
        """What a link leads to now. Raises Refused, NotFound, Unreachable."""
        return await self._parts.links.reader.open(link)

    async def matching(self, link: Link, below: bytes) -> list[Entry]:
        """The file of this name behind a link, and all below it; with their whole names. Raises NotFound, Refused."""
        opened = await self.open(link)
        found = matching(opened.entries, below)
        return [Entry(link.name + b"/" + name if name else link.name, entry.versions) for name, entry in found.items()]

    async def rule(self, link: Link, names: Sequence[bytes]) -> Rule:
        """Where what is written by a link may be, as its owner wants it. Raises Refused for who only reads, Usage."""
        opened = await self.open(link)
        self._parts.links.writer.check(opened)
        for name in names:
            check_place(name, is_folder=opened.is_folder)
        entries = [opened.entries[name] for name in names if name in opened.entries] or list(opened.entries.values())
        return rule_of(entries[0].versions[-1].bounds) if entries else Rule()

    async def write(self, changes: Mapping[bytes, Version], putting: Putting) -> None:
        """Writes files by their names, which begin with one link. Raises CroftError: nothing was written."""
        link, _ = self.one(list(changes))
        placed = {(split_link(name) or (link, b""))[1]: version for name, version in changes.items()}
        await self._parts.links.writer.write(link, placed, putting)

    def one(self, names: Sequence[bytes]) -> tuple[Link, list[bytes]]:
        """The link that all of these names begin with, and what follows it. Raises Usage."""
        split = [split_link(name) for name in names]
        links = {one[0].id: one[0] for one in split if one is not None}
        if len(links) != 1 or None in split:
            raise Usage("these names do not begin with one link", remedy="Put them one by one.")
        return next(iter(links.values())), [one[1] for one in split if one is not None]

    async def remove(self, link: Link, below: bytes, wanted: schema.RemovalWanted) -> schema.FilesRemoved:
        """Removes files behind a link. Raises NotFound, Usage, Refused."""
        if wanted.is_final:
            raise Usage("by a link, earlier versions stay with its owner", remedy="Remove it without --final.")
        opened = await self.open(link)
        self._parts.links.writer.check(opened)
        there = opened.files()
        names = [name for name in matching(opened.entries, below) if name in there]
        if not names:
            raise NotFound(
                f"there is no file `{below.decode(errors='replace')}` behind this link",
                remedy="See which there are: `croft ls LINE`.",
            )
        if not wanted.is_folder and names != [below]:
            raise Usage("this is a folder", remedy="Remove all that is in it with -r.")
        async with await self._parts.storage.listing() as putting:
            changes = {name: Version(0, b"", 0.0, 0, None) for name in names}
            await self._parts.links.writer.write(link, changes, putting)
        return schema.FilesRemoved(files=len(names), freed_bytes=0)


def matching(entries: Mapping[bytes, Entry], below: bytes) -> dict[bytes, Entry]:
    """Those of this name, or below it."""
    return {
        name: entry for name, entry in entries.items() if not below or name == below or name.startswith(below + b"/")
    }
