"""Capabilities of simulated machines: one offers `name`, and answers with its own name and what it was given."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from croft.ports import Stream
from croft.sim.world import World
from croft.twins.call_messages import AskCall, CallRaised, NamedArgument, ToProvider, ValuePart, WorkerReady
from croft.twins.capability import Terms
from croft.twins.capability_book import Source
from croft.twins.consent import Verdict
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

ITEM = "item"
SIGNATURE = json.dumps({"parameters": {"type": "object", "properties": {ITEM: {"type": "string"}}}}).encode()


@dataclass
class Maker:
    """Adds its mark to each item, after a while; raises where the item is `bad`."""

    mark: str
    takes_s: float = 0.0
    bad: bytes = b"?"
    ran: Counter[bytes] = field(default_factory=Counter)

    async def run(self, arguments: Sequence[str], stream: Stream) -> None:
        async with MessageStream(stream, step="test") as messages:
            messages.post(WorkerReady())
            call, fetched = 0, b""
            while (payload := await messages.receive()) is not None:
                message: ToProvider = decode_union(payload, ToProvider, step="test")
                match message:
                    case AskCall():
                        call, fetched = message.call, b""
                        if not message.refs:
                            await self._answer(messages, call, message.arguments)
                    case NamedArgument(_, _, data, is_whole):
                        fetched += data
                        if is_whole:
                            await self._answer(messages, call, fetched)

    async def _answer(self, messages: MessageStream, call: int, item: bytes) -> None:
        self.ran[item] += 1
        await asyncio.sleep(self.takes_s)
        if item.startswith(self.bad):
            messages.post(CallRaised(call, "ValueError", "not this one", "Traceback"))
        else:
            messages.post(ValuePart(call, item + self.mark.encode()))


async def offer_maker(
    world: World, machine: str, name: str, *, mark: str = "", takes_s: float = 0.0, is_idempotent: bool = False
) -> Maker:
    """Has a machine offer a capability, until it is offered anew after a restart."""
    maker = Maker(mark or name, takes_s)
    world[machine].programs.behaviour = maker.run
    source = Source(file="/able.py", function="name", python="/python")
    terms = Terms(name, SIGNATURE, is_idempotent=is_idempotent)
    await world[machine].parts.calling.book.offer(source, terms, ["members"], Verdict.AUTO, 1)
    return maker
