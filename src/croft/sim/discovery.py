"""The simulated local network's bulletin board; see `croft.ports.Discovery`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from croft.model.ids import PeerId

ANSWER_S = 0.1


class SimulatedDiscovery:
    """One peer's view of a `board` that all peers of a world share; faults of the network do not touch it."""

    def __init__(self, board: dict[tuple[int, PeerId], Sequence[str]]) -> None:
        self._board = board
        self._own: dict[int, PeerId] = {}

    async def publish(self, nameplate: int, peer: PeerId, addresses: Sequence[str]) -> None:
        self._own[nameplate] = peer
        self._board[nameplate, peer] = tuple(addresses)

    async def withdraw(self, nameplate: int) -> None:
        peer = self._own.pop(nameplate, None)
        if peer is not None:
            self._board.pop((nameplate, peer), None)

    async def find(self, nameplate: int, timeout_s: float) -> Sequence[tuple[PeerId, Sequence[str]]]:
        await asyncio.sleep(min(ANSWER_S, timeout_s))
        return [(peer, addresses) for (number, peer), addresses in self._board.items() if number == nameplate]

    async def close(self) -> None:
        for nameplate in list(self._own):
            await self.withdraw(nameplate)
