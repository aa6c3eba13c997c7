"""Makes every process of one peer lie, if this folder comes first in its PYTHONPATH: its daemon, and its relay.

The relay delays and so reorders datagrams, loses some, sends some twice, changes bits, says that they come from
somebody else, and that peers have left. The daemon tells others that it sees them at LIE.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

DELAY_S_MAX = 0.03
LOST, TWICE, CHANGED, FORGED, GONE = 0.01, 0.05, 0.02, 0.02, 0.005
SEED = 4


def twist_relay() -> None:
    from croft.overlay import relay

    chance = Random(SEED)
    honest = relay.Relay.handle

    def twisted(effect: Any) -> list[Any]:
        is_data = isinstance(effect, relay.Transmit) and effect.frame[0] in (
            relay.DATAGRAM_TO_CLIENT,
            relay.BATCH_TO_CLIENT,
        )
        if not is_data:
            return [effect]
        if chance.random() < LOST:
            return []
        frame = bytearray(effect.frame)
        if chance.random() < CHANGED:
            frame[chance.randrange(1 + relay.KEY_BYTES, len(frame))] ^= 1 << chance.randrange(8)
        if chance.random() < FORGED:
            frame[1 : 1 + relay.KEY_BYTES] = chance.randbytes(relay.KEY_BYTES)
        # The loop's clock is the monotonic one.
        sent = [
            replace(effect, frame=bytes(frame), at=time.monotonic() + chance.uniform(0, DELAY_S_MAX))
            for _ in range(2 if chance.random() < TWICE else 1)
        ]
        if chance.random() < GONE:
            sent.append(replace(effect, frame=bytes([relay.ENDPOINT_GONE]) + effect.frame[1 : 1 + relay.KEY_BYTES]))
        return sent

    def handle(self: relay.Relay, event: Any) -> Sequence[Any]:
        return [said for effect in honest(self, event) for said in twisted(effect)]

    relay.Relay.handle = handle  # type: ignore[method-assign]


def twist_observer(lie: str) -> None:
    from croft.overlay import paths

    honest = paths.encode
    paths.encode = lambda message: honest(paths.SeenAt(lie) if isinstance(message, paths.SeenAt) else message)


if "croft.node.relay_server" in sys.orig_argv:
    twist_relay()
elif "croft.node.daemon" in sys.orig_argv:
    twist_observer(os.environ["LIE"])
