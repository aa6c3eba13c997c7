"""Finds on the local network whoever has an open spoken code of a given number (mDNS and DNS-SD, RFC 6762, 6763).

What is found is a hint and proves nothing: whoever answers must still show that it knows the code. Announced are the
number, the peer's id and its addresses; the words never leave the machine. Needs no default route and no server.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from croft.errors import Failed
from croft.model.ids import PeerId, is_key_id, short

if TYPE_CHECKING:
    from zeroconf import ServiceInfo
    from zeroconf.asyncio import AsyncZeroconf

SERVICE_TYPE: Final = "_croft-join._udp.local."
CANDIDATES_MAX: Final = 4
"""How many peers are named for one number; each try of a code at one of them costs that one a guess."""
SEEN_MAX: Final = 64
ADDRESSES_MAX: Final = 8
ADDRESS_CHARS_MAX: Final = 64
SETTLE_S: Final = 0.3
"""How long to listen on after the first answer, for another peer with the same number."""
DETAILS_S_MAX: Final = 2.0
LONG_CODE: Final = "Use the long code, the line that begins with `croft:`; it works across networks."


class LanDiscovery:
    """See `croft.ports.Discovery`. Opens sockets only while something is announced or searched for."""

    def __init__(self) -> None:
        self._network: AsyncZeroconf | None = None
        self._published: dict[int, ServiceInfo] = {}
        self._announcing: dict[int, asyncio.Future[Any]] = {}
        self._lock = asyncio.Lock()

    async def publish(self, nameplate: int, peer: PeerId, addresses: Sequence[str]) -> None:
        """Announces the number, in the place of what was announced for it before. Raises Failed without a network."""
        async with self._lock:
            await self._withdraw(nameplate)
            if self._network is None:
                self._network = _open()
            service = _service(nameplate, peer, addresses)
            # The peer's id is in the name, so that nobody else has it and there is no need to ask around first.
            announcing = await self._network.async_register_service(service, cooperating_responders=True)
            self._published[nameplate] = service
            self._announcing[nameplate] = asyncio.ensure_future(announcing)

    async def withdraw(self, nameplate: int) -> None:
        """Announces the number no more, and says so to those who heard of it. Idempotent."""
        async with self._lock:
            await self._withdraw(nameplate)
            if not self._published:
                await self._close_network()

    async def find(self, nameplate: int, timeout_s: float) -> Sequence[tuple[PeerId, Sequence[str]]]:
        """Who announces that number: at most CANDIDATES_MAX peers and their addresses, in the order heard.

        Returns soon after the first answer; empty if nobody answers in time. Raises Failed without a network.
        """
        from zeroconf.asyncio import AsyncServiceBrowser

        names: asyncio.Queue[str] = asyncio.Queue(SEEN_MAX)

        def changed(zeroconf: object, service_type: str, name: str, state_change: Any) -> None:
            if state_change.name == "Added" and name.startswith(f"{nameplate}-") and not names.full():
                names.put_nowait(name)

        network = _open()
        browser = AsyncServiceBrowser(network.zeroconf, SERVICE_TYPE, handlers=[changed])
        try:
            return await _collect(network, names, timeout_s)
        finally:
            await browser.async_cancel()
            await network.async_close()

    async def close(self) -> None:
        """Withdraws everything. Idempotent."""
        async with self._lock:
            for nameplate in list(self._published):
                await self._withdraw(nameplate)
            await self._close_network()

    async def _withdraw(self, nameplate: int) -> None:
        service = self._published.pop(nameplate, None)
        if service is None or self._network is None:
            return
        announcing = self._announcing.pop(nameplate)
        announcing.cancel()
        await asyncio.wait([announcing])
        await (await self._network.async_unregister_service(service))

    async def _close_network(self) -> None:
        network, self._network = self._network, None
        if network is not None:
            await network.async_close()


def _service(nameplate: int, peer: PeerId, addresses: Sequence[str]) -> ServiceInfo:
    from zeroconf import ServiceInfo

    told = [address for address in addresses if is_socket_address(address)][:ADDRESSES_MAX]
    hosts = [address.rpartition(":")[0].strip("[]").partition("%")[0] for address in told]
    return ServiceInfo(
        SERVICE_TYPE,
        f"{nameplate}-{short(peer)}.{SERVICE_TYPE}",
        port=int(told[0].rpartition(":")[2]) if told else 0,
        server=f"croft-{short(peer)}.local.",
        parsed_addresses=list(dict.fromkeys(hosts)),
        properties={"peer": peer, **{f"a{number}": text for number, text in enumerate(told)}},
    )


async def _collect(
    network: AsyncZeroconf, names: asyncio.Queue[str], timeout_s: float
) -> list[tuple[PeerId, Sequence[str]]]:
    found: dict[PeerId, Sequence[str]] = {}
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + timeout_s
    while len(found) < CANDIDATES_MAX and (left_s := ends_at - loop.time()) > 0:
        try:
            async with asyncio.timeout(left_s):
                candidate = await _details(network, await names.get())
        except TimeoutError:
            break
        if candidate is not None:
            if not found:
                ends_at = min(ends_at, loop.time() + SETTLE_S)
            found.setdefault(*candidate)
    return list(found.items())


async def _details(network: AsyncZeroconf, name: str) -> tuple[PeerId, Sequence[str]] | None:
    """What the service of that name says of itself; None if it does not say it properly."""
    from zeroconf.asyncio import AsyncServiceInfo

    service = AsyncServiceInfo(SERVICE_TYPE, name)
    if not await service.async_request(network.zeroconf, DETAILS_S_MAX * 1000):
        return None
    told = service.decoded_properties
    peer = told.get("peer") or ""
    if not is_key_id(peer):
        return None
    addresses = [told.get(f"a{number}") or "" for number in range(ADDRESSES_MAX)]
    usable = [address for address in addresses if len(address) <= ADDRESS_CHARS_MAX and is_socket_address(address)]
    return (PeerId(peer), tuple(usable)) if usable else None


def _open() -> AsyncZeroconf:
    from zeroconf import InterfaceChoice
    from zeroconf.asyncio import AsyncZeroconf

    try:
        return AsyncZeroconf(interfaces=InterfaceChoice.All)
    except (OSError, RuntimeError) as error:
        raise Failed(f"the local network cannot be searched: {error}", remedy=LONG_CODE) from None


def is_socket_address(text: str) -> bool:
    """Whether `text` is an IP address, in brackets if it has colons, and a port."""
    host, _, port = text.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16
