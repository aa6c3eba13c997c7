"""Calls that are left for somebody who is away: as letters, run when that somebody is back, answered by a letter.

A call is for one device, the one that offers what is called. It runs there as any other call does, if the owner's rules
let it; one that may not be made twice runs once at most, also if the peer dies meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from croft.errors import CallLost, CapabilityFailed, ConnectionLost, CroftError, NotFound, PeerMisbehaved, TooLarge
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.model.kept import Held
from croft.twins.call_messages import (
    AskCall,
    CallFailed,
    CallRaised,
    ToCaller,
    ValuePart,
    is_last,
)
from croft.twins.letter_store import Message as Letter
from croft.twins.letters import Body, Box
from croft.wire.codec import Message, decode, decode_union, encode
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.ports import Clock, Database, Stream
    from croft.twins.call_server import CallServer
    from croft.twins.kept_values import KeptValues
    from croft.twins.post import Post

log = logging.getLogger(__name__)

CALL: Final = "call"
OUTCOME: Final = "outcome"
ARGUMENT_BYTES_MAX: Final = 8 << 10
VALUE_BYTES_MAX: Final = 8 << 10
"""A larger result stays at its maker, and is fetched from there."""
CONSENT_S: Final = 7 * 86_400.0
AT_ONCE_MAX: Final = 4
TEXT_CHARS_MAX: Final = 2_000
SHOWN_MAX: Final = 1_000
STEP: Final = "left call"

M = TypeVar("M", bound=Message)


class LeftCall(Message, frozen=True):
    """What is to be called. `device`: where."""

    device: str
    name: str
    arguments: bytes
    signature: bytes
    is_idempotent: bool


class Outcome(Message, frozen=True):
    """What came of it: a value in the safe codec, or where it is kept; else why there is none."""

    value: bytes = b""
    token: bytes = b""
    size: int = 0
    code: str = ""
    message: str = ""
    remedy: str = ""
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """A call that the owner of this peer left for somebody. `outcome`: None while there is none."""

    id: str
    name: str
    device: PeerId
    twin: TwinId
    left_at: float
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class Absent:
    """Who left a call, as its letter proves; see `croft.twins.call_server.Caller`."""

    peer: PeerId
    twin: TwinId
    name: str
    communities: frozenset[CommunityId]


class LeftCalls:
    """The calls that this peer's owner left for others, and those that others left for this peer.

    `pipe` makes two joined streams. `load` before `serve`.
    """

    def __init__(
        self,
        own: PeerId,
        post: Post,
        server: CallServer,
        values: KeptValues,
        pipe: Callable[[], tuple[Stream, Stream]],
        name_of: Callable[[PeerId], str],
        database: Database,
        clock: Clock,
    ) -> None:
        self._own = own
        self._post = post
        self._server = server
        self._values = values
        self._pipe = pipe
        self._name_of = name_of
        self._database = database
        self._clock = clock
        self._arrived: asyncio.Queue[Letter] = asyncio.Queue()
        self._room = asyncio.Semaphore(AT_ONCE_MAX)
        self.answered = asyncio.Condition()
        """Notified when an outcome has come."""
        for kind in (CALL, OUTCOME):
            post.on_kind[kind] = self._arrived.put_nowait

    # --- the owner's side --------------------------------------------------------------------------------------------

    async def leave(self, box: Box, call: LeftCall) -> Left:
        """Leaves a call; it is on this disk once this returns. Raises TooLarge, Refused, Busy, Failed."""
        if len(call.arguments) > ARGUMENT_BYTES_MAX:
            raise TooLarge(
                f"the arguments take more than {ARGUMENT_BYTES_MAX >> 10} KiB, too much for a call that is left",
                remedy="Store files, and pass a link to them: `croft link`.",
            )
        letter = await self._post.send(box, Body(CALL, _text(call)))
        left = Left(letter.id, call.name, PeerId(call.device), TwinId(box.to), self._clock.now(), None)
        row = left.id, left.name, left.device, left.twin, left.left_at
        await self._database.run(
            lambda db: db.execute("INSERT INTO left_call VALUES (?, ?, ?, ?, ?, NULL)", row).rowcount
        )
        return left

    async def all(self) -> list[Left]:
        """Calls that the owner left for others, newest first."""
        sql = "SELECT id, name, device, twin, left_at, outcome FROM left_call ORDER BY left_at DESC, id LIMIT ?"
        rows = await self._database.run(lambda db: db.execute(sql, (SHOWN_MAX,)).fetchall())
        return [
            Left(
                id_, name, PeerId(device), TwinId(twin), at, None if came is None else decode(came, Outcome, step=STEP)
            )
            for id_, name, device, twin, at, came in rows
        ]

    async def get(self, start: str) -> Left:
        """One of them, by how its id begins. Raises NotFound."""
        found = [left for left in await self.all() if start and left.id.startswith(start)]
        if len(found) != 1:
            raise NotFound(f"no call `{start}` was left from here", remedy="See which were: `croft calls`.")
        return found[0]

    async def value(self, left: Left) -> bytes:
        """The result of a call that went well, from where it is. Raises NotFound, Unreachable."""
        assert left.outcome is not None and not left.outcome.code, "it has a result"
        if not left.outcome.token:
            return left.outcome.value
        held = Held(left.device, left.outcome.token, left.outcome.size)
        return b"".join([part async for part in self._values.read(held)])

    # --- running -----------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Takes up what had come and was not answered when the last run ended. Raises Failed."""
        for kind in (OUTCOME, CALL):
            for letter in await self._post.unsettled(kind):
                self._arrived.put_nowait(letter)

    async def serve(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                letter = await self._arrived.get()
                if letter.kind == OUTCOME:
                    await self._answer_came(letter)
                else:
                    tasks.create_task(self._take(letter), name="left call")

    async def _take(self, letter: Letter) -> None:
        """Runs a call that was left for this peer, and answers it."""
        async with self._room:
            try:
                call = _opened(letter.text, LeftCall)
                if call.device != self._own:
                    await self._post.settle(letter)
                    return
                if not call.is_idempotent and letter.has_begun:
                    outcome = Outcome(code=CallLost.code, message="its peer died while it ran; it may have run")
                else:
                    await self._post.begin(letter)
                    outcome = await self._run(letter, call)
                box = Box(letter.feed.box.community, letter.author)
                await self._post.send(box, Body(OUTCOME, _text(outcome), letter.id))
                await self._post.settle(letter)
            except PeerMisbehaved as fault:
                log.warning("a call that %s left: %s", self._name_of(PeerId(letter.feed.device)), fault)
                await self._post.settle(letter)
            except CroftError as error:
                log.warning("a call that was left is not answered: %s", error.message)

    async def _run(self, letter: Letter, call: LeftCall) -> Outcome:
        device, community = PeerId(letter.feed.device), CommunityId(letter.feed.box.community)
        caller = Absent(device, TwinId(letter.author), self._name_of(device), frozenset([community]))
        here, there = self._pipe()
        serving = asyncio.create_task(self._server.serve_stream(caller, there), name="left call.serve")
        parts: list[bytes] = []
        try:
            async with MessageStream(here, step=STEP) as messages:
                key = bytes.fromhex(letter.id)
                asked = AskCall(1, call.name, call.arguments, True, call.signature, key, CONSENT_S)
                messages.post(asked)
                while (payload := await messages.receive()) is not None:
                    message: ToCaller = decode_union(payload, ToCaller, step=STEP)
                    match message:
                        case ValuePart(_, data):
                            parts.append(data)
                        case CallRaised(_, name, text, traceback):
                            return Outcome(
                                code=CapabilityFailed.code,
                                message=f"{name}: {text}"[:TEXT_CHARS_MAX],
                                remedy="Leave it again with other arguments, or tell its owner.",
                                traceback=traceback[-TEXT_CHARS_MAX:],
                            )
                        case CallFailed(_, code, text, remedy):
                            return Outcome(code=code, message=text[:TEXT_CHARS_MAX], remedy=remedy[:TEXT_CHARS_MAX])
                    if is_last(message):
                        break
        except ConnectionLost as lost:
            return Outcome(code=CallLost.code, message=f"it may have run: {lost}")
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        if sum(map(len, parts)) <= VALUE_BYTES_MAX:
            return Outcome(b"".join(parts))
        held = await self._values.keep(letter.author, parts)
        return Outcome(token=held.token, size=held.size)

    async def _answer_came(self, letter: Letter) -> None:
        try:
            outcome = _opened(letter.text, Outcome)
            row = encode(outcome), letter.answers, letter.author
            # Only whom it was left for can answer it, and only once.
            sql = "UPDATE left_call SET outcome = ? WHERE id = ? AND twin = ? AND outcome IS NULL"
            await self._database.run(lambda db: db.execute(sql, row).rowcount)
            await self._post.settle(letter)
        except (PeerMisbehaved, CroftError) as problem:
            log.warning("an answer to a call that was left: %s", problem)
            return
        async with self.answered:
            self.answered.notify_all()


def _text(message: Message) -> str:
    return base64.b64encode(encode(message)).decode()


def _opened(text: str, kind: type[M]) -> M:
    try:
        return decode(base64.b64decode(text, validate=True), kind, step=STEP)
    except (binascii.Error, ValueError):
        raise PeerMisbehaved("not what such a letter holds", step=STEP) from None
