"""Relays of simulated hosts: they cost nothing, and the network routes by them; see `croft.ports.RelayHost`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from croft.errors import Unreachable
from croft.model.ids import PeerId
from croft.ports import RelayRates, RelayUsage
from croft.sim.network import SimulatedNetwork

PORT = 3_340


class SimulatedRelay:
    """A relay that runs; see `croft.ports.RunningRelay`. `crash` ends it as SIGKILL does."""

    def __init__(self, network: SimulatedNetwork, url: str) -> None:
        self._network = network
        self._url = url
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.admitted: frozenset[PeerId] = frozenset()
        self.port = PORT
        self.connected = 0

    def admit(self, peers: Collection[PeerId]) -> None:
        self.admitted = frozenset(peers)

    def usage(self) -> Mapping[PeerId, RelayUsage]:
        return {}

    async def ended(self) -> str:
        return await asyncio.shield(self._end)

    def crash(self, why: str) -> None:
        """Ends it at once."""
        self._network.remove_relay(self._url)
        if not self._end.done():
            self._end.set_result(why)

    async def stop(self) -> None:
        self.crash("stopped")


class SimulatedRelayHost:
    """The relays of one host."""

    def __init__(self, network: SimulatedNetwork, host: str) -> None:
        self._network = network
        self._host = host
        self.running: SimulatedRelay | None = None

    async def start(self, own: PeerId, port: int, rates: RelayRates) -> SimulatedRelay:
        url = f"http://{self._network.host(self._host).address}:{PORT}"
        self._network.add_relay(url, self._host)
        self.running = SimulatedRelay(self._network, url)
        return self.running

    async def ask(self, url: str, timeout_s: float) -> float:
        host = self._network.host(self._host)
        if not self._network.reaches_relay(host, url):
            await asyncio.sleep(timeout_s)
            raise Unreachable(f"the relay {url} does not answer")
        delay_s = 2 * self._network.delay_s(host, self._network.relay_at(url), 0)
        await asyncio.sleep(delay_s)
        return delay_s
