"""Runs a relay as a process of its own, and asks relays whether they are there: `croft.ports.RelayHost`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import urlsplit

from croft.errors import Failed, PeerMisbehaved, Unreachable
from croft.model.ids import PeerId
from croft.ports import RelayRates, RelayUsage
from croft.wire.codec import decode, encode
from croft.wire.frames import FrameReader, frame
from croft.wire.relay_orders import REPORT_BYTES_MAX, Order, Report

PROGRAM: Final = "croft.node.relay_server"
START_S_MAX: Final = 15.0
STOP_S_MAX: Final = 3.0
COMPLAINT_BYTES_MAX: Final = 2_000
ANSWER_BYTES_MAX: Final = 4_096


class RelayProcess:
    """A relay that runs; see `croft.ports.RunningRelay`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._report = Report(0, 0, [])
        self._reported = asyncio.Event()
        self._reading = asyncio.create_task(self._read(), name="relay.read")
        self._complaints = asyncio.create_task(self._listen_to_complaints(), name="relay.complaints")

    @property
    def port(self) -> int:
        return self._report.port

    @property
    def connected(self) -> int:
        return self._report.connected

    def admit(self, peers: Collection[PeerId]) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        if not stdin.is_closing():
            stdin.write(frame(encode(Order([bytes.fromhex(peer) for peer in peers]))))

    def usage(self) -> Mapping[PeerId, RelayUsage]:
        return {PeerId(key.hex()): RelayUsage(*counts) for key, *counts in self._report.usage}

    async def started(self) -> None:
        """Waits until it listens. Raises Failed with what it says if it does not."""
        reported = asyncio.create_task(self._reported.wait(), name="relay.reported")
        try:
            await asyncio.wait({reported, self._reading}, timeout=START_S_MAX, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reported.cancel()
        if not self._reported.is_set():
            await self.stop()
            raise Failed(f"the relay does not start: {await self._complaints or 'it says nothing'}")

    async def ended(self) -> str:
        await asyncio.wait({self._reading})
        code = await self._process.wait()
        said = await self._complaints
        return said or f"it ended with code {code}"

    async def stop(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.close()
        try:
            async with asyncio.timeout(STOP_S_MAX):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await asyncio.wait({self._reading, self._complaints})

    async def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        reports = FrameReader(REPORT_BYTES_MAX, step="relay report")
        while data := await stdout.read(64 << 10):
            for payload in reports.feed(data):
                with contextlib.suppress(PeerMisbehaved):
                    self._report = decode(payload, Report, step="relay report")
                    self._reported.set()

    async def _listen_to_complaints(self) -> str:
        stderr = self._process.stderr
        assert stderr is not None
        kept = b""
        while data := await stderr.read(COMPLAINT_BYTES_MAX):
            kept = (kept + data)[-COMPLAINT_BYTES_MAX:]
        lines = kept.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


class RelayProcesses:
    """Relays on this machine; see `croft.ports.RelayHost`."""

    def __init__(self, bind: str) -> None:
        self._bind = bind

    async def start(self, own: PeerId, port: int, rates: RelayRates) -> RelayProcess:
        command = [sys.executable, "-m", PROGRAM, "--host", self._bind, "--port", str(port), "--own", own]
        command += ["--total", str(rates.total or 0), "--per-client", str(rates.per_client or 0)]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )
        except OSError as error:
            raise Failed(f"the relay does not start: {error.strerror}") from None
        relay = RelayProcess(process)
        await relay.started()
        return relay

    async def ask(self, url: str, timeout_s: float) -> float:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise Unreachable(f"{url[:80]!r} is no relay's URL")
        loop = asyncio.get_running_loop()
        began = loop.time()
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=ANSWER_BYTES_MAX)
                connected_s = loop.time() - began
                writer.write(f"GET /ping HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
                status = await reader.readline()
        except (TimeoutError, OSError, ValueError):
            raise Unreachable(f"the relay {url} does not answer") from None
        finally:
            if writer is not None:
                writer.transport.abort()
        if b" 200 " not in status:
            raise Unreachable(f"there is no relay at {url}")
        # The handshake of TCP alone is answered by the kernel: the nearest to a round trip that can be had.
        return connected_s
