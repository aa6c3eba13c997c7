"""Many identities that dial one peer from one machine: a flood, as a program of its own.

python strangers.py PEER COUNT AT_ONCE ADDRESS…

Each stranger makes a key, connects, and says a hello with a certificate of its own making and no grant. Prints as JSON
how the attempts ended.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import sys
import time

from croft.adapters.iroh_transport import IrohTransport
from croft.errors import ConnectionLost, Unreachable
from croft.identity.certificates import certify
from croft.identity.keys import SecretKey, twin_key
from croft.model.ids import CommunityId, PeerId
from croft.overlay.messages import PROTOCOL, VERSION, Greeting, Hello, Rejected
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

DIAL_S_MAX = 3.0
ANSWER_S_MAX = 3.0


async def knock(peer: PeerId, addresses: list[str]) -> str:
    key = SecretKey(os.urandom(32))
    transport = await IrohTransport.open(key.raw, [PROTOCOL], "0.0.0.0:0")
    try:
        connection = await transport.dial(peer, addresses, PROTOCOL, DIAL_S_MAX)
    except Unreachable:
        await transport.close()
        return "no connection"
    twin = twin_key(os.urandom(32))
    community = CommunityId(SecretKey(os.urandom(32)).public)
    hello = Hello(VERSION, certify(twin, PeerId(key.public), "mallory", time.time()), [(community, [b"x"])], b"i" * 16)
    try:
        async with asyncio.timeout(ANSWER_S_MAX):
            async with MessageStream(await connection.open_stream(), step="flood") as messages:
                messages.post(hello)
                payload = await messages.receive()
        if payload is None:
            return "closed"
        answer: Greeting = decode_union(payload, Greeting, step="flood")
        return "refused" if isinstance(answer, Rejected) else "LET IN"
    except (TimeoutError, ConnectionLost):
        return "closed"
    finally:
        await transport.close()


async def main() -> None:
    peer, count, at_once, *addresses = sys.argv[1:]
    limit = asyncio.Semaphore(int(at_once))
    ends: collections.Counter[str] = collections.Counter()

    async def one() -> None:
        async with limit:
            ends[await knock(PeerId(peer), addresses)] += 1

    await asyncio.gather(*(one() for _ in range(int(count))))
    print(json.dumps(ends))


if __name__ == "__main__":
    os.nice(19)
    asyncio.run(main())
