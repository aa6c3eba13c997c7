"""Lets calls in to which the owner consents, and writes down who called what: `croft.twins.call_server.Gate`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from croft.errors import CodecError, CroftError, NotFound, Refused
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.twins.audit_log import AuditLog
from croft.twins.call_messages import AskCall
from croft.twins.call_server import WAIT_S_MAX, Caller
from croft.twins.capability_book import CapabilityBook, OwnCapability
from croft.twins.capability_host import CapabilityHost
from croft.twins.capability_schema import CONTENT, FILE, is_file
from croft.twins.consent import Asker, Decision, Verdict
from croft.twins.consent_book import ConsentBook
from croft.wire.values import decode_value

CALL_ACT: Final = "call"
ASKER_KEPT_S: Final = 1.0
"""Who somebody is, is not found out anew for each of a thousand calls."""
ASKERS_MAX: Final = 4_096
ARGUMENTS_SHOWN_MAX: Final = 8
ARGUMENTS_CHARS_MAX: Final = 300
ARGUMENT_CHARS_MAX: Final = 80


class Roles(Protocol):
    """What people are in communities."""

    def role_of(self, community: CommunityId, twin: TwinId) -> str:
        """Such as `member` or `admin`."""
        ...


class Devices(Protocol):
    """Devices of this machine that have one holder at a time."""

    async def hold(self, caller: Caller, capability: str, needs: Sequence[str]) -> Callable[[], None]:
        """Holds those among what is needed; call what is returned once. Raises Busy, Refused."""
        ...


class CallGate:
    """Decides by what is offered to whom, by the owner's rules, and by asking.

    `communities_of`: those of a peer in which it may use what is for members; `known_in`: those it is in at all.
    """

    def __init__(
        self,
        book: CapabilityBook,
        consent: ConsentBook,
        audit: AuditLog,
        roles: Roles,
        devices: Devices,
        own: TwinId,
        is_friend: Callable[[TwinId], bool],
        communities_of: Callable[[PeerId], frozenset[CommunityId]],
        known_in: Callable[[PeerId], frozenset[CommunityId]],
    ) -> None:
        self._book = book
        self._consent = consent
        self._audit = audit
        self._roles = roles
        self._devices = devices
        self._own = own
        self._is_friend = is_friend
        self._communities_of = communities_of
        self._known_in = known_in
        self._askers: dict[PeerId, tuple[Asker, float]] = {}
        self._live: set[AdmittedCall] = set()
        consent.changed = self._consent_changed
        book.withdrawn = self._withdrawn

    async def admit(self, caller: Caller, asked: AskCall, waits: Callable[[], Awaitable[None]]) -> AdmittedCall:
        """See `croft.twins.call_server.Gate`."""
        try:
            row, decision = await self._decide(caller, asked, waits)
            release = await self._devices.hold(caller, row.name, row.terms.needs)
        except CroftError as error:
            self._audit.record(CALL_ACT, caller, asked.name, error.code, error.message)
            raise
        self._consent.counted(decision, caller.twin)
        call = AdmittedCall(self, caller, row, self._book.host(row), decision.why)
        call.release = release
        self._live.add(call)
        return call

    def ended(self, call: AdmittedCall, outcome: str) -> None:
        """A call is over."""
        self._live.discard(call)
        call.release()
        self._audit.record(CALL_ACT, call.caller, call.row.name, outcome, call.why)

    async def _decide(
        self, caller: Caller, asked: AskCall, waits: Callable[[], Awaitable[None]]
    ) -> tuple[OwnCapability, Decision]:
        asker = self._asker(caller)
        row = self._book.find(asked.name)
        if row is None or not asker.is_among(row.to):
            # Whoever it is not for does not learn that it exists.
            raise NotFound(f"no capability `{asked.name[:64]}` here", remedy="See what there is: `croft capabilities`.")
        if asked.signature and asked.signature != row.terms.digest:
            raise NotFound(f"`{row.name}` has another signature by now", remedy="See it again: `croft capabilities`.")
        decision = self._consent.decide(row.name, row.consent, asker)
        if decision.verdict is Verdict.ASK:
            if asked.wait_s > 0:
                await waits()
            arguments, wait_s = in_words(asked), min(asked.wait_s, WAIT_S_MAX)
            await self._consent.ask(row.name, caller.peer, asker, caller.name, arguments, wait_s)
            return row, Decision(Verdict.AUTO, f"the owner was asked: {decision.why}", decision.rule)
        if decision.verdict is Verdict.DENY:
            why = f"the owner does not let you call `{row.name}`: {decision.why}"
            raise Refused(why, remedy="Ask the owner to change that: `croft consent` on their machine.")
        return row, decision

    def _asker(self, caller: Caller) -> Asker:
        """Who that is at present: streams last for days, and people leave communities meanwhile."""
        now = asyncio.get_running_loop().time()
        known = self._askers.get(caller.peer)
        if known is not None and now - known[1] < ASKER_KEPT_S:
            return known[0]
        twin, communities = caller.twin, self._communities_of(caller.peer)
        # Guests have a role too, though what is for members is not for them.
        roles = {self._roles.role_of(community, twin) for community in self._known_in(caller.peer)} - {""}
        asker = Asker(twin, communities, twin == self._own, self._is_friend(twin), frozenset(roles))
        if len(self._askers) >= ASKERS_MAX:
            self._askers.clear()
        self._askers[caller.peer] = asker, now
        return asker

    def _withdrawn(self, name: str) -> None:
        for call in [call for call in self._live if call.row.name == name]:
            call.revoke()

    def _consent_changed(self) -> None:
        """Calls that answer once go on under the rules by which they came; streams, which may last for ever, do not."""
        for call in list(self._live):
            if call.row.signature.streams or call.row.signature.stream_in:
                verdict = self._consent.decide(call.row.name, call.row.consent, self._asker(call.caller)).verdict
                if verdict is Verdict.DENY:
                    call.revoke()


class AdmittedCall:
    """See `croft.twins.call_server.Admitted`."""

    def __init__(self, gate: CallGate, caller: Caller, row: OwnCapability, host: CapabilityHost, why: str) -> None:
        self.host = host
        self.time_s_max = row.terms.time_s_max
        self.caller = caller
        self.row = row
        self.why = why
        self.revoke: Callable[[], None] = lambda: None
        self.release: Callable[[], None] = lambda: None
        self._gate = gate

    def ended(self, outcome: str) -> None:
        """It is over: `ok`, or the code of its failure."""
        self._gate.ended(self, outcome)


def in_words(asked: AskCall) -> str:
    """The arguments of a call, for its owner to judge; as much of them as fits a line."""
    if not asked.is_whole:
        return "more than fits here"
    try:
        arguments = decode_value(asked.arguments)
    except CodecError:
        return "arguments that cannot be read"
    if not isinstance(arguments, dict):
        return "no arguments by name"
    text = ", ".join(f"{name}={_in_words(value)}" for name, value in list(arguments.items())[:ARGUMENTS_SHOWN_MAX])
    return text[:ARGUMENTS_CHARS_MAX]


def _in_words(value: object) -> str:
    if is_file(value) and isinstance(value, dict):
        return f"file {str(value[FILE])[:60]!r} of {len(value[CONTENT]):,} bytes"
    if isinstance(value, bytes | bytearray):
        return f"{len(value):,} bytes"
    text = repr(value)
    return text if len(text) <= ARGUMENT_CHARS_MAX else text[:ARGUMENT_CHARS_MAX] + "…"
