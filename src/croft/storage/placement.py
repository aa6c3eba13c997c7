"""Decides which peers hold a stripe: by weight, each owner once, the same ones again for the same stripe.

Weighted rendezvous hashing (Thaler & Ravishankar 1998; weights after Schindler & Schomaker 2005): every peer gets a
score from the stripe's seed and its own id, the best n are taken; so a peer that comes or goes moves no more shares
than it must. Sans-IO.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from croft.errors import Refused, Usage
from croft.model.ids import PeerId, TwinId
from croft.storage.erasure import SHARES_MAX
from croft.storage.formats import Bounds, Stripe

COPIES_DEFAULT: Final = 3
PEERS_OF_COPIES_MAX: Final = 3
PEERS_OF_SMALL_CODE_MIN: Final = 8
PEERS_OF_LARGE_CODE_MIN: Final = 20


@dataclass(frozen=True, slots=True)
class Layout:
    """Any k of n shares give the data back."""

    k: int
    n: int

    @property
    def losses(self) -> int:
        """How many holders may be lost."""
        return self.n - self.k

    def __str__(self) -> str:
        return f"copies={self.n}" if self.k == 1 else f"{self.k}of{self.n}"


@dataclass(frozen=True, slots=True)
class Place:
    """A peer that lends disk. `weight` is how much of it; `domain` is what may fail at once, of which one is used."""

    peer: PeerId
    name: str
    domain: str
    weight: float
    is_alive: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """What the owner wants. `on`: just these peers, if any are named; `never`: not these, nor other devices of theirs.

    `layout` None: what the number of peers suggests.
    """

    on: tuple[PeerId, ...] = ()
    never: tuple[PeerId, ...] = ()
    never_twins: tuple[TwinId, ...] = ()
    layout: Layout | None = None


BoundedStripe = tuple[Stripe, Rule]
"""A stripe, and the rule that says who may hold it."""


def bounds_of(rule: Rule) -> Bounds | None:
    """Who may hold something under a rule, as formats have it; None: anybody."""
    if not (rule.on or rule.never or rule.never_twins):
        return None
    return Bounds(*([bytes.fromhex(one) for one in some] for some in (rule.on, rule.never, rule.never_twins)))


def rule_of(bounds: Bounds | None) -> Rule:
    """The rule that says the same."""
    if bounds is None:
        return Rule()
    return Rule(
        tuple(PeerId(peer.hex()) for peer in bounds.on),
        tuple(PeerId(peer.hex()) for peer in bounds.never),
        tuple(TwinId(twin.hex()) for twin in bounds.never_twins),
    )


def parse_layout(text: str) -> Layout:
    """The layout of `4of8` or `copies=3`. Raises Usage."""
    head, of, tail = text.replace("-of-", "of").partition("of")
    copies = text.removeprefix("copies=")
    if of and head.isascii() and head.isdigit() and tail.isascii() and tail.isdigit():
        layout = Layout(int(head), int(tail))
    elif copies != text and copies.isascii() and copies.isdigit():
        layout = Layout(1, int(copies))
    else:
        raise Usage(f"`{text}` is no layout", remedy="Write it like `4of8`, any 4 of 8 shares, or `copies=3`.")
    if not 1 <= layout.k <= layout.n <= SHARES_MAX:
        raise Usage(f"`{text}` is no layout", remedy=f"Of n shares, at most {SHARES_MAX}, k are enough: 1 ≤ k ≤ n.")
    return layout


def default_layout(owners: int) -> Layout:
    """What is wise with so many owners that lend disk: see the table in docs/storage.md."""
    if owners <= PEERS_OF_COPIES_MAX:
        return Layout(1, max(1, min(owners, COPIES_DEFAULT)))
    if owners < PEERS_OF_SMALL_CODE_MIN:
        return Layout(owners // 2, owners)
    return Layout(10, 20) if owners >= PEERS_OF_LARGE_CODE_MIN else Layout(4, 8)


def allowed(places: Sequence[Place], rule: Rule) -> list[Place]:
    """The peers that may receive something under a rule, dead ones too."""
    never = frozenset(rule.never)
    return [
        place
        for place in places
        if place.peer not in never
        and TwinId(place.domain) not in rule.never_twins
        and (not rule.on or place.peer in rule.on)
        and place.weight > 0
    ]


def choose_layout(places: Sequence[Place], rule: Rule) -> Layout:
    """The layout to use among these peers. Raises Refused where they are too few."""
    usable = [place for place in allowed(places, rule) if place.is_alive]
    owners = len({place.domain for place in usable})
    if not owners:
        raise Refused(
            "no peer that may hold this lends disk now",
            remedy="See who lends: `croft peers`; invite one: `croft invite`.",
        )
    layout = rule.layout or default_layout(owners)
    if layout.n > owners:
        raise Refused(
            f"{layout} needs {layout.n} owners who lend disk, and {owners} {'does' if owners == 1 else 'do'} now",
            remedy=f"Use fewer shares, such as --keep {default_layout(owners)}, or invite more people.",
        )
    return layout


def ranked(seed: bytes, places: Sequence[Place]) -> list[Place]:
    """All places, best first, for the stripe or file with this seed."""
    return sorted(places, key=lambda place: (_score(seed, place), place.peer))


def first_of_domains(ranking: Sequence[Place], count: int, taken: Collection[str] = ()) -> list[Place]:
    """The first `count` of a ranking, one of each domain, none of the domains `taken`."""
    used = set(taken)
    chosen: list[Place] = []
    for place in ranking:
        if len(chosen) == count:
            break
        if place.domain not in used:
            used.add(place.domain)
            chosen.append(place)
    return chosen


def _score(seed: bytes, place: Place) -> float:
    """Exponentially distributed with the weight as its rate; the least one wins, so weights are kept to exactly."""
    digest = blake3(seed + place.peer.encode(), derive_key_context="croft storage v1 placement").digest(8)
    chance = (int.from_bytes(digest, "little") + 1) / (1 << 64)
    return -math.log(chance) / place.weight
