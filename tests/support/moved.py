"""What peers have sent and received, once all of it is counted."""

from __future__ import annotations

import time
from typing import Final

from support.peers import RealPeer, until

COUNTED_EVERY_S: Final = 1.0
QUIET_BYTES: Final = 50_000


def moved_bytes(peer: RealPeer) -> int:
    """What this peer has sent to others and got from them."""
    ways = peer.json("net")["ways"]
    return sum(value for way in ways for name, value in way.items() if name.endswith(("sent_bytes", "received_bytes")))


def settled_bytes(peer: RealPeer) -> int:
    """The same once all that was moved is counted, which is done every other second."""
    last = moved_bytes(peer)

    def is_settled() -> bool:
        nonlocal last
        time.sleep(2 * COUNTED_EVERY_S)
        before, last = last, moved_bytes(peer)
        return last - before < QUIET_BYTES

    until(is_settled, "what was moved is counted")
    return last
