"""The cards of this twin, told to its communities; and the overlay as letters want to see it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from croft.errors import Refused
from croft.identity.by_member import Signatory
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.overlay.gossip import Kind
from croft.overlay.records import Claim, Limits
from croft.twins.cards import (
    CARD_KIND,
    RENEW_EVERY_S,
    Card,
    Said,
    make_card,
    newest,
    open_card,
)
from croft.twins.letters import reading_key
from croft.twins.post import Answer, Caller, Person

if TYPE_CHECKING:
    from croft.overlay.link import Link
    from croft.overlay.service import Overlay
    from croft.ports import Clock, Database

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
CARDS_MAX: Final = Limits(records_max=8_192, per_origin_max=1)
SAID_SETTING: Final = "twin.said"


class Cards:
    """What twins say of themselves. Made before the overlay is loaded."""

    def __init__(self, overlay: Overlay, database: Database, clock: Clock) -> None:
        self._overlay = overlay
        self._database = database
        self._clock = clock
        self._key = reading_key(overlay.own.device).public_key().public_bytes_raw()
        self._said = Said()
        self._told: dict[CommunityId, tuple[Said, float]] = {}
        overlay.records.register(Kind(CARD_KIND, verify=self._verify, limits=CARDS_MAX))

    async def load(self) -> None:
        """Takes in what the owner said last. Raises Failed."""
        sql = "SELECT value FROM setting WHERE name = ?"
        row = await self._database.run(lambda db: db.execute(sql, (SAID_SETTING,)).fetchone())
        if row:
            self._said = msgspec.msgpack.decode(row[0], type=Said)

    async def serve(self) -> None:
        """Tells each community, anew when it changes or grows old, until cancelled."""
        while True:
            self.publish()
            await asyncio.sleep(LOOK_EVERY_S)

    def publish(self) -> None:
        """Tells what has changed, or was told long ago."""
        now = self._clock.now()
        self._said = max(self._said, self.said(self._overlay.own.twin), key=lambda said: said.at)
        for membership in self._overlay.communities():
            told = self._told.get(membership.community)
            if told is not None and told[0] == self._said and 0 <= now - told[1] < RENEW_EVERY_S:
                continue
            own, records = self._overlay.own, self._overlay.records
            bearer = Signatory(own.device, own.certificate, membership.community, membership.chain)
            card = make_card(bearer, self._key, self._said, now=now, sequence=records.next_sequence())
            records.publish(CARD_KIND, membership.community, card)
            self._told[membership.community] = self._said, now

    async def say(self, profile: str, delegates: Sequence[PeerId]) -> Said:
        """What the owner says from now on, on all devices; on disk when this returns. Raises Failed."""
        said = Said(max(self._clock.now(), self._said.at), profile, tuple(delegates))
        row = SAID_SETTING, msgspec.msgpack.encode(said)

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", row)

        await self._database.run(write)
        self._said = said
        self.publish()
        return said

    def said(self, twin: TwinId) -> Said:
        """What a twin said last."""
        return newest([card for card in self._cards() if card.twin == twin])

    def reading_keys(self, community: str) -> Mapping[PeerId, bytes]:
        """By device, this one among them."""
        keys = {card.peer: card.reading_key for card in self._cards(CommunityId(community))}
        return {**keys, self._overlay.own.peer: self._key}

    def _cards(self, community: CommunityId | None = None) -> list[Card]:
        entries = self._overlay.records.entries(CARD_KIND, community)
        return [entry.claim.value for entry in entries if isinstance(entry.claim.value, Card)]

    def _verify(self, community: CommunityId, record: bytes, now: float) -> Claim:
        card = open_card(community, record, now)
        return Claim(card.peer, card.peer, card.sequence, card.expires_at, card)


class LetterNetwork:
    """Fulfils `croft.twins.post.Network`."""

    def __init__(self, overlay: Overlay, cards: Cards) -> None:
        self._overlay = overlay
        self._cards = cards

    def communities(self) -> Sequence[CommunityId]:
        """Those of this peer."""
        return [membership.community for membership in self._overlay.communities()]

    def members(self, community: str) -> Sequence[Person]:
        """Devices of members other than this one."""
        members = self._overlay.community_members(CommunityId(community))
        return [Person(m.peer, m.twin) for m in members if m.peer != self._overlay.own.peer]

    def is_alive(self, peer: PeerId) -> bool:
        """As the overlay sees it."""
        return self._overlay.is_alive(peer)

    def linked(self, community: str) -> Sequence[PeerId]:
        """Members of a community to whom there is a link now."""
        records = self._overlay.records
        return [link.peer for link in self._overlay.links.all() if community in records.shares(link.peer)]

    def is_kept_out(self, peer: PeerId, twin: TwinId) -> bool:
        """Whether its owner revoked a device, or the owner of this peer blocked that person."""
        try:
            self._overlay.door.admit(peer, twin)
        except Refused:
            return True
        return False

    def name(self, peer: PeerId) -> str:
        """What to call a peer."""
        return self._overlay.name_of(peer)

    def reading_keys(self, community: str) -> Mapping[PeerId, bytes]:
        """By which things are sealed for the devices of a community."""
        return self._cards.reading_keys(community)

    def said(self, twin: TwinId) -> Said:
        """What a twin said last on its cards."""
        return self._cards.said(twin)

    async def call(self, peer: PeerId, method: str, body: bytes, deadline_s: float) -> bytes:
        """Raises what `Overlay.call` raises."""
        return await self._overlay.call(peer, method, body, deadline_s=deadline_s)

    def on_call(self, method: str, answer: Answer) -> None:
        """Answers members that call `method`."""

        async def answered(link: Link, body: bytes) -> bytes:
            communities = self._overlay.communities_of(link.peer) | link.greeted.communities
            return await answer(Caller(link.peer, link.greeted.twin, communities), body)

        self._overlay.links.on_call(method, answered)

    def on_link(self, handler: Callable[[PeerId], None]) -> None:
        """Tells of peers to whom there is a link anew."""
        self._overlay.links.on_up(lambda link: handler(link.peer))
