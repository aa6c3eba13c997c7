"""Tunnels between whole simulated peers: who gets through, what becomes of bytes, and what faults do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from croft.errors import ConnectionLost, CroftError, Refused, Unreachable
from croft.overlay.exposure import Exposure, Grantee, GranteeKind, TunnelProtocol
from croft.overlay.flow import FLOW_IDLE_S_MAX
from croft.overlay.tunnel_messages import TUNNEL_PURPOSE, TunnelOpened
from croft.ports import Stream
from croft.sim.world import World
from croft.wire.codec import encode
from croft.wire.frames import frame
from support.worlds import Play

TCP, UDP = TunnelProtocol.TCP, TunnelProtocol.UDP
PORT = 8000


async def expose(world: World, name: str, to: str, protocol: TunnelProtocol = TCP, lifetime_s: float = 0.0) -> None:
    now = world[name].clock.now()
    grantee = Grantee(GranteeKind.PEER, world[to].peer)
    ends_at = now + lifetime_s if lifetime_s else None
    await world[name].parts.tunnel_host.expose(Exposure("echo", PORT, protocol, (grantee,), now, ends_at))


@contextlib.asynccontextmanager
async def echoing(world: World, name: str) -> AsyncIterator[None]:
    """A service that sends back what it gets, once it has got all of it."""
    listener = await world[name].local.listen(PORT)

    async def echo(stream: Stream) -> None:
        with contextlib.suppress(ConnectionLost):
            parts = []
            while part := await stream.read(1 << 16):
                parts.append(part)
            await stream.write(b"".join(parts))
            await stream.finish()

    async def serve() -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(echo(await listener.accept()))

    serving = asyncio.create_task(serve())
    try:
        yield
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()


async def said(stream: Stream) -> bytes:
    parts = []
    while part := await stream.read(1 << 16):
        parts.append(part)
    return b"".join(parts)


def test_a_service_is_reached_through_a_local_port_by_those_granted_alone(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        await expose(world, "peer2", to="peer1")
        problems: list[CroftError] = []
        async with echoing(world, "peer2"):
            tunnels, host = world["peer1"].parts.tunnels, world["peer2"].peer
            async with tunnels.forwarding(host, "echo", TCP, 0, problems.append) as port:
                near = await world["peer1"].local.connect(port)
                sent = bytes(range(256)) * 8_000
                await near.write(sent)
                await near.finish()
                assert await said(near) == sent
            with pytest.raises(Unreachable):
                await world["peer1"].local.connect(port)
            for other in ("echo", "8000", "22"):
                with pytest.raises(Refused, match=r"peer2.*exposes no"):
                    await world["peer3"].parts.tunnels.open(host, other)
        assert problems == []

    play(story)


def test_removing_a_service_cuts_its_connections_and_a_restart_keeps_the_others(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        await expose(world, "peer2", to="peer1")
        async with echoing(world, "peer2"):
            host = world["peer2"].peer
            held = await world["peer1"].parts.tunnels.open(host, "echo")
            await held.write(b"half")
            await asyncio.sleep(1)
            [(row, count)] = world["peer2"].parts.tunnel_host.exposures()
            assert (row.name, count) == ("echo", 1)
            await world.restart("peer2")
            with pytest.raises(ConnectionLost):
                await said(held)
            await world.until(world.missing_link, within_s=60)
            held = await world["peer1"].parts.tunnels.open(host, "echo")
            await world["peer2"].parts.tunnel_host.remove("echo")
            with pytest.raises(ConnectionLost):
                await said(held)
            with pytest.raises(Refused):
                await world["peer1"].parts.tunnels.open(host, "echo")
            assert world["peer2"].parts.tunnel_host.exposures() == []

    play(story)


def test_an_exposure_ends_in_time(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        await expose(world, "peer2", to="peer1", lifetime_s=30.0)
        async with echoing(world, "peer2"):
            held = await world["peer1"].parts.tunnels.open(world["peer2"].peer, "echo")
            await asyncio.sleep(25)
            await held.write(b"in time")
            with pytest.raises(ConnectionLost):
                async with asyncio.timeout(10):
                    await said(held)
            with pytest.raises(Refused):
                await world["peer1"].parts.tunnels.open(world["peer2"].peer, "echo")

    play(story)


def test_a_service_that_is_not_running_is_named(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        await expose(world, "peer2", to="peer1")
        with pytest.raises(Unreachable, match="peer2: nothing answers there on port 8000"):
            await world["peer1"].parts.tunnels.open(world["peer2"].peer, "echo")

    play(story)


def test_datagrams_keep_their_senders_apart_and_an_idle_flow_ends(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        await expose(world, "peer2", to="peer1", protocol=UDP)
        service = await world["peer2"].local.datagrams(PORT)
        here = world["peer1"].local

        async def echo() -> None:
            while True:
                datagram, port = await service.receive()
                service.send(datagram.upper(), port)

        echoing = asyncio.create_task(echo())
        tunnels = world["peer1"].parts.tunnels
        async with tunnels.forwarding(world["peer2"].peer, "echo", UDP, 0, lambda _: None) as port:
            one, two = await here.datagrams(), await here.datagrams()
            for client, word in ((one, b"one"), (two, b"two")):
                client.send(word, port)
                assert await client.receive() == (word.upper(), port)
            [(_, count)] = world["peer2"].parts.tunnel_host.exposures()
            assert count == 2
            await asyncio.sleep(2.5 * FLOW_IDLE_S_MAX)
            [(_, count)] = world["peer2"].parts.tunnel_host.exposures()
            assert count == 0
            assert len(world["peer2"].local.sockets) == 1, "only the service is left"
            one.send(b"again", port)
            assert await one.receive() == (b"AGAIN", port)
            one.close()
            two.close()
        echoing.cancel()

    play(story)


def test_a_lost_link_cuts_the_tunnel_and_the_local_program_sees_it(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        await expose(world, "peer2", to="peer1")
        async with echoing(world, "peer2"):
            tunnels = world["peer1"].parts.tunnels
            async with tunnels.forwarding(world["peer2"].peer, "echo", TCP, 0, lambda _: None) as port:
                near = await world["peer1"].local.connect(port)
                await near.write(b"half")
                await asyncio.sleep(1)
                await world.crash("peer2")
                with pytest.raises(ConnectionLost):
                    await said(near)

    play(story)


HOSTILE = {
    "noise": b"\x00\x00\x00\x05noise",
    "another message": frame(encode(TunnelOpened("wiki"))),
    "a frame too large": (1 << 30).to_bytes(4, "big"),
    "an empty frame": bytes(4),
    "half a frame": b"\x00\x00\x00\x40half",
}


def test_openings_that_are_none_end_their_stream_alone_and_are_bounded_in_time(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        await expose(world, "peer2", to="peer1")
        async with echoing(world, "peer2"):
            host, overlay = world["peer2"], world["peer1"].parts.overlay
            for what, sent in HOSTILE.items():
                stream = await overlay.open_stream(host.peer, TUNNEL_PURPOSE)
                await stream.write(sent)
                with pytest.raises(ConnectionLost):
                    async with asyncio.timeout(30):
                        assert await stream.read(100) == b"", what
                        await asyncio.sleep(1)
                        await stream.write(b"still there?")
                        await asyncio.sleep(1)
                        await stream.read(100)
                        raise ConnectionLost("ended")
            honest = await world["peer1"].parts.tunnels.open(host.peer, "echo")
            await honest.write(b"all is well")
            await honest.finish()
            assert await said(honest) == b"all is well"

    play(story)


def test_a_flow_of_what_are_no_datagrams_ends_alone(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        await expose(world, "peer2", to="peer1", protocol=UDP)
        stream = await world["peer1"].parts.tunnels.open(world["peer2"].peer, "echo", UDP)
        await stream.write((1 << 20).to_bytes(4, "big") + b"more than a datagram")
        with pytest.raises(ConnectionLost):
            await stream.read(100)
            raise ConnectionLost("ended")
        await asyncio.sleep(1)
        [(_, count)] = world["peer2"].parts.tunnel_host.exposures()
        assert count == 0
        assert world.missing_link() == ""

    play(story)
