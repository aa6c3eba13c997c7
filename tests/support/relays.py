"""A relay process for tests, as the daemon starts it, on this machine or on a host of a lab."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

from croft.wire.codec import decode, encode
from croft.wire.frames import FrameReader, frame
from croft.wire.relay_orders import Order, Report
from support.peers import SOURCE, Host

START_S_MAX = 15.0


class RelayProcess:
    """A running relay. `own` is the key of the device that would offer it, in hex."""

    def __init__(self, own: str, *arguments: str, host: Host | None = None, address: str = "127.0.0.1") -> None:
        command = [sys.executable, "-m", "croft.node.relay_server", "--host", address, "--own", own, *arguments]
        self.process = subprocess.Popen(
            command if host is None else host.command(*command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )
        self._frames = FrameReader(step="report")
        self._selector = selectors.DefaultSelector()
        assert self.process.stdout is not None
        self._selector.register(self.process.stdout, selectors.EVENT_READ)
        self.last: Report | None = None
        self.url = f"http://{address}:{self.report().port}"

    def admit(self, keys: Iterable[str]) -> None:
        """Lets in just these devices."""
        assert self.process.stdin is not None
        self.process.stdin.write(frame(encode(Order([bytes.fromhex(key) for key in keys]))))
        self.process.stdin.flush()

    def report(self, wait_s: float = START_S_MAX) -> Report:
        """The newest report; waits for the first one."""
        deadline = time.monotonic() + wait_s
        while self._read(0.0 if self.last else max(0.0, deadline - time.monotonic())):
            pass
        assert self.last is not None, "the relay reports"
        return self.last

    def usage(self) -> dict[str, tuple[int, int, int]]:
        """Per device: payload bytes from it, to it, frames dropped."""
        return {key.hex(): (received, sent, dropped) for key, received, sent, dropped in self.report().usage}

    def stop(self) -> None:
        """Ends it as a daemon's death does: by the end of its stdin."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(5)
        finally:
            self.process.kill()
            self.process.stdout.close()
            self._selector.close()

    def _read(self, wait_s: float) -> Sequence[bytes]:
        if not self._selector.select(wait_s):
            return []
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 20)
        frames = self._frames.feed(data)
        for payload in frames:
            self.last = decode(payload, Report, step="report")
        return frames
