"""Decides which of an owner's offers stand for whom at a moment, and what is offered in all. Sans-IO.

Where several offers stand, what is lent in all is the largest of each resource, not their sum: an owner who offers two
processors to everybody and four to friends lends four.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from croft.errors import Busy, NotFound, Refused
from croft.model.amounts import CPU, Amounts
from croft.model.hours import When, show_minute, show_when
from croft.model.ids import CommunityId, TwinId

SETTINGS = "settings"
"""The offer that the settings make."""
MEMBERS, FRIENDS, MINE = "members", "friends", "mine"
"""Whom an offer may be for, besides single communities and people: everybody in one's communities, those whom the owner
noted and trusts, and the owner's own devices, which every offer is for."""
OFFERS_MAX = 6


@dataclass(frozen=True, slots=True)
class OwnOffer:
    """What the owner of this peer lends.

    Attributes:
        name: `settings`, or the offer's number.
        lent: how much of what. places: where each device is to be found on this machine, if it is a file.
        to: MEMBERS, FRIENDS, MINE, and ids of communities and people.
        when: in which part of the week; None: always. created_at: Unix seconds.
    """

    name: str
    lent: Amounts
    to: tuple[str, ...]
    when: When | None = None
    places: tuple[tuple[str, str], ...] = ()
    created_at: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether it is for every member at any time, and of nothing special: a descriptor says all of it."""
        return MEMBERS in self.to and self.when is None and not self.devices

    @property
    def devices(self) -> tuple[str, ...]:
        """What it lends besides processors, memory and disk."""
        return tuple(name for name in self.lent if name not in ("cpu", "mem", "disk"))


@dataclass(frozen=True, slots=True)
class Asker:
    """Somebody who wants something: a person, in which communities, and what the owner holds of that person."""

    twin: TwinId
    communities: frozenset[CommunityId]
    is_own: bool
    is_friend: bool


class OwnOffers:
    """All offers of one owner."""

    def __init__(self, settings: OwnOffer) -> None:
        self._offers = {settings.name: settings}

    def all(self) -> list[OwnOffer]:
        """Every offer; that of the settings first."""
        return list(self._offers.values())

    def add(self, offer: OwnOffer) -> None:
        """One more. Raises Busy where there are OFFERS_MAX."""
        if len(self._offers) >= OFFERS_MAX:
            raise Busy(f"there are {OFFERS_MAX} offers already", remedy="Withdraw one first: `croft offer list`.")
        self._offers[offer.name] = offer

    def remove(self, name: str) -> OwnOffer:
        """One less. Raises NotFound, Refused for that of the settings."""
        if name == SETTINGS:
            raise Refused("the settings make this offer", remedy="Set `lend.cpus` to 0: `croft config edit`.")
        if name not in self._offers:
            raise NotFound(f"this peer makes no offer `{name[:40]}`", remedy="See them: `croft offer list`.")
        return self._offers.pop(name)

    def standing(self, minute: int) -> dict[str, Amounts]:
        """What each offer that stands at a minute of the week lends."""
        return {offer.name: offer.lent for offer in self._offers.values() if _stands(offer, minute)}

    def standing_for(self, asker: Asker, minute: int) -> tuple[str, ...]:
        """The offers that stand for somebody, those with most processors first. Raises Refused that says why not."""
        meant = [offer for offer in self._offers.values() if offer.lent.pairs and is_for(offer, asker)]
        if not meant:
            raise Refused("this peer offers nothing to you", remedy="Ask its owner: `croft offer cpu=1 --to YOU`.")
        standing = [offer for offer in meant if _stands(offer, minute)]
        if not standing:
            hours = " and ".join(show_when(offer.when) for offer in meant if offer.when is not None)
            raise Refused(
                f"this peer lends to you only at {hours}, and there it is {show_minute(minute)}",
                remedy="Come back then, or use others.",
            )
        return tuple(offer.name for offer in sorted(standing, key=lambda offer: -offer.lent[CPU]))

    def places(self) -> Mapping[str, str]:
        """Where every device that is a file is to be found."""
        return {name: place for offer in self._offers.values() for name, place in offer.places}

    def hours(self) -> str:
        """When anything is lent at all, for people; empty: always, or never."""
        parts = [offer.when for offer in self._offers.values() if offer.lent[CPU]]
        return "" if None in parts else " and ".join(show_when(when) for when in parts if when is not None)


def largest(amounts: Iterable[Amounts]) -> Amounts:
    """What is lent in all where several offers stand."""
    most = Amounts()
    for one in amounts:
        most = most.most(one)
    return most


def is_for(offer: OwnOffer, asker: Asker) -> bool:
    """Whether an offer is meant for somebody; every offer is meant for the owner's own devices."""
    return (
        asker.is_own
        or (MEMBERS in offer.to and bool(asker.communities))
        or (FRIENDS in offer.to and asker.is_friend)
        or asker.twin in offer.to
        or any(community in offer.to for community in asker.communities)
    )


def _stands(offer: OwnOffer, minute: int) -> bool:
    return bool(offer.lent.pairs) and (offer.when is None or minute in offer.when)
