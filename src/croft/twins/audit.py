"""The owner's log of what others did here: each line is chained to the one before, and the device signs the chain.

Whoever changes, takes out or puts in a line breaks the chain; whoever cuts the end off leaves a seal that says how long
the log was. Lines are text for people. Sans-IO.

A line's link is BLAKE3, in key-derivation mode, of the link before and the line's bytes; a seal is the device's
signature over a number and the link there. Source: hash-chained logs (Schneier and Kelsey 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from blake3 import blake3

from croft.errors import PeerMisbehaved
from croft.identity.keys import SecretKey
from croft.wire.codec import Message
from croft.wire.envelope import open_signed, sign

CONTEXT: Final = "croft audit log v1"
SEAL_KIND: Final = "audit seal"
NO_LINK: Final = bytes(32)
TEXT_CHARS_MAX: Final = 200
LINES_KEPT: Final = 100_000
REPEATS_EACH: Final = 20
REPEATS_S: Final = 10.0
"""So many acts of one kind, of one peer, are a line each within that time."""
STEP: Final = "audit log"


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """Something that somebody did here from afar.

    Attributes:
        number: counts all acts of this device. at: Unix seconds. act: what: `call`, `tasks`, `command`, `storage`,
        `tunnel`, …. who: what the peer is called here. peer, twin: its ids. on: the capability, job or service.
        outcome: `ok`, or the code of what went wrong. why: what let it in or kept it out.
    """

    number: int
    at: float
    act: str
    who: str
    peer: str
    twin: str
    on: str = ""
    outcome: str = "ok"
    why: str = ""


class Seal(Message, frozen=True):
    """What the device signs: `first` is the number of the first line that is kept, `before` the link before it;
    `number` is that of the last line, and `link` its link."""

    first: int
    before: bytes
    number: int
    link: bytes


@dataclass(frozen=True, slots=True)
class Line:
    """One line as it is kept."""

    number: int
    text: bytes
    link: bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with the log, at a line."""

    number: int
    what: str


@dataclass
class Chain:
    """The end of the log, to which lines are added."""

    first: int = 1
    before: bytes = NO_LINK
    number: int = 0
    link: bytes = NO_LINK
    added: list[Line] = field(default_factory=list)
    """Since the last seal."""

    def add(self, at: float, act: str, who: str, peer: str, twin: str, on: str, outcome: str, why: str) -> None:
        """One more line."""
        number = self.number + 1
        entry = Act(
            number=number,
            at=round(at, 3),
            act=_text(act),
            who=_text(who),
            peer=peer,
            twin=twin,
            on=_text(on),
            outcome=_text(outcome),
            why=_text(why),
        )
        text = msgspec.json.encode(entry)
        self.number, self.link = number, link_of(self.link, text)
        self.added.append(Line(number, text, self.link))

    def seal(self, device: SecretKey) -> tuple[list[Line], bytes]:
        """The lines since the last seal, and the signature that covers them and all before."""
        lines, self.added = self.added, []
        return lines, sign(device.signer, SEAL_KIND, Seal(self.first, self.before, self.number, self.link))

    def drop_before(self, line: Line, link_before: bytes) -> None:
        """The log begins with this line from now on; what was before was too old to keep."""
        self.first, self.before = line.number, link_before


@dataclass
class Repeats:
    """Keeps a flood of acts of one kind from filling the log: the first of a while are lines, the others a number."""

    seen: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    """By act, peer and outcome: when the while ends, how many there were."""

    def is_line(self, act: str, peer: str, outcome: str, now: float) -> bool:
        """Whether one more is to be a line of its own."""
        counted = self.seen.setdefault((act, peer, outcome), [now + REPEATS_S, 0.0])
        counted[1] += 1
        return counted[1] <= REPEATS_EACH

    def over(self, now: float) -> list[tuple[str, str, str, int]]:
        """What was counted and not written in whiles that are over: act, peer, outcome, and how many."""
        ended = [(key, int(count)) for key, (until, count) in self.seen.items() if until <= now]
        for key, _ in ended:
            del self.seen[key]
        return [(*key, count - REPEATS_EACH) for key, count in ended if count > REPEATS_EACH]


def link_of(before: bytes, text: bytes) -> bytes:
    """The link of a line."""
    return blake3(before + text, derive_key_context=CONTEXT).digest()


def open_seal(record: bytes, device: str) -> Seal:
    """What a seal says. Raises PeerMisbehaved unless this device signed it."""
    signer, seal = open_signed(record, SEAL_KIND, Seal, step=STEP)
    if signer != device:
        raise PeerMisbehaved("a seal of another device", step=STEP)
    return seal


def verify(lines: Sequence[Line], head: bytes | None, device: str) -> list[Finding]:
    """All that is wrong with a log, given its lines in order and its newest seal. Nothing, if nobody touched it."""
    if head is None:
        return [Finding(0, "the seal is missing")] if lines else []
    try:
        seal = open_seal(head, device)
    except PeerMisbehaved as fault:
        return [Finding(0, f"the seal is not this device's: {fault}")]
    findings: list[Finding] = []
    expected, link = seal.first, seal.before
    for line in lines:
        if line.number < expected:
            findings.append(Finding(line.number, f"line {line.number} was put in"))
            continue
        if line.number > expected:
            # What this line was chained to is gone with those before it.
            findings.append(Finding(expected, _missing(expected, line.number - 1)))
        elif link_of(link, line.text) != line.link:
            findings.append(Finding(line.number, f"line {line.number} was changed"))
        if not _is_of(line):
            findings.append(Finding(line.number, f"line {line.number} says something else than it did"))
        expected, link = line.number + 1, line.link
    if expected <= seal.number:
        findings.append(Finding(expected, _missing(expected, seal.number)))
    elif expected > seal.number + 1:
        findings.append(Finding(seal.number + 1, f"lines after {seal.number} were put in"))
    elif link != seal.link and not findings:
        findings.append(Finding(seal.number, f"line {seal.number} or one before it was changed"))
    return findings


def _is_of(line: Line) -> bool:
    """Whether a line tells of an act of its own number."""
    try:
        return msgspec.json.decode(line.text, type=Act).number == line.number
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False


def _missing(first: int, last: int) -> str:
    return f"line {first} is missing" if first == last else f"lines {first} to {last} are missing"


def _text(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:TEXT_CHARS_MAX])
