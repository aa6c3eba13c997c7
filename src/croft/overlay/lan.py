"""Finds members on the local network, and lets them find this peer: the shell of `lan_beacon`."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, assert_never

from croft.errors import CroftError
from croft.model.ids import CommunityId, PeerId, short
from croft.overlay import lan_beacon as core
from croft.overlay.lan_beacon import Beacon, beacon_keys

if TYPE_CHECKING:
    from croft.overlay.passport import Membership
    from croft.overlay.service import Overlay
    from croft.ports import Discovery, Entropy

log = logging.getLogger(__name__)

TICK_S = 1.0
WITHOUT_NETWORK_S = 15.0
"""How long to wait where nothing can be sent to everybody, before trying again."""


class LanPresence:
    """This peer on its local network. `revocations`: the records of a community, in the order of all its members."""

    def __init__(
        self,
        overlay: Overlay,
        discovery: Discovery,
        entropy: Entropy,
        revocations: Callable[[CommunityId], Sequence[bytes]],
    ) -> None:
        self._overlay = overlay
        self._revocations = revocations
        self._keys: dict[CommunityId, tuple[Sequence[bytes], tuple[bytes, ...]]] = {}
        self._discovery = discovery
        self._entropy = entropy
        self._core = core.LanBeacons(overlay.own.peer)
        self._dialling: set[PeerId] = set()

    async def serve(self) -> None:
        """Runs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._show(tasks), name="lan.show")
            tasks.create_task(self._hear(tasks), name="lan.hear")

    async def _show(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            communities = self._overlay.communities()[: core.COMMUNITIES_MAX]
            keys = {one.community: self._keys_of(one) for one in communities}
            seed = self._entropy.token(core.COMMUNITIES_MAX * core.SEED_BYTES)
            event = core.Tick(keys, _near(self._overlay.addresses()), self._now(), seed)
            await self._perform(self._core.handle(event), tasks)
            await asyncio.sleep(TICK_S)

    def _keys_of(self, membership: Membership) -> tuple[bytes, ...]:
        revocations = self._revocations(membership.community)
        known = self._keys.get(membership.community)
        if known is None or known[0] != revocations:
            known = revocations, beacon_keys(membership.chain[0], revocations)
            self._keys[membership.community] = known
        return known[1]

    async def _hear(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            try:
                name, sealed = await self._discovery.hear(self._core.is_ours)
            except CroftError as error:
                log.debug("the local network is not heard: %s", error.message)
                await asyncio.sleep(WITHOUT_NETWORK_S)
                continue
            await self._perform(self._core.handle(core.Heard(Beacon(name, sealed), self._now())), tasks)

    async def _perform(self, effects: Sequence[core.Effect], tasks: asyncio.TaskGroup) -> None:
        for effect in effects:
            match effect:
                case core.Announce(beacons):
                    try:
                        await self._discovery.announce([(beacon.name, beacon.sealed) for beacon in beacons])
                    except CroftError as error:
                        log.debug("the local network does not see this peer: %s", error.message)
                        self._core.not_shown()
                        await asyncio.sleep(WITHOUT_NETWORK_S)
                case core.Dial(peer, addresses):
                    if peer not in self._dialling and not self._overlay.is_alive(peer):
                        self._dialling.add(peer)
                        tasks.create_task(self._dial(peer, addresses), name=f"lan.dial.{short(peer)}")
                case _:
                    assert_never(effect)

    async def _dial(self, peer: PeerId, addresses: Sequence[str]) -> None:
        try:
            await self._overlay.link_at(peer, addresses)
            log.info("found %s (%s) on the local network", self._overlay.name_of(peer), short(peer))
        except CroftError as error:
            log.debug("%s was heard on the local network, and not reached: %s", short(peer), error.message)
        finally:
            self._dialling.discard(peer)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _near(addresses: Sequence[str]) -> tuple[str, ...]:
    """Those that somebody else on this network could use."""
    return tuple(address for address in addresses if not _is_loopback(address))[: core.ADDRESSES_MAX]


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback
    except ValueError:
        return False
