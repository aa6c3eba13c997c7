"""Messages and twins as the local API shows them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from croft.control import schema
from croft.control.naming import find_peer, find_person
from croft.errors import NotFound, Usage
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.twins.cards import DELEGATES_MAX, PROFILE_CHARS_MAX, is_profile
from croft.twins.left_calls import Left, LeftCall, Outcome
from croft.twins.letter_store import MESSAGES_SHOWN_MAX, Message
from croft.twins.letters import Body, Box, is_room
from croft.twins.post import SEALED, TEXT

if TYPE_CHECKING:
    from croft.node.assemble import Parts

WAIT_S_MAX: Final = 25.0
TO_MAX: Final = 64


class MessageDesk:
    """Fulfils `croft.control.messages_app.Messages`."""

    def __init__(
        self,
        parts: Parts,
        peers: Callable[[], list[schema.Peer]],
        contacts: Callable[[], list[schema.Contact]],
    ) -> None:
        self._parts = parts
        self._peers = peers
        self._contacts = contacts

    # --- messages ----------------------------------------------------------------------------------------------------

    async def send(self, wanted: schema.MessageWanted) -> list[schema.Message]:
        """Writes to each of some people, or into a room. Raises Usage, NotFound, Refused, Busy."""
        if bool(wanted.to) == bool(wanted.room) or len(wanted.to) > TO_MAX:
            raise Usage("a message goes to people or into a room", remedy="`croft message send WHO TEXT`.")
        if not wanted.text.strip():
            raise Usage("a message without text", remedy="`croft message send WHO TEXT`, or `-` for standard input.")
        answers = await self._answered(wanted.answers) if wanted.answers else ""
        if wanted.room:
            boxes = [self._room(wanted.room, wanted.community)]
        else:
            boxes = [self._inbox(self._person(who), wanted.community) for who in dict.fromkeys(wanted.to)]
        body = Body(TEXT, wanted.text, answers)
        return [self._shown(await self._parts.post.send(box, body)) for box in boxes]

    async def messages(self, wanted: schema.MessagesWanted) -> list[schema.Message]:
        """Those asked for, oldest first. Raises NotFound, Usage."""
        post = self._parts.post
        who = self._person(wanted.who) if wanted.who else None
        room = self._room(wanted.room, wanted.community) if wanted.room else None
        own = self._parts.overlay.own.twin

        def fits(message: Message) -> bool:
            box = message.feed.box
            between = {message.author, box.to} == ({own, who} if who != own else {own})
            is_wanted = (who is None or between) and (room is None or box == room)
            return is_wanted and message.kind in (TEXT, SEALED) and not (wanted.only_new and message.is_read)

        async def find() -> list[Message]:
            return [message for message in await post.messages(wanted.after, room, MESSAGES_SHOWN_MAX) if fits(message)]

        async with post.arrived:
            found = await find()
            if not found and wanted.wait_s > 0:
                try:
                    async with asyncio.timeout(min(wanted.wait_s, WAIT_S_MAX)):
                        while not found:
                            await post.arrived.wait()
                            found = await find()
                except TimeoutError:
                    pass
        found = found[-max(1, wanted.count) :]
        if wanted.marks:
            await post.mark_read(found)
        return [self._shown(message) for message in found]

    async def rooms(self) -> list[schema.Room]:
        """Those in which something was written."""
        names = {one.community: one.name for one in self._parts.overlay.communities()}
        rooms = []
        for box in self._parts.post.rooms():
            messages = await self._parts.post.messages(0, box)
            new = sum(not message.is_read for message in messages)
            name = names.get(CommunityId(box.community), "")
            rooms.append(schema.Room(room=box.room, community=box.community, community_name=name, new=new))
        return rooms

    # --- calls that are left -----------------------------------------------------------------------------------------

    async def leave_call(self, wanted: schema.LeftCallWanted) -> schema.LeftCall:
        """Leaves a call for whoever offers it. Raises NotFound, TooLarge, Refused, Busy."""
        twin = self._parts.overlay.twin_of(PeerId(wanted.peer))
        if twin is None:
            raise NotFound("who offers this is no member any more", remedy="See what there is: `croft capabilities`.")
        call = LeftCall(
            *(wanted.peer, wanted.name, wanted.arguments, bytes.fromhex(wanted.digest), wanted.is_idempotent)
        )
        return self._left(await self._parts.left_calls.leave(self._inbox(twin, ""), call))

    async def left_calls(self) -> list[schema.LeftCall]:
        """Newest first."""
        return [self._left(left) for left in await self._parts.left_calls.all()]

    async def left_call(self, start: str, wait_s: float) -> schema.LeftCall:
        """One, once it is answered or so much time has passed. Raises NotFound."""
        calls = self._parts.left_calls
        async with calls.answered:
            left = await calls.get(start)
            try:
                async with asyncio.timeout(min(max(wait_s, 0.0), WAIT_S_MAX)):
                    while left.outcome is None:
                        await calls.answered.wait()
                        left = await calls.get(start)
            except TimeoutError:
                pass
        return self._left(left)

    async def left_value(self, start: str) -> schema.LeftValue:
        """The result of one. Raises NotFound, Unreachable."""
        left = await self._parts.left_calls.get(start)
        if left.outcome is None or left.outcome.code:
            raise NotFound("this call has no result", remedy=f"See how it stands: `croft calls {left.id[:8]}`.")
        return schema.LeftValue(value=await self._parts.left_calls.value(left))

    def _left(self, left: Left) -> schema.LeftCall:
        outcome = left.outcome or Outcome()
        return schema.LeftCall(
            call=left.id,
            name=left.name,
            by=self._name(left.twin),
            left_at=left.left_at,
            state="waiting" if left.outcome is None else "failed" if outcome.code else "done",
            size=outcome.size or len(outcome.value),
            code=outcome.code,
            message=outcome.message,
            remedy=outcome.remedy,
            traceback=outcome.traceback,
        )

    # --- twins -------------------------------------------------------------------------------------------------------

    def twins(self) -> list[schema.Twin]:
        """The owner of this peer first, then everybody who is known as a member, by name."""
        own = self._parts.overlay.own.twin
        known = [TwinId(twin) for twin in {peer.twin for peer in self._peers()} - {own}]
        others = sorted((self._twin(twin) for twin in known), key=lambda one: (one.name.casefold(), one.twin))
        return [self._twin(own), *others]

    def twin(self, who: str) -> schema.Twin:
        """Somebody, by any name. Raises NotFound, Usage."""
        return self._twin(self._person(who))

    async def say(self, wanted: schema.TwinWanted) -> schema.Twin:
        """What others are told of the owner. Raises Usage, NotFound."""
        own = self._parts.overlay.own
        said = self._parts.cards.said(own.twin)
        profile = said.profile if wanted.profile is None else wanted.profile.strip()
        if not is_profile(profile):
            raise Usage(f"a profile has at most {PROFILE_CHARS_MAX} letters", remedy="Say it in fewer.")
        delegates = list(said.delegates)
        if wanted.delegates is not None:
            delegates = [PeerId(find_peer(self._peers(), name).peer) for name in dict.fromkeys(wanted.delegates)]
        if len(delegates) > DELEGATES_MAX:
            raise Usage(f"at most {DELEGATES_MAX} peers can stand in for you", remedy="Remove one first.")
        await self._parts.cards.say(profile, delegates)
        return self._twin(own.twin)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _twin(self, twin: TwinId) -> schema.Twin:
        overlay = self._parts.overlay
        is_self = twin == overlay.own.twin
        said = self._parts.cards.said(twin)
        devices = [peer for peer in self._peers() if peer.twin == twin]
        communities = {community for peer in devices for community in peer.communities}
        return schema.Twin(
            twin=twin,
            name=self._name(twin),
            is_self=is_self,
            profile=said.profile,
            delegates=[overlay.name_of(peer) for peer in said.delegates],
            devices=[peer.name for peer in devices],
            alive=[peer.name for peer in devices if overlay.is_alive(PeerId(peer.peer))],
            communities=sorted(one.name for one in overlay.communities() if one.community in communities),
            said_at=said.at or None,
            kept_letters=self._parts.post.kept_for_others() if is_self else None,
        )

    def _name(self, twin: str) -> str:
        petname = self._parts.plan.contacts.get(TwinId(twin)).petname
        if petname:
            return petname
        own = self._parts.overlay.own
        if twin == own.twin:
            return own.name
        return next((peer.name for peer in self._peers() if peer.twin == twin), twin[:10])

    def _person(self, who: str) -> TwinId:
        return find_person(self._contacts(), self._peers(), who)

    def _inbox(self, twin: TwinId, community: str) -> Box:
        """Where somebody is reached: in the first community that they share with this peer, if none is named."""
        wanted = self._community(community) if community else None
        for one in self._parts.overlay.communities():
            members = self._parts.overlay.community_members(one.community)
            if wanted in (None, one.community) and any(member.twin == twin for member in members):
                return Box(one.community, twin)
        raise NotFound(
            f"{self._name(twin)} is in no community of yours",
            remedy="Invite them: `croft invite`. Or see `croft peers`.",
        )

    def _room(self, room: str, community: str) -> Box:
        if not is_room(room):
            raise Usage(f"`{room}` cannot be the name of a room", remedy="Take a word or two.")
        return Box(self._community(community), "", room)

    def _community(self, name: str) -> CommunityId:
        joined = self._parts.overlay.communities()
        found = [
            one for one in joined if not name or name in (one.name, one.community) or one.community.startswith(name)
        ]
        if not joined:
            raise NotFound("this peer is in no community yet", remedy="Join one: `croft join LINE`.")
        if len(found) != 1:
            names = ", ".join(f"{one.name} ({one.community[:10]})" for one in joined)
            raise Usage(f"which community: {names}?", remedy="Name it: `--community NAME`.")
        return found[0].community

    async def _answered(self, start: str) -> str:
        found = await self._parts.post.find(start)
        if len(found) != 1:
            raise NotFound(f"there is no message `{start}`", remedy="See which there are: `croft message list`.")
        return found[0].id

    def _shown(self, message: Message) -> schema.Message:
        overlay, box = self._parts.overlay, message.feed.box
        is_own = message.author == overlay.own.twin
        kept_by = [overlay.name_of(peer) for peer in self._parts.post.keepers(box)] if is_own else []
        state = "read" if message.is_read else "new"
        if is_own:
            state = "delivered" if message.delivered_at else "kept" if kept_by else "here"
        return schema.Message(
            message=message.id,
            number=message.number,
            by=self._name(message.author),
            twin=message.author,
            device=overlay.name_of(PeerId(message.feed.device)),
            community=box.community,
            to=self._name(box.to) if box.to else "",
            room=box.room,
            written_at=message.written_at,
            arrived_at=message.arrived_at,
            kind=message.kind,
            text=message.text,
            state=state,
            answers=message.answers,
            missing=message.missing,
            is_own=is_own,
            delivered_at=message.delivered_at,
            kept_by=kept_by,
        )
