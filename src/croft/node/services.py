"""This machine's services for others, and the way to theirs, as the local API shows them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from croft.control import schema
from croft.control.naming import find_peer
from croft.control.quantities import hours_of_day
from croft.control.tunnels import OnProblem
from croft.errors import NotFound, Usage
from croft.model.hours import show_hours
from croft.model.ids import PeerId, TwinId
from croft.overlay.exposure import Exposure, Grantee, GranteeKind, TunnelProtocol, default_name
from croft.overlay.pacing import Direction, Limit
from croft.overlay.shaping import PURPOSES

if TYPE_CHECKING:
    from croft.node.assemble import Parts
    from croft.ports import Stream


class ServiceDesk:
    """Fulfils `croft.control.services_app.Services` and `croft.control.tunnels.Desk`."""

    def __init__(self, parts: Parts, peers: Callable[[], list[schema.Peer]]) -> None:
        self._parts = parts
        self._peers = peers

    # --- exposing ----------------------------------------------------------------------------------------------------

    async def expose(self, wanted: schema.ExposureWanted) -> schema.Exposure:
        """Lets others reach a service of this machine. Raises Usage, NotFound, Busy."""
        now = self._parts.ports.clock.now()
        if wanted.lifetime_s is not None and not wanted.lifetime_s > 0:
            raise Usage("a service is exposed for more than no time", remedy="Write it like `--for 2h`.")
        try:
            protocol = TunnelProtocol(wanted.protocol)
        except ValueError:
            raise Usage(
                f"`{wanted.protocol}` is neither tcp nor udp", remedy="Write the port as 8000 or 53/udp."
            ) from None
        exposure = Exposure(
            name=wanted.name or default_name(wanted.port),
            port=wanted.port,
            protocol=protocol,
            grantees=tuple(dict.fromkeys(self._grantee(who) for who in wanted.to)),
            created_at=now,
            expires_at=None if wanted.lifetime_s is None else now + wanted.lifetime_s,
        )
        await self._parts.tunnel_host.expose(exposure)
        return self._shown(exposure, 0)

    def exposures(self) -> list[schema.Exposure]:
        """Those of this machine, by name."""
        return [self._shown(exposure, count) for exposure, count in self._parts.tunnel_host.exposures()]

    async def unexpose(self, name: str) -> schema.Exposure:
        """Ends a service for others, and their connections. Raises NotFound."""
        return self._shown(await self._parts.tunnel_host.remove(name), 0)

    def _grantee(self, who: str) -> Grantee:
        """Whom a name means: a contact, a community, or a peer."""
        contacts = [one for one in self._parts.address_book.all() if one.petname.casefold() == who.casefold() != ""]
        if contacts:
            return Grantee(GranteeKind.TWIN, contacts[0].twin)
        communities = [one for one in self._parts.overlay.communities() if who in (one.name, one.community)]
        try:
            peer = find_peer(self._peers(), who)
        except NotFound:
            if not communities:
                raise NotFound(
                    f"no peer and no community is called `{who}`",
                    remedy="See who is here: `croft peers`, `croft status`.",
                ) from None
            peer = None
        if (peer is not None and communities) or len(communities) > 1:
            ids = ", ".join([*(one.community[:10] for one in communities), *([peer.peer[:10]] if peer else [])])
            raise Usage(f"several are called `{who}`: {ids}", remedy="Name it by its id.")
        if peer is None:
            return Grantee(GranteeKind.COMMUNITY, communities[0].community)
        return Grantee(GranteeKind.PEER, peer.peer)

    def _shown(self, exposure: Exposure, connections: int) -> schema.Exposure:
        return schema.Exposure(
            name=exposure.name,
            port=exposure.port,
            protocol=exposure.protocol.value,
            to=[self._name_of(grantee) for grantee in exposure.grantees],
            created_at=exposure.created_at,
            expires_at=exposure.expires_at,
            connections=connections,
        )

    def _name_of(self, grantee: Grantee) -> str:
        overlay = self._parts.overlay
        match grantee.kind:
            case GranteeKind.COMMUNITY:
                return next((one.name for one in overlay.communities() if one.community == grantee.id), grantee.id[:10])
            case GranteeKind.PEER:
                return overlay.name_of(PeerId(grantee.id))
            case GranteeKind.TWIN:
                return self._parts.plan.contacts.get(TwinId(grantee.id)).petname or grantee.id[:10]

    # --- limits ------------------------------------------------------------------------------------------------------

    async def set_limit(self, wanted: schema.LimitWanted) -> schema.Limit:
        """One more limit. Raises Usage, NotFound, Busy."""
        if wanted.purpose == "relay":
            raise Usage("relaying has limits of its own", remedy="Set them where you offer it: croft offer relay RATE")
        if wanted.purpose not in ("", *PURPOSES.values()):
            raise Usage(f"`{wanted.purpose}` is no purpose", remedy="The purposes are tasks and tunnel.")
        if wanted.direction not in ("", *Direction):
            raise Usage(f"`{wanted.direction}` is no direction", remedy="The directions are up and down.")
        limit = Limit(
            number=0,
            rate=wanted.rate,
            peer=self._find(wanted.peer) if wanted.peer else None,
            purpose=wanted.purpose or None,
            direction=Direction(wanted.direction) if wanted.direction else None,
            hours=hours_of_day(wanted.hours) if wanted.hours else None,
        )
        return self._limit(await self._parts.shaping.add(limit))

    def limits(self) -> list[schema.Limit]:
        """All limits, in the order in which they were set."""
        return [self._limit(limit) for limit in self._parts.shaping.limits()]

    async def remove_limit(self, number: int) -> schema.Limit:
        """Removes a limit. Raises NotFound."""
        return self._limit(await self._parts.shaping.remove(number))

    def _limit(self, limit: Limit) -> schema.Limit:
        return schema.Limit(
            number=limit.number,
            rate=limit.rate,
            peer=self._parts.overlay.name_of(limit.peer) if limit.peer else "",
            purpose=limit.purpose or "",
            direction=limit.direction.value if limit.direction else "",
            hours=show_hours(limit.hours) if limit.hours else "",
        )

    # --- reaching ----------------------------------------------------------------------------------------------------

    def forward(
        self, peer: str, service: str, protocol: TunnelProtocol, port: int, on_problem: OnProblem
    ) -> AbstractAsyncContextManager[int]:
        """A local port that leads to a service. Raises NotFound, Usage."""
        return self._parts.tunnels.forwarding(self._find(peer), service, protocol, port, on_problem)

    def proxy(self, port: int, on_problem: OnProblem) -> AbstractAsyncContextManager[int]:
        """A local SOCKS port."""
        return self._parts.tunnels.proxying(port, self._find, on_problem)

    async def pipe(self, peer: str, service: str) -> Stream:
        """One connection to a service. Raises NotFound, Usage, Refused, Unreachable."""
        return await self._parts.tunnels.open(self._find(peer), service)

    def _find(self, name: str) -> PeerId:
        return PeerId(find_peer(self._peers(), name).peer)
