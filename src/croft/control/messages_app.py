"""The local API on messages, on calls that are left for somebody, and on what twins say of themselves."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.routing import Route

from croft.control import schema
from croft.control.answers import answer, body


class Messages(Protocol):
    """What the local API asks about messages."""

    async def send(self, wanted: schema.MessageWanted) -> list[schema.Message]: ...

    async def messages(self, wanted: schema.MessagesWanted) -> list[schema.Message]: ...

    async def rooms(self) -> list[schema.Room]: ...

    async def leave_call(self, wanted: schema.LeftCallWanted) -> schema.LeftCall: ...

    async def left_calls(self) -> list[schema.LeftCall]: ...

    async def left_call(self, start: str, wait_s: float) -> schema.LeftCall: ...

    async def left_value(self, start: str) -> schema.LeftValue: ...

    def twins(self) -> list[schema.Twin]: ...

    def twin(self, who: str) -> schema.Twin: ...

    async def say(self, wanted: schema.TwinWanted) -> schema.Twin: ...


def message_routes(messages: Messages) -> list[Route]:
    """One route per question."""

    async def send(request: Request) -> object:
        return await messages.send(await body(request, schema.MessageWanted))

    async def find(request: Request) -> object:
        return await messages.messages(await body(request, schema.MessagesWanted))

    async def rooms(_: Request) -> object:
        return await messages.rooms()

    async def leave_call(request: Request) -> object:
        return await messages.leave_call(await body(request, schema.LeftCallWanted))

    async def left_calls(_: Request) -> object:
        return await messages.left_calls()

    async def left_call(request: Request) -> object:
        try:
            wait_s = float(request.query_params.get("wait_s", "0"))
        except ValueError:
            wait_s = 0.0
        return await messages.left_call(request.path_params["call"], wait_s)

    async def left_value(request: Request) -> object:
        return await messages.left_value(request.path_params["call"])

    async def twins(_: Request) -> object:
        return messages.twins()

    async def twin(request: Request) -> object:
        return messages.twin(request.path_params["who"])

    async def say(request: Request) -> object:
        return await messages.say(await body(request, schema.TwinWanted))

    return [
        Route("/v1/messages", answer(send), methods=["POST"]),
        Route("/v1/messages/found", answer(find), methods=["POST"]),
        Route("/v1/rooms", answer(rooms), methods=["GET"]),
        Route("/v1/calls/left", answer(leave_call), methods=["POST"]),
        Route("/v1/calls/left", answer(left_calls), methods=["GET"]),
        Route("/v1/calls/left/{call}", answer(left_call), methods=["GET"]),
        Route("/v1/calls/left/{call}/value", answer(left_value), methods=["GET"]),
        Route("/v1/twins", answer(twins), methods=["GET"]),
        Route("/v1/twins", answer(say), methods=["POST"]),
        Route("/v1/twins/{who:path}", answer(twin), methods=["GET"]),
    ]
