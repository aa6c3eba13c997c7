"""What is agreed between who lends and who uses: requests, leases, and what was used under one."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from math import inf

from croft.model.amounts import Amounts
from croft.model.ids import PeerId, TwinId


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks for.

    Attributes:
        key: what the lease is known by: the same key asked for again is the same lease. Holds the asker's proven id.
        peer, twin: who asks. purpose, job: what for; for the owner and the record.
        offers: the offers that stand for this asker now, best first.
        wants: how much. lasts_s: when it must end at the latest; infinite: with its work.
        priority: before which other requests of the same twin it waits; higher goes first.
    """

    key: str
    peer: PeerId
    twin: TwinId
    purpose: str
    job: str
    offers: tuple[str, ...]
    wants: Amounts
    lasts_s: float = inf
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """What was granted. `drawn`: from which offer each resource comes. `granted_at` in Unix seconds."""

    number: int
    request: Request
    drawn: tuple[tuple[str, str], ...] = ()
    granted_at: float = 0.0

    @property
    def amounts(self) -> Amounts:
        """How much its holder has."""
        return self.request.wants

    def offer_of(self, name: str) -> str:
        """The offer from which a resource comes; empty if the lease holds none of it."""
        return next((offer for drawn, offer in self.drawn if drawn == name), "")


class Stage(enum.StrEnum):
    """Where a lease stands. What it holds is taken in every stage."""

    WRITING = "writing"
    """Granted, and not yet on disk: nobody is told."""
    HELD = "held"
    SILENT = "silent"
    """Its holder was lost, and may come back."""
    WARM = "warm"
    """Nobody uses it; given up as soon as somebody needs what it holds."""
    ENDING = "ending"
    """Its box is being closed."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used under a lease, as the lender measured it from outside the box.

    `received_bytes` came from the holder, `sent_bytes` went to it; `tasks`: tasks and commands taken in; `death` says
    which limit or fault ended the box or something in it, if one did.
    """

    cpu_s: float = 0.0
    memory_peak_bytes: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    tasks: int = 0
    death: str = ""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.cpu_s + other.cpu_s,
            max(self.memory_peak_bytes, other.memory_peak_bytes),
            self.received_bytes + other.received_bytes,
            self.sent_bytes + other.sent_bytes,
            self.tasks + other.tasks,
            other.death or self.death,
        )
