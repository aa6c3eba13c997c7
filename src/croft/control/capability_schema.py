"""What the local API answers about capabilities, consent, and what others did here; see `croft.control.schema`."""

from __future__ import annotations

import msgspec

from croft.twins.capability_source import Source


class CapabilityWanted(msgspec.Struct, frozen=True, kw_only=True):
    """A capability that this peer is to offer; see `croft offer capability`."""

    name: str
    source: Source
    signature: str
    text: str = ""
    examples: list[str] = []
    needs: list[str] = []
    price: float = 0.0
    is_idempotent: bool = False
    time_s_max: float = 600.0
    to: list[str] = []
    consent: str = "auto"
    slots: int = 1


class ConsentWanted(msgspec.Struct, frozen=True, kw_only=True):
    """A rule of consent: for one capability, or, without a name, for all; `per_day` 0: any number of calls."""

    verdict: str
    capability: str = ""
    who: str = "members"
    per_day: int = 0


class ConsentRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule of consent. `who` as people are called here."""

    number: int
    capability: str
    who: str
    verdict: str
    per_day: int = 0


class ConsentQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A call that waits until the owner says whether it may run."""

    number: int
    capability: str
    by: str
    peer: str
    twin: str
    arguments: str
    asked_at: float
    expires_at: float


class ConsentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The owner's answer; `always`: to this person from now on."""

    is_allowed: bool
    always: bool = False


class AuditWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which acts to show: of a peer or person by name, since a time, at most so many of the newest."""

    who: str = ""
    since: float = 0.0
    count_max: int = 1_000


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """Something that somebody did here from afar; see `croft audit`."""

    number: int
    at: float
    act: str
    who: str
    peer: str
    twin: str
    on: str = ""
    outcome: str = "ok"
    why: str = ""


class AuditState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the log of what others did here is as this peer left it: what is wrong with it, line by line."""

    lines: int
    findings: list[str]


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody lets the owner of this peer call, or this peer others.

    `shown`: the signature as people write it; `signature`: its JSON; `digest`: of that, in hex. `trust`: own, or as the
    owner holds of its twin. `to`, `consent` and `slots` are told of one's own alone. `price`: favours a call.
    """

    name: str
    peer: str
    twin: str
    by: str
    is_own: bool
    shown: str
    signature: str
    digest: str
    text: str = ""
    examples: list[str] = []
    needs: list[str] = []
    price: float = 0.0
    is_idempotent: bool = False
    time_s_max: float = 600.0
    is_alive: bool = True
    trust: str = ""
    to: list[str] = []
    consent: str = ""
    slots: int = 0
    source: str = ""
