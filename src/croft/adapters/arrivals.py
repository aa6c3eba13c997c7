"""Decides which connection attempts are worth a handshake, before any state is kept for them.

A handshake costs this peer some milliseconds of processor time; an attempt costs a stranger one packet. So each address
has a budget of handshakes that refills slowly, and while many are under way an address must first show that it receives
what is sent to it (QUIC Retry, RFC 9000 section 8.1.2). What is over the budget is dropped without an answer: an honest
dialler repeats its packet by itself, a flood learns nothing.

Sans-IO: the time is an argument, and nothing here touches a socket.
"""

from __future__ import annotations

import enum
import ipaddress
from collections import OrderedDict

ADDRESS_BURST = 48
"""Handshakes that one address may begin at once: a home of peers behind one NAT that all wake up together."""
ADDRESS_PER_S = 4.0
ALL_BURST = 512
ALL_PER_S = 200.0
"""Over all addresses: what a flood from many of them may cost."""
UNPROVEN_MAX = 32
"""While more handshakes than this are under way, an address must prove itself first."""
ADDRESSES_MAX = 4096
IPV6_PREFIX = 64
"""What one subscriber of an IPv6 network usually owns counts as one address."""


class Verdict(enum.Enum):
    """What to do with an attempt."""

    WELCOME = "welcome"
    PROVE = "prove"
    DROP = "drop"


class _Bucket:
    __slots__ = ("at", "tokens")

    def __init__(self, tokens: float, at: float) -> None:
        self.tokens = tokens
        self.at = at

    def take(self, burst: float, per_s: float, now: float) -> bool:
        self.tokens = min(burst, self.tokens + max(0.0, now - self.at) * per_s)
        self.at = max(self.at, now)
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Arrivals:
    """The budgets of all addresses that knocked lately. Memory is bounded by ADDRESSES_MAX."""

    def __init__(self, now: float) -> None:
        self._by_source: OrderedDict[str, _Bucket] = OrderedDict()
        self._all = _Bucket(ALL_BURST, now)
        self.dropped = 0

    @property
    def sources(self) -> int:
        """Addresses whose budget is remembered."""
        return len(self._by_source)

    def judge(self, source: str, *, is_proven: bool, under_way: int, now: float) -> Verdict:
        """What to do with an attempt from `source` (see `source_of`) while `under_way` handshakes are not done.

        A source of "" counts only towards what all may do together: programs of this machine.
        """
        if not is_proven and under_way >= UNPROVEN_MAX:
            # Costs nothing yet: the budget is of those that come back with the proof.
            return Verdict.PROVE
        if (source and not self._bucket(source, now).take(ADDRESS_BURST, ADDRESS_PER_S, now)) or not self._all.take(
            ALL_BURST, ALL_PER_S, now
        ):
            self.dropped += 1
            return Verdict.DROP
        return Verdict.WELCOME

    def _bucket(self, source: str, now: float) -> _Bucket:
        bucket = self._by_source.get(source)
        if bucket is None:
            bucket = self._by_source[source] = _Bucket(ADDRESS_BURST, now)
            if len(self._by_source) > ADDRESSES_MAX:
                self._by_source.popitem(last=False)
        self._by_source.move_to_end(source)
        return bucket


def source_of(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Whom an address counts towards: itself, or its IPv6 network."""
    if host.version == 4:
        return str(host)
    if host.ipv4_mapped is not None:
        return str(host.ipv4_mapped)
    return str(ipaddress.IPv6Network((host, IPV6_PREFIX), strict=False))
