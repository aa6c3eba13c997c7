"""Makes and ends links as `neighbours` decides, and closes those that neither end needs: its shell."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, assert_never

from croft.errors import CroftError, PeerMisbehaved
from croft.model.ids import CommunityId, PeerId, TwinId, short
from croft.overlay import neighbours as core
from croft.overlay.link import CLOSE_NORMAL
from croft.overlay.messages import NeighbourWord
from croft.overlay.neighbours import Word
from croft.wire.codec import decode, encode

if TYPE_CHECKING:
    from random import Random

    from croft.overlay.link import Link
    from croft.overlay.links import Links
    from croft.ports import Clock

log = logging.getLogger(__name__)

NOTICE_NEIGHBOUR = "neighbour"
REST_AFTER_S = 30.0
"""A link that serves no neighbourhood and was not used for this long may be closed."""
REST_SAID_EVERY_S = 15.0


class Neighbourhood:
    """The links of this peer to its neighbours. `dial` makes a link to a member, or raises CroftError."""

    def __init__(
        self,
        own: PeerId,
        links: Links,
        clock: Clock,
        chance: Random,
        dial: Callable[[PeerId], Awaitable[Link]],
        twin_of: Callable[[PeerId], TwinId | None],
    ) -> None:
        self._core = core.Neighbours(own, chance, twin_of)
        self._links = links
        self._clock = clock
        self._dial_member = dial
        self._rest_said_at: dict[PeerId, float] = {}
        self.tasks: asyncio.TaskGroup | None = None
        links.on_notice(NOTICE_NEIGHBOUR, self._heard)

    def neighbours(self) -> list[PeerId]:
        """To whom links are kept."""
        return self._core.neighbours()

    def tick(self, members: Mapping[CommunityId, Sequence[PeerId]], dead: frozenset[PeerId]) -> None:
        """Time to look after the links."""
        now = self._clock.now()
        self._perform(self._core.handle(core.Tick(members, dead, now)))
        for link in self._links.all():
            if self._may_rest(link) and now - self._rest_said_at.get(link.peer, 0.0) >= REST_SAID_EVERY_S:
                self._rest_said_at[link.peer] = now
                link.is_resting = True
                self._say(link.peer, Word.REST)

    def link_up(self, peer: PeerId) -> None:
        """A link is live."""
        self._perform(self._core.handle(core.LinkUp(peer, self._clock.now())))

    def link_down(self, peer: PeerId) -> None:
        """A link ended."""
        self._rest_said_at.pop(peer, None)
        self._perform(self._core.handle(core.LinkDown(peer, self._clock.now())))

    def spoke_anew(self, peer: PeerId) -> None:
        """A member's descriptor is new."""
        self._perform(self._core.handle(core.SpokeAnew(peer)))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _may_rest(self, link: Link) -> bool:
        return not self._core.is_neighbour(link.peer) and not link.is_in_use and link.unused_s >= REST_AFTER_S

    def _heard(self, link: Link, body: bytes) -> None:
        number = decode(body, NeighbourWord, step="neighbour").word
        if not Word.ASK <= number <= Word.REST:
            raise PeerMisbehaved(f"word {number} about a link", step="neighbour")
        word = Word(number)
        if word is Word.REST and self._may_rest(link):
            link.is_resting = True
            link.close(CLOSE_NORMAL, "neither side needs the link")
            return
        self._perform(self._core.handle(core.Said(link.peer, word)))

    def _say(self, peer: PeerId, word: Word) -> None:
        if link := self._links.get(peer):
            link.notify(NOTICE_NEIGHBOUR, encode(NeighbourWord(word)))

    def _perform(self, effects: Sequence[core.Effect]) -> None:
        for effect in effects:
            match effect:
                case core.Dial(peer):
                    if self.tasks is None:
                        self._core.handle(core.DialFailed(peer, self._clock.now()))
                    else:
                        self.tasks.create_task(self._dial(peer), name=f"overlay.dial.{short(peer)}")
                case core.Say(peer, word):
                    self._say(peer, word)
                case _:
                    assert_never(effect)

    async def _dial(self, peer: PeerId) -> None:
        try:
            await self._dial_member(peer)
        except CroftError as error:
            log.debug("dialling %s failed: %s", short(peer), error.message)
            self._perform(self._core.handle(core.DialFailed(peer, self._clock.now())))
