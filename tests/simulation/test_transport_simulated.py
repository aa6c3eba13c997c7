"""The simulated transport: the shared suite on virtual time, and the faults that only it can have."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random

import pytest
from transport_suite import PROTOCOL, Run, TransportSuite, World, connect, noise, read_all

from croft.errors import ConnectionLost, Unreachable
from croft.model.ids import PeerId
from croft.ports import RelayAccess, RouteKind, Transport
from croft.sim import virtual_time
from croft.sim.network import SimulatedNetwork, SimulatedTransport, peer_id_of


def secret_key(number: int) -> bytes:
    return number.to_bytes(32, "big")


class OneSwitch:
    """A world where each key has a host of its own."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self.network = network

    async def open(self, key: int, port: int = 0) -> Transport:
        return self.network.open(f"host{key}", secret_key(key), [PROTOCOL], port)

    def stranger(self, key: int) -> PeerId:
        return peer_id_of(secret_key(key))

    async def vanish(self, transport: Transport) -> None:
        assert isinstance(transport, SimulatedTransport)
        self.network.crash(transport.host.name)

    @contextlib.asynccontextmanager
    async def relay(self, *members: Transport) -> AsyncIterator[RelayAccess]:
        self.network.add_relay("http://relay", "relay")
        yield RelayAccess("http://relay")
        self.network.remove_relay("http://relay")


@pytest.fixture(params=["fast", "slow and lossy"])
def run(request: pytest.FixtureRequest) -> Run:
    def start(story: Callable[[World], Awaitable[None]]) -> None:
        async def main(random: Random) -> None:
            if request.param == "fast":
                network = SimulatedNetwork(random, latency_s=(0.000_1, 0.000_3))
            else:
                network = SimulatedNetwork(random, latency_s=(0.005, 0.02), bandwidth=50e6, loss=0.01)
            await story(OneSwitch(network))

        virtual_time.run(main, seed=1)

    return start


class TestSimulatedTransport(TransportSuite):
    """On virtual time."""


def now() -> float:
    return asyncio.get_running_loop().time()


async def two_hosts(network: SimulatedNetwork) -> tuple[SimulatedTransport, SimulatedTransport]:
    return (
        network.open("anna", secret_key(1), [PROTOCOL]),
        network.open("bert", secret_key(2), [PROTOCOL]),
    )


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    async def main(random: Random) -> list[float]:
        network = SimulatedNetwork(random, loss=0.1)
        two = await connect(*await two_hosts(network))
        near, far = await two.streams()
        times = []
        for _ in range(50):
            await near.write(b"tick")
            await far.read(10)
            times.append(now())
        return times

    assert virtual_time.run(main, seed=7) == virtual_time.run(main, seed=7)
    assert virtual_time.run(main, seed=7) != virtual_time.run(main, seed=8)


def test_a_packet_takes_the_latency_of_its_link() -> None:
    async def main(random: Random) -> None:
        network = SimulatedNetwork(random)
        network.set_latency("anna", "bert", 0.1, 0.1)
        two = await connect(*await two_hosts(network))
        near, far = await two.streams()
        started = now()
        await near.write(b"x")
        await far.read(1)
        assert now() - started == pytest.approx(0.1)
        assert two.out.route().round_trip_s == pytest.approx(0.2)

    virtual_time.run(main)


def test_bandwidth_bounds_what_a_host_can_send() -> None:
    async def main(random: Random) -> None:
        network = SimulatedNetwork(random, latency_s=(0.001, 0.001), bandwidth=1e6)
        two = await connect(*await two_hosts(network))
        near, far = await two.streams()
        started = now()
        reading = asyncio.create_task(read_all(far))
        await near.write(noise(5_000_000))
        await near.finish()
        await reading
        assert 5.0 < now() - started < 5.5

    virtual_time.run(main)


def test_what_was_sent_into_a_short_partition_arrives_after_it() -> None:
    async def main(random: Random) -> None:
        network = SimulatedNetwork(random)
        two = await connect(*await two_hosts(network))
        near, far = await two.streams()
        network.partition(["anna"], ["bert"])
        await near.write(b"patience")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(far.read(10), 20)
        network.heal()
        assert await asyncio.wait_for(far.read(10), 1) == b"patience"
        await asyncio.sleep(60)
        await near.write(b"!")
        assert await far.read(10) == b"!"

    virtual_time.run(main)


@pytest.mark.parametrize("is_one_way", [False, True])
def test_a_long_partition_ends_connections_on_both_sides(is_one_way: bool) -> None:
    async def main(random: Random) -> None:
        network = SimulatedNetwork(random)
        two = await connect(*await two_hosts(network))
        near, far = await two.streams()
        if is_one_way:
            network.cut(["anna"], ["bert"])
        else:
            network.partition(["anna"], ["bert"])
        for stream in (near, far):
            with pytest.raises(ConnectionLost, match="timed out"):
                await stream.read(1)
        assert 29 < now() < 31
        with pytest.raises(Unreachable):
            await two.dialler.dial(two.listener.peer_id, two.listener.addresses(), PROTOCOL, 5)
        network.heal()
        await (await connect(two.dialler, two.listener)).streams()

    virtual_time.run(main)


def test_a_dial_succeeds_when_the_partition_heals_in_time() -> None:
    async def main(random: Random) -> None:
        network = SimulatedNetwork(random)
        dialler, listener = await two_hosts(network)
        network.partition(["anna"], ["bert"])
        asyncio.get_running_loop().call_later(2, network.heal)
        connection = await dialler.dial(listener.peer_id, listener.addresses(), PROTOCOL, 5)
        assert connection.remote == listener.peer_id
        assert 2 < now() < 3

    virtual_time.run(main)


def test_a_silent_crash_is_noticed_only_by_the_idle_timeout() -> None:
    async def main(random: Random) -> None:
        network = SimulatedNetwork(random)
        two = await connect(*await two_hosts(network))
        crashed_at = now()
        network.crash("bert")
        assert await two.listener.accept() is None
        assert "crashed" in await two.into.wait_closed()
        assert await two.out.wait_closed() == "timed out"
        assert now() - crashed_at == pytest.approx(30)

    virtual_time.run(main)


def test_a_loud_crash_is_noticed_at_once() -> None:
    async def main(random: Random) -> None:
        network = SimulatedNetwork(random)
        two = await connect(*await two_hosts(network))
        crashed_at = now()
        network.crash("bert", is_loud=True)
        await two.out.wait_closed()
        assert now() - crashed_at < 0.1

    virtual_time.run(main)


def test_three_hundred_hosts_meet_within_seconds_of_real_time() -> None:
    async def main(random: Random) -> int:
        network = SimulatedNetwork(random)
        transports = [network.open(f"host{number}", secret_key(number + 1), [PROTOCOL]) for number in range(300)]

        async def welcome(transport: SimulatedTransport) -> int:
            seen = 0
            while (connection := await transport.accept()) is not None:
                stream = await connection.accept_stream()
                await stream.write(await read_all(stream))
                seen += 1
            return seen

        async def visit(number: int) -> None:
            transport = transports[number]
            for step in (1, 2, 3, 5, 8):  # no pair twice: a second dial replaces the connection of the first
                other = transports[(number + step) % len(transports)]
                connection = await transport.dial(other.peer_id, other.addresses(), PROTOCOL, 5)
                stream = await connection.open_stream()
                await stream.write(b"hello")
                await stream.finish()
                assert await stream.read(10) == b"hello"

        welcoming = [asyncio.create_task(welcome(transport)) for transport in transports]
        await asyncio.gather(*(visit(number) for number in range(len(transports))))
        for transport in transports:
            await transport.close()
        return sum(await asyncio.gather(*welcoming))

    assert virtual_time.run(main) == 1_500


def test_a_connection_goes_on_by_a_relay_while_its_hosts_are_cut_off_from_each_other() -> None:
    async def main(random: Random) -> None:
        network = SimulatedNetwork(random)
        dialler, listener = await two_hosts(network)
        network.add_relay("http://relay", "cleo")
        relays = [RelayAccess("http://relay")]
        await listener.use_relays(relays)
        connection = await dialler.dial(listener.peer_id, listener.addresses(), PROTOCOL, 5, relays)
        stream = await connection.open_stream()
        await stream.write(b"one")
        far = await (await listener.accept() or connection).accept_stream()
        assert connection.route().kind is RouteKind.DIRECT
        network.cut(["anna"], ["bert"])
        network.cut(["bert"], ["anna"])
        await stream.write(b"two")
        await asyncio.sleep(1)
        assert await far.read(10) == b"onetwo"
        assert connection.route().kind is RouteKind.RELAYED
        await asyncio.sleep(60)
        assert not connection.is_closed
        network.remove_relay("http://relay")
        assert await connection.wait_closed() == "timed out"

    virtual_time.run(main)
