"""The simulated local network's bulletin board; see `croft.ports.Discovery`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from croft.model.ids import PeerId

ANSWER_S = 0.1
HEARD_MAX = 1_024


@dataclass
class SimulatedLan:
    """What everybody on one network sees. Faults of the network do not touch it."""

    codes: dict[tuple[int, PeerId], Sequence[str]] = field(default_factory=dict)
    beacons: dict[str, bytes] = field(default_factory=dict)
    listeners: list[asyncio.Queue[str]] = field(default_factory=list)


class SimulatedDiscovery:
    """One peer's view of the networks it is on: spoken codes are heard everywhere, beacons on `lan` alone."""

    def __init__(self, codes: SimulatedLan, lan: SimulatedLan) -> None:
        self._codes = codes.codes
        self._lan = lan
        self._own: dict[int, PeerId] = {}
        self._shown: list[str] = []
        self._heard: asyncio.Queue[str] | None = None

    async def publish(self, nameplate: int, peer: PeerId, addresses: Sequence[str]) -> None:
        self._own[nameplate] = peer
        self._codes[nameplate, peer] = tuple(addresses)

    async def withdraw(self, nameplate: int) -> None:
        peer = self._own.pop(nameplate, None)
        if peer is not None:
            self._codes.pop((nameplate, peer), None)

    async def find(self, nameplate: int, timeout_s: float) -> Sequence[tuple[PeerId, Sequence[str]]]:
        await asyncio.sleep(min(ANSWER_S, timeout_s))
        return [(peer, addresses) for (number, peer), addresses in self._codes.items() if number == nameplate]

    async def announce(self, beacons: Sequence[tuple[str, bytes]]) -> None:
        for name in self._shown:
            self._lan.beacons.pop(name, None)
        self._shown = [name for name, _ in beacons]
        self._lan.beacons.update(beacons)
        for listener in self._lan.listeners:
            for name in self._shown:
                if not listener.full():
                    listener.put_nowait(name)

    async def hear(self, is_wanted: Callable[[str], bool]) -> tuple[str, bytes]:
        if self._heard is None:
            self._heard = asyncio.Queue(HEARD_MAX)
            self._lan.listeners.append(self._heard)
            for name in self._lan.beacons:
                self._heard.put_nowait(name)
        while True:
            name = await self._heard.get()
            await asyncio.sleep(ANSWER_S)
            sealed = self._lan.beacons.get(name)
            if sealed is not None and is_wanted(name):
                return name, sealed

    async def close(self) -> None:
        for nameplate in list(self._own):
            await self.withdraw(nameplate)
        await self.announce([])
        if self._heard is not None:
            self._lan.listeners.remove(self._heard)
            self._heard = None
