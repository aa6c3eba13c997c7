"""Speaks to everybody on the local network (mDNS and DNS-SD, RFC 6762, 6763): open spoken codes, and beacons.

What is found is a hint and proves nothing. Of a spoken code are announced the number, the peer's id and its addresses,
for as long as it is open; whoever answers must still show that it knows the words. A beacon is shown as a service whose
name and text say nothing to those who have not its key; its port is 1 and its address the loopback one, because what
is true of both is in the sealed text. Needs no default route and no server.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from croft.errors import Failed
from croft.model.ids import PeerId, is_key_id, short

if TYPE_CHECKING:
    from zeroconf import ServiceInfo
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

SERVICE_TYPE: Final = "_croft-join._udp.local."
BEACON_TYPE: Final = "_croft._udp.local."
TEXT_BYTES_MAX: Final = 200
"""One string of a TXT record holds 255 bytes with its key."""
TEXTS_MAX: Final = 8
HEARD_MAX: Final = 256
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
    """See `croft.ports.Discovery`. Opens sockets only while something is announced or searched for.

    With `shows_beacons` false no beacon is shown or heard: a peer that listens on loopback alone has no business on the
    network.
    """

    def __init__(self, *, shows_beacons: bool = True) -> None:
        self._network: AsyncZeroconf | None = None
        self._interfaces: frozenset[str] = frozenset()
        self._shows_beacons = shows_beacons
        self._beacons: list[ServiceInfo] = []
        self._browser: AsyncServiceBrowser | None = None
        self._saying: set[asyncio.Future[Any]] = set()
        self._heard: asyncio.Queue[str] = asyncio.Queue(HEARD_MAX)
        self._is_wanted: Callable[[str], bool] = lambda _: False
        self._published: dict[int, ServiceInfo] = {}
        self._announcing: dict[int, asyncio.Future[Any]] = {}
        self._lock = asyncio.Lock()

    async def publish(self, nameplate: int, peer: PeerId, addresses: Sequence[str]) -> None:
        """Announces the number, in the place of what was announced for it before. Raises Failed without a network."""
        async with self._lock:
            await self._withdraw(nameplate)
            network = self._network or self._open_network()
            service = _service(nameplate, peer, addresses)
            # The peer's id is in the name, so that nobody else has it and there is no need to ask around first.
            announcing = await network.async_register_service(service, cooperating_responders=True)
            self._published[nameplate] = service
            self._announcing[nameplate] = asyncio.ensure_future(announcing)

    async def withdraw(self, nameplate: int) -> None:
        """Announces the number no more, and says so to those who heard of it. Idempotent."""
        async with self._lock:
            await self._withdraw(nameplate)
            if not self._published and self._browser is None:
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

    async def announce(self, beacons: Sequence[tuple[str, bytes]]) -> None:
        """Shows these beacons in the place of those shown before, on the interfaces of now. Raises Failed."""
        if not self._shows_beacons:
            return
        async with self._lock:
            if self._network is not None and self._interfaces != _interfaces():
                await self._move_network()
            network, old = self._network or self._open_network(), self._beacons
            self._beacons = [_beacon(name, sealed) for name, sealed in beacons]
            for service in self._beacons:
                self._keep(await network.async_register_service(service, cooperating_responders=True))
            for service in old:
                self._keep(await network.async_unregister_service(service))

    async def hear(self, is_wanted: Callable[[str], bool]) -> tuple[str, bytes]:
        """The next beacon whose name is wanted. Raises Failed without a network."""
        self._is_wanted = is_wanted
        while True:
            if self._shows_beacons and self._network is None:
                async with self._lock:
                    _ = self._network or self._open_network()
            name = await self._heard.get()
            network = self._network
            if network is not None and (sealed := await _sealed(network, name)) is not None:
                return name.removesuffix("." + BEACON_TYPE), sealed

    async def close(self) -> None:
        """Withdraws everything. Idempotent."""
        async with self._lock:
            self._shows_beacons = False
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

    async def _move_network(self) -> None:
        """Sockets of an interface that came, went or changed its address are of no use: new ones say the same."""
        published = dict(self._published)
        await self._close_network()
        network = self._open_network()
        for nameplate, service in published.items():
            self._published[nameplate] = service
            announcing = await network.async_register_service(service, cooperating_responders=True)
            self._announcing[nameplate] = asyncio.ensure_future(announcing)

    def _keep(self, saying: Awaitable[Any]) -> None:
        """What is said is said several times, and by then may be of no use any more."""
        task = asyncio.ensure_future(saying)
        self._saying.add(task)
        task.add_done_callback(self._saying.discard)

    def _open_network(self) -> AsyncZeroconf:
        from zeroconf.asyncio import AsyncServiceBrowser

        def changed(zeroconf: object, service_type: str, name: str, state_change: Any) -> None:
            is_there = state_change.name in ("Added", "Updated")
            if is_there and not self._heard.full() and self._is_wanted(name.removesuffix("." + BEACON_TYPE)):
                self._heard.put_nowait(name)

        network = self._network = _open()
        self._interfaces = _interfaces()
        if self._shows_beacons:
            self._browser = AsyncServiceBrowser(network.zeroconf, BEACON_TYPE, handlers=[changed])
        return network

    async def _close_network(self) -> None:
        if self._browser is not None:
            await self._browser.async_cancel()
            self._browser = None
        saying = [*self._saying, *self._announcing.values()]
        for task in saying:
            task.cancel()
        await asyncio.gather(*saying, return_exceptions=True)
        self._announcing.clear()
        self._published.clear()
        self._beacons = []
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


def _beacon(name: str, sealed: bytes) -> ServiceInfo:
    from zeroconf import ServiceInfo

    texts = [sealed[start : start + TEXT_BYTES_MAX] for start in range(0, len(sealed), TEXT_BYTES_MAX)]
    return ServiceInfo(
        BEACON_TYPE,
        f"{name}.{BEACON_TYPE}",
        port=1,
        server=f"{name}.local.",
        parsed_addresses=["127.0.0.1"],
        properties={str(number): text for number, text in enumerate(texts)},
    )


async def _sealed(network: AsyncZeroconf, name: str) -> bytes | None:
    """The bytes of a beacon; None if it is gone, or none."""
    from zeroconf.asyncio import AsyncServiceInfo

    service = AsyncServiceInfo(BEACON_TYPE, name)
    if not await service.async_request(network.zeroconf, DETAILS_S_MAX * 1000):
        return None
    texts = [service.properties.get(str(number).encode()) for number in range(TEXTS_MAX)]
    return b"".join(text for text in texts if text is not None)


def _interfaces() -> frozenset[str]:
    """The addresses that this machine has now."""
    import ifaddr

    return frozenset(str(address.ip) for adapter in ifaddr.get_adapters() for address in adapter.ips)


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
