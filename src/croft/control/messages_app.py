"""The local API on messages, and on what twins say of themselves."""

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
        Route("/v1/twins", answer(twins), methods=["GET"]),
        Route("/v1/twins", answer(say), methods=["POST"]),
        Route("/v1/twins/{who:path}", answer(twin), methods=["GET"]),
    ]
