"""The local API's side of calls: a program's connection to the work socket carries as many as it likes."""

from __future__ import annotations

import contextlib
from typing import Protocol

from croft.errors import ConnectionLost, CroftError, PeerMisbehaved
from croft.twins.call_client import Deliver, OpenCall
from croft.twins.call_messages import AskCall, CallFailed, StopCall, ToCaller, ToProvider, is_last
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

UNREAD_BYTES_MAX = 512 << 20
"""Results that wait for a program to read them; one that reads none is dropped."""


class Calls(Protocol):
    """Makes calls."""

    def call(self, asked: AskCall, deliver: Deliver) -> OpenCall:
        """Makes one. Raises NotFound, Usage."""
        ...


async def serve_calls(calls: Calls, messages: MessageStream) -> None:
    """Makes the calls of one program until it hangs up, which stops those that are open."""
    is_open: dict[int, OpenCall] = {}

    def deliver(message: ToCaller) -> None:
        if is_last(message):
            is_open.pop(message.call, None)
        if messages.unsent_bytes < UNREAD_BYTES_MAX:
            with contextlib.suppress(ConnectionLost):
                messages.post(message)

    try:
        while (payload := await messages.receive()) is not None:
            message: ToProvider = decode_union(payload, ToProvider, step="local calls")
            if isinstance(message, AskCall):
                if message.call in is_open:
                    raise PeerMisbehaved("two calls of one number", step="local calls")
                try:
                    call = calls.call(message, deliver)
                except CroftError as error:
                    deliver(CallFailed(message.call, error.code, error.message, error.remedy))
                    continue
                if not call.is_over:
                    is_open[message.call] = call
            elif isinstance(message, StopCall):
                if stopped := is_open.pop(message.call, None):
                    stopped.stop()
            elif message.call in is_open:
                is_open[message.call].post(message)
    finally:
        for call in list(is_open.values()):
            call.stop()
