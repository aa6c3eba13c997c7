"""Binds iroh endpoints, and dials where one endpoint alone would not get through."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from iroh import iroh_ffi as iroh

from croft.adapters.socket_addresses import SocketAddress
from croft.errors import Failed
from croft.model.ids import PeerId

APART_MAX = 8
"""Addresses that are tried each from an endpoint of its own."""


def cause(error: Any) -> str:
    """The innermost cause, which is the only line of the binding's message that says something."""
    lines = [line.strip() for line in str(error.message()).splitlines() if line.strip()]
    return printable(re.sub(r" \([^()]*\.rs:\d+:\d+\)", "", lines[-1])) if lines else "unknown error"


def is_wrong_peer(error: Any) -> bool:
    """Whether a dial failed because whoever answered holds another key."""
    return "invalid peer certificate" in str(error.message())


def printable(text: str) -> str:
    """Fit for a log, whoever wrote it."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


async def bind(secret_key: bytes, protocols: Sequence[bytes], address: SocketAddress) -> Any:
    """An endpoint without discovery, and without relays until some are added. All that it sends by itself is a question
    to the local router (UPnP).

    iroh opens an IPv6 socket besides, on a port of the system's choice.

    Raises:
        Failed: the address is foreign or taken.
    """
    options = iroh.EndpointOptions(
        preset=iroh.preset_minimal(),
        alpns=list(protocols),
        relay_mode=iroh.RelayMode.custom(iroh.RelayMap.empty()),
        bind_addr=str(address),
        secret_key=secret_key,
    )
    try:
        endpoint = await iroh.Endpoint.bind(options)
    except iroh.IrohError as error:
        raise _bind_failed(address, cause(error)) from None
    bound = [SocketAddress.parse(text) for text in endpoint.bound_sockets()]
    if address.port and not any(one is not None and one.port == address.port for one in bound):
        await endpoint.close()
        raise _bind_failed(address, "the system gave another port")
    return endpoint


def _bind_failed(address: SocketAddress, why: str) -> Failed:
    if "in use" in why or "another port" in why:
        return Failed(
            f"UDP port {address.port} is taken by another program",
            remedy="Stop that program, or choose another port to listen on.",
        )
    return Failed(f"cannot listen on {address}: {why}", remedy="Choose an address of this machine.")


async def connect_apart(
    secret_key: bytes,
    source: SocketAddress,
    peer: PeerId,
    candidates: Sequence[SocketAddress],
    protocol: bytes,
) -> tuple[Any, Any]:
    """Dials each candidate from a fresh endpoint with our key; the first right answer wins.

    An endpoint remembers for a minute every address that it was ever given for a peer and sends to all of
    them, so that a wrong peer which answers first hides the right one: only a fresh endpoint gets through.

    Returns:
        The winning endpoint, to be closed after the connection, and its native connection.

    Raises:
        IrohError: none got through.
    """
    endpoints: list[Any] = []

    async def attempt(candidate: SocketAddress) -> tuple[Any, Any]:
        endpoint = await bind(secret_key, [], source)
        endpoints.append(endpoint)
        target = iroh.EndpointAddr(iroh.EndpointId.from_string(peer), None, [str(candidate)])
        return endpoint, await endpoint.connect(target, protocol)

    attempts = [asyncio.create_task(attempt(candidate)) for candidate in candidates[:APART_MAX]]
    winner: tuple[Any, Any] | None = None
    failure: Exception | None = None
    try:
        for finished in asyncio.as_completed(attempts):
            try:
                winner = await finished
                break
            except iroh.IrohError as error:
                failure = error
    finally:
        for task in attempts:
            task.cancel()
        for endpoint in endpoints:
            if winner is None or endpoint is not winner[0]:
                close_soon(endpoint)
    if winner is None:
        assert failure is not None
        raise failure
    return winner


_background: set[asyncio.Task[None]] = set()


def close_soon(endpoint: Any) -> None:
    """Closes an endpoint that nobody needs any more, without waiting for it."""
    task: asyncio.Task[None] = asyncio.ensure_future(endpoint.close())
    _background.add(task)
    task.add_done_callback(_background.discard)


async def all_closed(timeout_s: float) -> None:
    """Waits for what `close_soon` has begun on the running loop."""
    loop = asyncio.get_running_loop()
    closing = [task for task in _background if task.get_loop() is loop]
    if closing:
        await asyncio.wait(closing, timeout=timeout_s)
