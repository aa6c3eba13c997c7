"""Lets others reach services of this machine that its owner exposed: the shell of `exposure`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from croft.errors import Busy, ConnectionLost, CroftError, Refused, Unreachable
from croft.model.ids import CommunityId, PeerId, short
from croft.overlay.exposure import Exposure, Exposures, Grantee, TunnelProtocol
from croft.overlay.flow import Flow
from croft.overlay.tunnel_messages import (
    OPENING_BYTES_MAX,
    SERVICE_CHARS_MAX,
    OpenTunnel,
    TunnelOpened,
    TunnelRefused,
)
from croft.wire.codec import decode
from croft.wire.message_stream import receive_alone, send_alone
from croft.wire.splice import splice

if TYPE_CHECKING:
    import sqlite3

    from croft.overlay.link import Greeted
    from croft.ports import Clock, Database, LocalServices, Stream

log = logging.getLogger(__name__)

STEP = "tunnel"
OPENING_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
TICK_S = 1.0
LINGER_S = 5.0


class TunnelHost:
    """This peer's exposed services. `load` before `serve`."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        local: LocalServices,
        communities_of: Callable[[PeerId], frozenset[CommunityId]],
    ) -> None:
        self._database = database
        self._clock = clock
        self._local = local
        self._communities_of = communities_of
        self._core = Exposures()
        self._serving: dict[int, asyncio.Task[None]] = {}
        self.opened: Callable[[Greeted, str], None] = lambda greeted, service: None
        """Told of each connection to a service."""

    # --- what the owner does -----------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Takes in what the last run left on disk."""

        def read(db: sqlite3.Connection) -> list[Exposure]:
            rows = db.execute("SELECT name, port, protocol, grantees, created_at, expires_at FROM exposure").fetchall()
            return [
                Exposure(
                    name,
                    port,
                    TunnelProtocol(protocol),
                    tuple(msgspec.json.decode(grantees, type=list[Grantee])),
                    created_at,
                    expires_at,
                )
                for name, port, protocol, grantees, created_at, expires_at in rows
            ]

        self._core = Exposures.of(await self._database.run(read))

    async def expose(self, exposure: Exposure) -> None:
        """Exposes a service: on disk before it counts. Raises Usage, Busy."""
        trial = Exposures(dict(self._core.rows))
        trial.expose(exposure)
        row = (
            exposure.name,
            exposure.port,
            exposure.protocol.value,
            msgspec.json.encode(exposure.grantees).decode(),
            exposure.created_at,
            exposure.expires_at,
        )
        await self._database.run(
            lambda db: db.execute("INSERT OR REPLACE INTO exposure VALUES (?, ?, ?, ?, ?, ?)", row).rowcount
        )
        self._end(self._core.expose(exposure))

    async def remove(self, name: str) -> Exposure:
        """Exposes a service no more, and ends its connections at once. Raises NotFound."""
        exposure, connections = self._core.remove(name)
        self._end(connections)
        await self._forget([exposure])
        return exposure

    def exposures(self) -> list[tuple[Exposure, int]]:
        """Every exposed service, with the number of its connections."""
        return [(row, self._core.connections(row.name)) for row in self._core.all()]

    async def serve(self) -> None:
        """Ends what has expired, until cancelled."""
        while True:
            over, connections = self._core.expire(self._clock.now())
            if over:
                self._end(connections)
                await self._forget(over)
                log.info("no longer exposed, their time is over: %s", ", ".join(row.name for row in over))
            await asyncio.sleep(TICK_S)

    # --- what consumers do -------------------------------------------------------------------------------------------

    async def serve_tunnel(self, greeted: Greeted, stream: Stream) -> None:
        """Serves one `tunnel/1` stream to its end."""
        async with asyncio.timeout(OPENING_TIMEOUT_S):
            payload = await receive_alone(stream, step=STEP, frame_bytes_max=OPENING_BYTES_MAX)
        opening = decode(payload, OpenTunnel, step=STEP)
        consumer = replace(greeted, communities=greeted.communities | self._communities_of(greeted.peer))
        number: int | None = None
        try:
            service, now = opening.service[:SERVICE_CHARS_MAX], self._clock.now()
            if opening.only_ask:
                await self._tell(stream, TunnelOpened(self._core.ask(consumer, service, opening.protocol, now).name))
                return
            number, exposure = self._core.connect(consumer, service, opening.protocol, now)
            task = asyncio.current_task()
            assert task is not None, "streams are served by tasks"
            self._serving[number] = task
            self.opened(consumer, exposure.name)
            log.info("tunnel of %s (%s) to service %s", greeted.name, short(greeted.peer), exposure.name)
            await self._join(exposure, stream)
        except CroftError as error:
            if isinstance(error, Refused) and not isinstance(error, Busy):
                log.info("refused %s (%s): %s", greeted.name, short(greeted.peer), error.message)
            await self._tell(stream, TunnelRefused(error.code, error.message, error.remedy))
        except asyncio.CancelledError:
            if number is None or number in self._serving:
                raise
            # Not this peer ends, but this connection alone: its service is exposed no more.
        finally:
            if number is not None:
                self._serving.pop(number, None)
                self._core.disconnected(number)

    async def _join(self, exposure: Exposure, stream: Stream) -> None:
        match exposure.protocol:
            case TunnelProtocol.TCP:
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT_S):
                        service = await self._local.connect(exposure.port)
                except (TimeoutError, Unreachable):
                    raise Unreachable(
                        f"nothing answers there on port {exposure.port}, which is exposed as `{exposure.name}`",
                        remedy="Its owner has to start the service.",
                    ) from None
                try:
                    await send_alone(stream, TunnelOpened(exposure.name))
                    await splice(service, stream)
                finally:
                    service.abort()
            case TunnelProtocol.UDP:
                datagrams = await self._local.datagrams()
                flow = Flow(stream, lambda datagram: datagrams.send(datagram, exposure.port))

                async def listen() -> None:
                    while True:
                        datagram, port = await datagrams.receive()
                        if port == exposure.port:
                            flow.push(datagram)

                listening = asyncio.create_task(listen(), name="tunnel.datagrams")
                try:
                    await send_alone(stream, TunnelOpened(exposure.name))
                    await flow.run()
                finally:
                    listening.cancel()
                    datagrams.close()

    async def _tell(self, stream: Stream, answer: TunnelOpened | TunnelRefused) -> None:
        with contextlib.suppress(ConnectionLost, TimeoutError):
            await send_alone(stream, answer)
            await stream.finish()
            # Dropping the stream at once would drop the answer too: the consumer closes its side once it has read it.
            async with asyncio.timeout(LINGER_S):
                while await stream.read(OPENING_BYTES_MAX):
                    pass

    def _end(self, connections: list[int]) -> None:
        for number in connections:
            if task := self._serving.pop(number, None):
                task.cancel()

    async def _forget(self, exposures: list[Exposure]) -> None:
        names = [(row.name,) for row in exposures]
        await self._database.run(lambda db: db.executemany("DELETE FROM exposure WHERE name = ?", names).rowcount)
