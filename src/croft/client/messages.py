"""`grid.messages`: what people write to each other, and into rooms of their communities."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

from croft.client.local_api import LocalApi
from croft.control import schema

WAIT_S: Final = 20.0


class Messages:
    """The messages of this peer's owner."""

    def __init__(self, api: LocalApi) -> None:
        self._api = api

    def send(
        self, text: str, *, to: str | Sequence[str] = (), room: str = "", community: str = "", answers: str = ""
    ) -> list[schema.Message]:
        """Writes to people, or into a room: on this peer's disk when it returns, at its readers as they come up.

        Raises NotFound, Usage, Refused where nobody of the readers has said how to write to them, Busy.
        """
        people = [to] if isinstance(to, str) else list(to)
        wanted = schema.MessageWanted(text=text, to=people, room=room, community=community, answers=answers)
        return self._api.send(wanted)

    def find(
        self,
        who: str = "",
        *,
        room: str = "",
        community: str = "",
        after: int = 0,
        only_new: bool = False,
        count: int = 100,
        marks: bool = False,
    ) -> list[schema.Message]:
        """The newest `count` messages, with a person, of a room, or all; `marks`: they count as seen."""
        return self._api.messages(
            schema.MessagesWanted(
                who=who, room=room, community=community, after=after, only_new=only_new, count=count, marks=marks
            )
        )

    def watch(self, who: str = "", *, room: str = "", community: str = "", after: int = 0) -> Iterator[schema.Message]:
        """Messages as they come, without end."""
        while True:
            wanted = schema.MessagesWanted(who=who, room=room, community=community, after=after, wait_s=WAIT_S)
            for message in self._api.messages(wanted):
                yield message
                after = max(after, message.number)

    def rooms(self) -> list[schema.Room]:
        """Rooms in which something was written."""
        return self._api.rooms()


class AsyncMessages:
    """The asyncio twin of `Messages`: the same calls, awaited."""

    def __init__(self, messages: Messages) -> None:
        self._messages = messages

    async def send(
        self, text: str, *, to: str | Sequence[str] = (), room: str = "", community: str = "", answers: str = ""
    ) -> list[schema.Message]:
        """See `Messages.send`."""
        return await asyncio.to_thread(
            self._messages.send, text, to=to, room=room, community=community, answers=answers
        )

    async def find(
        self,
        who: str = "",
        *,
        room: str = "",
        community: str = "",
        after: int = 0,
        only_new: bool = False,
        count: int = 100,
        marks: bool = False,
    ) -> list[schema.Message]:
        """See `Messages.find`."""
        return await asyncio.to_thread(
            self._messages.find,
            who,
            room=room,
            community=community,
            after=after,
            only_new=only_new,
            count=count,
            marks=marks,
        )

    async def watch(
        self, who: str = "", *, room: str = "", community: str = "", after: int = 0
    ) -> AsyncIterator[schema.Message]:
        """See `Messages.watch`."""
        watching = self._messages.watch(who, room=room, community=community, after=after)
        while True:
            yield await asyncio.to_thread(next, watching)

    async def rooms(self) -> list[schema.Room]:
        """See `Messages.rooms`."""
        return await asyncio.to_thread(self._messages.rooms)
