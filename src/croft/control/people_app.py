"""The local API on people: the owner's contacts, and the owner's own devices."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.routing import Route

from croft.control import schema
from croft.control.answers import answer, body


class People(Protocol):
    """What the local API asks about people."""

    def contacts(self) -> list[schema.Contact]: ...

    async def note(self, wanted: schema.ContactWanted) -> schema.Contact: ...

    async def forget(self, who: str) -> schema.Contact: ...

    def devices(self) -> list[schema.Device]: ...

    async def add_device(self, wanted: schema.InvitationWanted) -> schema.Invitation: ...

    async def revoke_device(self, name: str) -> schema.Device: ...


def people_routes(people: People) -> list[Route]:
    """One route per question."""

    async def contacts(_: Request) -> object:
        return people.contacts()

    async def note(request: Request) -> object:
        return await people.note(await body(request, schema.ContactWanted))

    async def forget(request: Request) -> object:
        return await people.forget(request.path_params["who"])

    async def devices(_: Request) -> object:
        return people.devices()

    async def add_device(request: Request) -> object:
        return await people.add_device(await body(request, schema.InvitationWanted))

    async def revoke_device(request: Request) -> object:
        return await people.revoke_device(request.path_params["name"])

    return [
        Route("/v1/contacts", answer(contacts), methods=["GET"]),
        Route("/v1/contacts", answer(note), methods=["POST"]),
        Route("/v1/contacts/{who:path}", answer(forget), methods=["DELETE"]),
        Route("/v1/devices", answer(devices), methods=["GET"]),
        Route("/v1/devices", answer(add_device), methods=["POST"]),
        Route("/v1/devices/{name:path}", answer(revoke_device), methods=["DELETE"]),
    ]
