"""Decides when a relay may pass on a frame: so much a second in all, and so much for each client.

A leaky bucket as a meter of time (the generic cell rate algorithm, ITU-T I.371): each rate keeps the moment at which
all that it has let pass will have gone out. A frame waits until then; one that would wait too long is dropped, which is
what tells the congestion control of its sender to slow down. To read more slowly instead would drop nothing, and let
the sender's queue grow to seconds (measured: 6.7 s at 2 Mbit). Sans-IO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BURST_BYTES: Final = 64 << 10
BURST_S: Final = 0.05
"""What may pass at once after a pause: one batch of datagrams, or what the rate gives in this time if that is less."""
WAIT_S_MAX: Final = 0.3
"""A frame that would wait longer is dropped."""
SEGMENT_BYTES: Final = 1_400
SEGMENT_OVERHEAD_BYTES: Final = 140
FRAME_OVERHEAD_BYTES: Final = 40
"""What TCP/IP, Ethernet, acknowledgements, WebSocket and the relay's header add: a rate means bytes on the wire."""
CLIENTS_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second, both directions of a conversation together; None: as fast as it goes."""

    total: float | None = None
    per_client: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """When a frame may go out; if it is dropped, when its sender may send again."""

    at: float
    is_dropped: bool = False


def wire_bytes(payload_bytes: int) -> float:
    """About what a relayed payload costs on the wire."""
    return payload_bytes * (1 + SEGMENT_OVERHEAD_BYTES / SEGMENT_BYTES) + FRAME_OVERHEAD_BYTES


class _Bucket:
    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._burst_s = min(BURST_BYTES / rate, BURST_S)
        self._free_at = now - self._burst_s

    def start(self, now: float) -> float:
        """When the next frame could go out."""
        return max(self._free_at, now - self._burst_s)

    def take(self, size: float, now: float) -> None:
        self._free_at = self.start(now) + size / self.rate


class Schedule:
    """The relay's rates at work."""

    def __init__(self, rates: Rates, now: float) -> None:
        self._rates = rates
        self._total = _Bucket(rates.total, now) if rates.total else None
        self._clients: dict[bytes, _Bucket] = {}

    def take(self, client: bytes, payload_bytes: int, now: float) -> Verdict:
        """Lets a frame of `client` pass, at a time, or drops it."""
        buckets = [bucket for bucket in (self._total, self._of(client, now)) if bucket is not None]
        if not buckets:
            return Verdict(0.0)
        at = max(bucket.start(now) for bucket in buckets)
        if at - now > WAIT_S_MAX:
            return Verdict(at - WAIT_S_MAX / 2, is_dropped=True)
        size = wire_bytes(payload_bytes)
        for bucket in buckets:
            bucket.take(size, now)
        return Verdict(at)

    def _of(self, client: bytes, now: float) -> _Bucket | None:
        if not self._rates.per_client:
            return None
        bucket = self._clients.get(client)
        if bucket is None:
            if len(self._clients) >= CLIENTS_MAX:
                self._clients.pop(next(iter(self._clients)))
            bucket = self._clients[client] = _Bucket(self._rates.per_client, now)
        return bucket
