"""Decides by which relay this peer is reachable: the nearest that works, another one when it does not answer any more.

Only relays that members offer are candidates. They are asked now and then how far they are; those in use more often,
whether they are ours or the other side's, and those by which a dial has just failed at once. Two questions in a row
without an answer, and a relay is dead: nothing is sent by it, and the next best takes its place if it was ours; it
comes back into the choice when it answers again. A peer that everybody can reach has a home relay all the same, for
those who cannot be reached themselves and can send nothing but by a relay.

Sans-IO: events go in, effects come out; the time comes in as `now`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from croft.model.ids import PeerId

CANDIDATES_MAX: Final = 8
ASK_HOME_EVERY_S: Final = 5.0
ASK_BUSY_EVERY_S: Final = 0.8
"""While something goes by it."""
DOUBT_AGAIN_S: Final = 2.0
ASK_OTHERS_EVERY_S: Final = 30.0
ASK_FAILED_EVERY_S: Final = 5.0
ANSWER_S_MAX: Final = 0.8
FAILURES_MAX: Final = 1
"""The next failure after so many means that a relay is dead."""
NEARER_FACTOR: Final = 0.7
NEARER_BY_S: Final = 0.005
"""Another relay takes over only if it is this much nearer: no flapping between two that are alike."""
SPARE_MAX: Final = 2


@dataclass(frozen=True, slots=True)
class Relay:
    """A relay that a member offers, at one of its URLs."""

    url: str
    peer: PeerId


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offered:
    """These are all the relays that are offered now."""

    relays: Sequence[Relay]
    now: float


@dataclass(frozen=True, slots=True)
class Answered:
    """A relay answered after that time."""

    url: str
    round_trip_s: float
    now: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A relay did not answer in ANSWER_S_MAX, or refused the connection."""

    url: str
    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed. `in_use`: the relays by which links of ours go now."""

    in_use: Collection[str]
    now: float


@dataclass(frozen=True, slots=True)
class Doubted:
    """Somebody could not be reached, among other ways by these relays."""

    urls: Sequence[str]
    now: float


Event = Offered | Answered | Failed | Tick | Doubted


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a relay whether it is there, and how far."""

    url: str


@dataclass(frozen=True, slots=True)
class Use:
    """This relay and no other is ours from now on; None: there is none."""

    relay: Relay | None


@dataclass(frozen=True, slots=True)
class Dead:
    """This relay does not answer any more: what goes by it is to find another way."""

    url: str


Effect = Ask | Use | Dead


@dataclass(slots=True)
class _Candidate:
    relay: Relay
    round_trip_s: float | None = None
    failures: int = 0
    asked_at: float = -1e9
    is_asked: bool = False

    @property
    def works(self) -> bool:
        return self.round_trip_s is not None and self.failures <= FAILURES_MAX


class RelayChoice:
    """The relays of this peer."""

    def __init__(self) -> None:
        self._candidates: dict[str, _Candidate] = {}
        self._home: str | None = None

    @property
    def home(self) -> Relay | None:
        """The relay in use."""
        return self._candidates[self._home].relay if self._home is not None else None

    def in_order(self) -> list[tuple[Relay, float]]:
        """The home relay, then spare ones by distance, each with its round trip in seconds; those that work."""
        working = [candidate for candidate in self._candidates.values() if candidate.works]
        working.sort(key=lambda c: (c.relay.url != self._home, c.round_trip_s or 0.0))
        spare = [(c.relay, c.round_trip_s) for c in working if c.round_trip_s is not None]
        return spare[: 1 + SPARE_MAX]

    def best_url_of(self, peer: PeerId) -> str | None:
        """Where this peer best reaches the relay of `peer`."""
        urls = [c for c in self._candidates.values() if c.relay.peer == peer and c.works]
        return min(urls, key=lambda c: c.round_trip_s or 0.0).relay.url if urls else None

    def peer_of(self, url: str) -> PeerId | None:
        """Who offers the relay of that URL."""
        candidate = self._candidates.get(url)
        return candidate.relay.peer if candidate else None

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`."""
        match event:
            case Offered(relays, now):
                return self._offered(relays, now)
            case Answered(url, round_trip_s, _):
                if candidate := self._candidates.get(url):
                    candidate.is_asked, candidate.failures = False, 0
                    known = candidate.round_trip_s
                    candidate.round_trip_s = round_trip_s if known is None else (known + round_trip_s) / 2
                return self._choose()
            case Failed(url, now):
                return self._failed(url, now)
            case Tick(in_use, now):
                return self._due(in_use, now)
            case Doubted(urls, now):
                doubted = [self._candidates[url] for url in urls if url in self._candidates]
                return [
                    self._ask(one, now) for one in doubted if not one.is_asked and now - one.asked_at >= DOUBT_AGAIN_S
                ]
            case _:
                assert_never(event)

    def _offered(self, relays: Sequence[Relay], now: float) -> Sequence[Effect]:
        wanted = {relay.url: relay for relay in relays[:CANDIDATES_MAX]}
        for url in [url for url, c in self._candidates.items() if wanted.get(url) != c.relay]:
            del self._candidates[url]
        for url, relay in wanted.items():
            self._candidates.setdefault(url, _Candidate(relay))
        effects: list[Effect] = []
        if self._home is not None and self._home not in self._candidates:
            self._home = None
            effects = list(self._choose()) or [Use(None)]
        return [*effects, *self._due((), now)]

    def _failed(self, url: str, now: float) -> Sequence[Effect]:
        candidate = self._candidates.get(url)
        if candidate is None:
            return []
        was_working = candidate.works
        candidate.is_asked = False
        candidate.failures += 1
        if not was_working:
            return []
        if candidate.works:
            # Once is chance; ask again at once, so that two failures fit into the time that a failover may take.
            return [self._ask(candidate, now)]
        if url != self._home:
            return [Dead(url)]
        self._home = None
        return [*(self._choose() or [Use(None)]), Dead(url)]

    def _choose(self) -> Sequence[Effect]:
        working = [c for c in self._candidates.values() if c.works]
        if not working:
            return []
        best = min(working, key=lambda c: c.round_trip_s or 0.0)
        if self._home is not None:
            home = self._candidates[self._home]
            assert home.round_trip_s is not None and best.round_trip_s is not None
            is_nearer = best.round_trip_s < min(home.round_trip_s * NEARER_FACTOR, home.round_trip_s - NEARER_BY_S)
            if not is_nearer:
                return []
        self._home = best.relay.url
        return [Use(best.relay)]

    def _due(self, in_use: Collection[str], now: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        for url, candidate in self._candidates.items():
            if url in in_use or (url == self._home and in_use):
                every_s = ASK_BUSY_EVERY_S
            elif url == self._home:
                every_s = ASK_HOME_EVERY_S
            else:
                every_s = ASK_OTHERS_EVERY_S if candidate.works else ASK_FAILED_EVERY_S
            if not candidate.is_asked and now - candidate.asked_at >= every_s:
                effects.append(self._ask(candidate, now))
        return effects

    def _ask(self, candidate: _Candidate, now: float) -> Ask:
        candidate.is_asked, candidate.asked_at = True, now
        return Ask(candidate.relay.url)
