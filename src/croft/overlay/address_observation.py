"""Decides at which outside addresses this peer can be reached, and behind what kind of NAT, from what others see.

Every peer tells those it is directly connected to at which address it sees them. One word proves nothing: the speaker
may lie. So:

- An address is *believed*, and told to others, when two observers in different places say the same. A place is a twin
  and the host of its address: one owner with many devices, or one host with many names, is one place.
- What a single observer says is *tried*: it serves for punching holes with peers that prove their keys, and is told to
  nobody. Each observer has one word, so a liar spoils one try.
- One host seen with different ports by different observers is a symmetric NAT: what one sees is of no use to another.
- What nobody has confirmed for STALE_S is taken back, at once if its observers see another address now.

Sans-IO: events go in, effects come out; the time comes in as `now`.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from croft.model.ids import PeerId, TwinId

STALE_S: Final = 120.0
"""An address that no observer stands for any more is kept this long: links come and go."""
OBSERVERS_MAX: Final = 64
TRIED_MAX: Final = 2
BELIEVED_MAX: Final = 4
STEP: Final = "address observation"


class Nat(enum.StrEnum):
    """What stands between this peer and the others, as far as they can tell."""

    UNKNOWN = "unknown"
    NONE = "none"
    FULL_CONE = "full cone"
    PORT_RESTRICTED = "port-restricted"
    SYMMETRIC = "symmetric"


@dataclass(frozen=True, slots=True)
class Observer:
    """Who says it. `host` is where we see it: the host part of its address."""

    peer: PeerId
    twin: TwinId
    host: str


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """An observer sees us at `host`:`port`."""

    observer: Observer
    host: str
    port: int
    now: float


@dataclass(frozen=True, slots=True)
class ObserverGone:
    """The connection to an observer ended, or is no longer direct."""

    peer: PeerId
    now: float


@dataclass(frozen=True, slots=True)
class CameIn:
    """Somebody whom we had sent nothing reached us directly from another network."""

    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; `own_hosts` are the addresses of this machine's interfaces."""

    own_hosts: Collection[str]
    now: float


Event = Seen | ObserverGone | CameIn | Tick


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Count this `host`:`port` among our addresses."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    """Take it back."""

    host: str
    port: int


Effect = AddAddress | RemoveAddress


@dataclass(slots=True)
class _Word:
    observer: Observer
    host: str
    port: int
    at: float
    is_live: bool = True


class AddressObservation:
    """What others see of this peer."""

    def __init__(self, own_hosts: Collection[str]) -> None:
        self._own_hosts = frozenset(own_hosts)
        self._words: dict[PeerId, _Word] = {}
        self._believed: dict[tuple[str, int], float] = {}
        self._added: dict[tuple[str, int], None] = {}
        self._came_in_at: float | None = None
        self._nat = Nat.UNKNOWN

    @property
    def believed(self) -> list[tuple[str, int]]:
        """Outside addresses fit to be told to others."""
        return list(self._believed)

    def nat(self) -> Nat:
        """The kind of NAT; without observers, what it was when there were some."""
        return self._nat

    def _nat_by_words(self) -> Nat:
        words = [word for word in self._words.values() if word.is_live]
        if not words:
            return Nat.UNKNOWN
        if any(word.host in self._own_hosts for word in words):
            return Nat.NONE if all(word.host in self._own_hosts for word in words) else self._behind(words)
        return self._behind(words)

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`."""
        match event:
            case Seen(observer, host, port, now):
                if observer.peer not in self._words and len(self._words) >= OBSERVERS_MAX:
                    self._words.pop(next(iter(self._words)))
                self._words[observer.peer] = _Word(observer, host, port, now)
                return self._settle(now)
            case ObserverGone(peer, now):
                if word := self._words.get(peer):
                    word.is_live, word.at = False, now
                return self._settle(now)
            case CameIn(now):
                self._came_in_at = now
                return self._settle(now)
            case Tick(own_hosts, now):
                if frozenset(own_hosts) != self._own_hosts:
                    # Another network: what was seen before was of the old one.
                    self._own_hosts = frozenset(own_hosts)
                    self._words.clear()
                    self._believed.clear()
                    self._came_in_at = None
                    self._nat = Nat.UNKNOWN
                return self._settle(now)
            case _:
                assert_never(event)

    def _behind(self, words: Sequence[_Word]) -> Nat:
        outside = [word for word in words if word.host not in self._own_hosts]
        by_host: dict[str, dict[int, None]] = {}
        places: dict[str, dict[tuple[TwinId, str], None]] = {}
        for word in outside:
            by_host.setdefault(word.host, {})[word.port] = None
            places.setdefault(word.host, {})[word.observer.twin, word.observer.host] = None
        # The host that most places name; a liar alone names another.
        host = max(by_host, key=lambda host: len(places[host]))
        if len(places[host]) < 2:
            return Nat.UNKNOWN
        agreed = [port for port in by_host[host] if self._is_agreed(host, port)]
        if not agreed:
            return Nat.SYMMETRIC
        return Nat.FULL_CONE if self._came_in_at is not None else Nat.PORT_RESTRICTED

    def _is_agreed(self, host: str, port: int) -> bool:
        sayers = [w.observer for w in self._words.values() if w.is_live and (w.host, w.port) == (host, port)]
        return any(one.twin != other.twin and one.host != other.host for one in sayers for other in sayers)

    def _settle(self, now: float) -> Sequence[Effect]:
        for peer in [peer for peer, word in self._words.items() if not word.is_live and now - word.at > STALE_S]:
            del self._words[peer]
        live = [word for word in self._words.values() if word.is_live and word.host not in self._own_hosts]
        said = dict.fromkeys((word.host, word.port) for word in live)
        for address in said:
            if self._is_agreed(*address):
                self._believed[address] = now
        hosts_seen = {host for host, _ in said}
        for address, at in list(self._believed.items()):
            is_contradicted = address not in said and address[0] in hosts_seen
            if is_contradicted or now - at > STALE_S:
                del self._believed[address]
        while len(self._believed) > BELIEVED_MAX:
            del self._believed[min(self._believed, key=lambda address: self._believed[address])]
        nat = self._nat_by_words()
        if nat is not Nat.UNKNOWN:
            self._nat = nat
        return self._bring_in_line(said)

    def _bring_in_line(self, said: dict[tuple[str, int], None]) -> Sequence[Effect]:
        tried = [address for address in said if address not in self._believed]
        # Behind a symmetric NAT no word is of use to anybody but its speaker.
        if self.nat() is Nat.SYMMETRIC:
            tried = []
        wanted = dict.fromkeys([*self._believed, *tried[-TRIED_MAX:]])
        effects: list[Effect] = [RemoveAddress(*address) for address in self._added if address not in wanted]
        effects += [AddAddress(*address) for address in wanted if address not in self._added]
        self._added = wanted
        return effects
