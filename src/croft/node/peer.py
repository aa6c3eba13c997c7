"""The peer as its local API shows it."""

from __future__ import annotations

import asyncio
import math
import os
import platform
from collections.abc import Callable
from dataclasses import asdict

import msgspec

from croft.control import schema
from croft.control.config import KEYS, Config
from croft.control.home import Home
from croft.model.amounts import CPU, DISK, MEMORY
from croft.model.ids import PeerId
from croft.model.lease import Lease
from croft.node.assemble import VERSION, Parts
from croft.node.offering import OfferedHere
from croft.overlay.invitation import Invitation
from croft.overlay.membership import Member
from croft.overlay.passport import Membership
from croft.ports import RouteKind


class LocalPeer:
    """Fulfils `croft.control.app.Node`."""

    def __init__(self, parts: Parts, home: Home, config: Config) -> None:
        self._parts = parts
        self._home = home
        self._config = config
        self._started_at = parts.ports.clock.now()
        self.stopping = asyncio.Event()
        self.is_to_start_anew = False
        self.named_community: Callable[[str], Membership]

    def status(self) -> schema.Status:
        """Who this peer is, who is here, what is wrong, what next."""
        overlay = self._parts.overlay
        peers = self.peers()
        return schema.Status(
            peer=overlay.own.peer,
            twin=overlay.own.twin,
            name=overlay.own.name,
            version=VERSION,
            python=platform.python_version(),
            home=str(self._home.state),
            process=os.getpid(),
            started_at=self._started_at,
            addresses=list(self._parts.ports.transport.addresses()),
            lending=self.lending(),
            communities=[
                schema.Community(
                    community=membership.community,
                    name=membership.name,
                    members=len(overlay.community_members(membership.community)),
                    role=self._parts.communities.role_of(membership.community, overlay.own.twin),
                )
                for membership in overlay.communities()
            ],
            peers=peers,
            health=self._parts.health.warnings(),
            next_step="" if len(peers) > 1 else "Nobody else is here yet. Invite someone: `croft invite`",
        )

    def lending(self) -> schema.Lending:
        """What is lent, and how much of it is in use."""
        lender, lending = self._parts.lender, self._parts.lending
        isolation = self._parts.ports.sandbox.isolation()
        until = lending.paused_until
        return schema.Lending(
            slots=lending.most[CPU],
            slots_busy=lender.slots_busy,
            memory_bytes=lending.most[MEMORY],
            disk_bytes=lending.most[DISK],
            grade=isolation.grade,
            grade_reason=isolation.reason,
            slots_now=lending.now[CPU],
            reason=lending.reason,
            paused_until=0.0 if until is not None and math.isinf(until) else until,
        )

    async def pause(self, wanted: schema.PauseWanted) -> schema.Lending:
        """Lends nothing for a time, or until `resume`."""
        await self._parts.lending.pause(wanted.for_s)
        return self.lending()

    async def resume(self) -> schema.Lending:
        """Lends again."""
        await self._parts.lending.resume()
        return self.lending()

    def peers(self) -> list[schema.Peer]:
        """Every known member, this peer first."""
        offered = self._parts.offering.offered_here()
        nothing = OfferedHere()
        return [self._peer(member, offered.get(member.peer, nothing)) for member in self._parts.overlay.members()]

    async def invite(self, wanted: schema.InvitationWanted) -> schema.Invitation:
        """A new invitation; founds a community if this peer is in none."""
        joined = self._parts.overlay.communities()
        community = self.named_community(wanted.community).community if joined or wanted.community else None
        made = await self._parts.admissions.invite(
            wanted.lifetime_s, is_spoken=wanted.is_spoken, community=community, is_for_guest=wanted.is_for_guest
        )
        return self._invitation(made.invitation, line=made.line, code=made.code)

    async def invitations(self) -> list[schema.Invitation]:
        """Those made here, newest first."""
        return [self._invitation(row) for row in self._parts.admissions.invitations()]

    async def withdraw(self, invitation: str) -> schema.Invitation:
        """Makes an open invitation worthless."""
        return self._invitation(await self._parts.admissions.withdraw(invitation))

    async def join(self, wanted: schema.JoinWanted) -> schema.Joined:
        """Joins by a line or a spoken code. By one for a device, the peer starts anew after this answer."""
        arrival = await self._parts.admissions.join(wanted.code)
        if arrival.is_to_start_anew:
            self.is_to_start_anew = True
            self.stopping.set()
        else:
            self._parts.devices.tell()
        return schema.Joined(
            community=arrival.membership.community,
            name=arrival.membership.name,
            inviter=arrival.inviter,
            members=arrival.members,
            twin=arrival.twin,
        )

    def _invitation(self, row: Invitation, line: str = "", code: str = "") -> schema.Invitation:
        return schema.Invitation(
            invitation=row.id,
            community=row.community,
            state=row.state_at(self._parts.ports.clock.now()),
            created_at=row.created_at,
            expires_at=row.expires_at,
            guesses_left=row.guesses_left,
            used_by=row.used_by or "",
            is_for_guest=row.is_for_guest,
            line=line,
            code=code,
        )

    async def leases(self) -> list[schema.Lease]:
        """What others hold of this peer, then what they held, newest first."""
        book, name_of = self._parts.leases, self._parts.overlay.name_of
        live = [_lease(lease, stage, name_of) for lease, stage in reversed(book.shown())]
        ended = [
            msgspec.structs.replace(
                _lease(settled.lease, "ended", name_of), ended_at=settled.ended_at, **asdict(settled.usage)
            )
            for settled in await book.records()
        ]
        return [*live, *ended]

    def settings(self) -> list[schema.Setting]:
        """The settings of this run."""
        return [
            schema.Setting(key=key, value=value.written, origin=value.origin, text=KEYS[key].text)
            for key, value in self._config.items().items()
        ]

    def stop(self) -> None:
        """Ends the daemon, after this answer."""
        self.stopping.set()

    def _peer(self, member: Member, offered: OfferedHere) -> schema.Peer:
        overlay, lender = self._parts.overlay, self._parts.lender
        is_self = member.peer == overlay.own.peer
        contact = self._parts.plan.contacts.get(member.twin)
        link = overlay.links.get(member.peer)
        route = link.connection.route() if link else None
        seen = overlay.seen(member.peer)
        cpu, disk = self._parts.plan.machine_load() if is_self else (None, None)
        if seen.load is not None:
            cpu, disk = seen.load.cpu, seen.load.disk
        if is_self:
            shown = "self"
        elif contact.is_blocked:
            shown = "blocked"
        elif route is None:
            shown = "idle" if overlay.is_alive(member.peer) else "offline"
        else:
            shown = "relayed" if route.kind is RouteKind.RELAYED else "direct"
        return schema.Peer(
            peer=member.peer,
            twin=member.twin,
            name=member.name,
            communities=sorted(overlay.communities_of(member.peer)),
            is_self=is_self,
            link=shown,
            address=route.address if route else "",
            round_trip_s=link.round_trip_s if link else None,
            slots=max(member.slots, offered.amounts[CPU]),
            slots_busy=lender.slots_busy if is_self else (seen.load.slots_busy if seen.load else 0),
            memory_bytes=max(member.memory_bytes, offered.amounts[MEMORY]),
            disk_bytes=max(member.disk_bytes, offered.amounts[DISK]),
            devices=sorted(offered.devices),
            cpu=cpu,
            disk=disk,
            grade=member.grade,
            python=member.python,
            machine=member.machine,
            version=member.version,
            seen_at=seen.seen_at,
            self_name=overlay.self_name_of(member.peer),
            petname=contact.petname,
            trust="own" if member.twin == overlay.own.twin else contact.trust.value,
            is_blocked=contact.is_blocked,
            labels=list(member.labels),
        )


def _lease(lease: Lease, stage: str, name_of: Callable[[PeerId], str]) -> schema.Lease:
    request = lease.request
    return schema.Lease(
        number=lease.number,
        holder=name_of(request.peer),
        peer=request.peer,
        twin=request.twin,
        purpose=request.purpose,
        job=request.job,
        offers=dict(lease.drawn),
        stage=str(stage),
        amounts=dict(lease.amounts.pairs),
        granted_at=lease.granted_at,
    )
