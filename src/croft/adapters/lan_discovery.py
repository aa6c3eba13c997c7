"""Finds on the local network whoever has an open spoken code of a given number (mDNS and DNS-SD, RFC 6762, 6763).

What is found is a hint and proves nothing: whoever answers must still show that it knows the code. Announced are the
number, the peer's id and its addresses; the words never leave the machine. Needs no default route and no server.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from croft.errors import Failed, NotFound
from croft.model.ids import PeerId, is_key_id, short

if TYPE_CHECKING:
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


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that says it has an open code of the number asked for."""

    peer: PeerId
    addresses: tuple[str, ...]


@asynccontextmanager
async def publish_invitation(nameplate: int, peer: PeerId, addresses: Sequence[str], port: int) -> AsyncIterator[None]:
    """Announces an open spoken code as long as the context lasts.

    Raises:
        Failed: there is no network to announce it on.
    """
    from zeroconf import ServiceInfo

    told = list(addresses)[:ADDRESSES_MAX]
    service = ServiceInfo(
        SERVICE_TYPE,
        f"{nameplate}-{short(peer)}.{SERVICE_TYPE}",
        port=port,
        server=f"croft-{short(peer)}.local.",
        parsed_addresses=_hosts(told),
        properties={"peer": peer, "count": str(len(told)), **{f"a{n}": text for n, text in enumerate(told)}},
    )
    network = _open()
    try:
        await (await network.async_register_service(service, allow_name_change=True))
        yield
    finally:
        # Says goodbye to those who heard of it, also when cancelled.
        await asyncio.shield(asyncio.ensure_future(network.async_close()))


async def find_inviter(nameplate: int, timeout_s: float) -> Sequence[Candidate]:
    """Who has an open code of that number, at most CANDIDATES_MAX, in the order heard.

    Raises:
        NotFound: nobody answered within `timeout_s`. Failed: there is no network to ask on.
    """
    from zeroconf.asyncio import AsyncServiceBrowser

    names: asyncio.Queue[str] = asyncio.Queue(SEEN_MAX)

    def changed(zeroconf: object, service_type: str, name: str, state_change: Any) -> None:
        if state_change.name == "Added" and name.startswith(f"{nameplate}-") and not names.full():
            names.put_nowait(name)

    network = _open()
    browser = AsyncServiceBrowser(network.zeroconf, SERVICE_TYPE, handlers=[changed])
    try:
        found = await _collect(network, names, timeout_s)
    finally:
        await browser.async_cancel()
        await asyncio.shield(asyncio.ensure_future(network.async_close()))
    if not found:
        raise NotFound(f"nobody on this network has an open code of number {nameplate}", remedy=LONG_CODE)
    return found


async def _collect(network: AsyncZeroconf, names: asyncio.Queue[str], timeout_s: float) -> list[Candidate]:
    found: dict[PeerId, Candidate] = {}
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + timeout_s
    while len(found) < CANDIDATES_MAX and (left_s := ends_at - loop.time()) > 0:
        try:
            async with asyncio.timeout(left_s):
                candidate = await _details(network, await names.get())
        except TimeoutError:
            break
        if candidate is not None and candidate.peer not in found:
            if not found:
                ends_at = min(ends_at, loop.time() + SETTLE_S)
            found[candidate.peer] = candidate
    return list(found.values())


async def _details(network: AsyncZeroconf, name: str) -> Candidate | None:
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
    usable = [address for address in addresses if 0 < len(address) <= ADDRESS_CHARS_MAX and _is_address(address)]
    if not usable and service.port:
        usable = [_joined(host, service.port) for host in service.parsed_addresses()[:ADDRESSES_MAX]]
    return Candidate(PeerId(peer), tuple(usable)) if usable else None


def _open() -> AsyncZeroconf:
    from zeroconf import InterfaceChoice
    from zeroconf.asyncio import AsyncZeroconf

    try:
        return AsyncZeroconf(interfaces=InterfaceChoice.All)
    except (OSError, RuntimeError) as error:
        raise Failed(f"the local network cannot be searched: {error}", remedy=LONG_CODE) from None


def _hosts(addresses: Sequence[str]) -> list[str]:
    hosts = [address.rpartition(":")[0].strip("[]") for address in addresses if _is_address(address)]
    return list(dict.fromkeys(hosts))


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
