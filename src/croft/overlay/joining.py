"""The joiner's side of an invitation: what to send, and whether the answer comes from whom the invitation is.

Sans-IO. The transport has proved which peer was dialled; here is checked that this peer's twin made the invitation
and signed the grant, or, for a spoken code, that the peer knows the code too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from croft.errors import Busy, CroftError, PeerMisbehaved, Refused
from croft.identity.certificates import Certified, clean_name, open_certificate
from croft.identity.grants import verify_chain
from croft.model.ids import CommunityId, PeerId, TwinId, is_key_id, short
from croft.overlay.contacts import CONTACTS_MAX, Contact, Trust
from croft.overlay.invitation import open_token
from croft.overlay.invitation_code import ASK_AGAIN, Line, SpokenCode
from croft.overlay.join_messages import (
    MEMBERS_MAX,
    Admitted,
    DeviceAdmitted,
    JoinRefused,
    PakeAnswer,
    PakeConfirm,
    PakeStart,
    Redeem,
)
from croft.overlay.spoken_proof import JoinerProof

STEP = "joining"
REASON_CHARS_MAX = 500
MEMBERSHIPS_MAX = 64
NO_PROOF = "a proof of a code in answer to a line"

W = TypeVar("W", covariant=True)
REFUSAL_CODES = frozenset(
    {
        "invitation_wrong",
        "invitation_used",
        "invitation_expired",
        "invitation_withdrawn",
        "invitation_locked",
        "join_broken",
    }
)


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a checked `Admitted` says. `members` are signed descriptors, each still to be checked by its reader."""

    community: CommunityId
    name: str
    grant_chain: tuple[bytes, ...]
    inviter: Certified
    members: tuple[bytes, ...]
    clock: float = 0.0


@dataclass(frozen=True, slots=True)
class DeviceWelcome:
    """What a checked `DeviceAdmitted` says. `memberships`: each with members' descriptors, still to be checked."""

    certificate: bytes
    inviter: Certified
    memberships: tuple[Welcome, ...]
    contacts: tuple[Contact, ...]


class Joiner(Protocol[W]):
    """One way to come in: what to say, and what the answers mean. An answer out of place is a PeerMisbehaved."""

    def start(self) -> Redeem | PakeStart: ...

    def answered(self, message: PakeAnswer) -> PakeConfirm: ...

    def admitted(self, message: Admitted | DeviceAdmitted, now: float) -> W: ...


class DeviceJoiner:
    """Becomes a device of the twin that made a line."""

    def __init__(self, line: Line, own: PeerId, certificate: bytes) -> None:
        self._line = line
        self._own = own
        self._certificate = certificate

    def start(self) -> Redeem:
        """The first and only message to send."""
        return Redeem(self._line.token, self._certificate)

    def answered(self, message: PakeAnswer) -> PakeConfirm:
        """Nothing is to be proven besides the token."""
        raise PeerMisbehaved(NO_PROOF, step=STEP)

    def admitted(self, message: Admitted | DeviceAdmitted, now: float) -> DeviceWelcome:
        """What the answer says. Raises PeerMisbehaved if it is not from the twin that made the line."""
        if not isinstance(message, DeviceAdmitted):
            raise PeerMisbehaved("a line for a device made this peer a member instead", step=STEP)
        inviter = open_certificate(message.inviter_certificate, step=STEP)
        if inviter.peer != self._line.inviter:
            raise PeerMisbehaved("the inviter shows the certificate of another device", step=STEP)
        try:
            _, named, _ = open_token(self._line.token, inviter.twin)
        except Refused:
            raise PeerMisbehaved("the inviter's twin did not make this invitation", step=STEP) from None
        certified = open_certificate(message.certificate, step=STEP)
        if str(named) != inviter.twin or certified.twin != inviter.twin or certified.peer != self._own:
            raise PeerMisbehaved("not certified as a device of the inviter's twin", step=STEP)
        if not 0 < len(message.memberships) <= MEMBERSHIPS_MAX or len(message.contacts) > CONTACTS_MAX:
            raise PeerMisbehaved("no memberships, or too many of them or of contacts", step=STEP)
        memberships = []
        for community, name, chain, members in message.memberships:
            try:
                verify_chain(CommunityId(community), chain, inviter.twin, now)
            except Refused as refused:
                raise PeerMisbehaved(f"the grant does not hold: {refused.message}", step=STEP) from None
            found = tuple(members[:MEMBERS_MAX])
            memberships.append(Welcome(CommunityId(community), clean_name(name), tuple(chain), inviter, found))
        contacts = tuple(_contact(*contact, now) for contact in message.contacts)
        return DeviceWelcome(message.certificate, inviter, tuple(memberships), contacts)


class LineJoiner:
    """Joins by a line."""

    def __init__(self, line: Line, twin: TwinId, certificate: bytes) -> None:
        self._line = line
        self._twin = twin
        self._certificate = certificate

    def start(self) -> Redeem:
        """The first and only message to send."""
        return Redeem(self._line.token, self._certificate)

    def answered(self, message: PakeAnswer) -> PakeConfirm:
        """Nothing is to be proven besides the token."""
        raise PeerMisbehaved(NO_PROOF, step=STEP)

    def admitted(self, message: Admitted | DeviceAdmitted, now: float) -> Welcome:
        """What the answer says. Raises PeerMisbehaved if it is not from the twin that made the line."""
        message = _as_member(message)
        welcome = _welcome(message, self._line.inviter, self._twin, now)
        try:
            _, community, _ = open_token(self._line.token, welcome.inviter.twin)
        except Refused:
            raise PeerMisbehaved("the inviter's twin did not make this invitation", step=STEP) from None
        if community != welcome.community:
            raise PeerMisbehaved("admitted to another community than the invitation's", step=STEP)
        return welcome


class SpokenJoiner:
    """Joins by a spoken code, proven to one peer that was found on the LAN. Use one for each peer tried."""

    def __init__(
        self, code: SpokenCode, joiner: PeerId, inviter: PeerId, twin: TwinId, certificate: bytes, seed: bytes
    ) -> None:
        self._code = code
        self._inviter = inviter
        self._twin = twin
        self._certificate = certificate
        self._proof = JoinerProof(code, joiner, inviter, seed)
        self._community = CommunityId("")

    def start(self) -> PakeStart:
        """The first message to send."""
        return PakeStart(self._code.nameplate, self._proof.message)

    def answered(self, message: PakeAnswer) -> PakeConfirm:
        """The second message to send. Raises PeerMisbehaved."""
        if not is_key_id(message.community):
            raise PeerMisbehaved("an answer that names no community", step=STEP)
        self._community = CommunityId(message.community)
        self._proof.finish(message.message)
        return PakeConfirm(self._proof.confirmation(self._community, self._certificate), self._certificate)

    def admitted(self, message: Admitted | DeviceAdmitted, now: float) -> Welcome:
        """What the answer says. Raises PeerMisbehaved unless the sender knows the code."""
        message = _as_member(message)
        if not self._community:
            raise PeerMisbehaved("admitted before the code was proven", step=STEP)
        if not self._proof.is_confirmed(message.confirmation, self._community, self._certificate):
            raise PeerMisbehaved("the peer that answered does not know the code", step=STEP)
        if message.community != self._community:
            raise PeerMisbehaved("admitted to another community than the code's", step=STEP)
        return _welcome(message, self._inviter, self._twin, now)


def refusal(message: JoinRefused, inviter: PeerId) -> CroftError:
    """The error for the user that a refusal stands for; its `code` tells the kinds apart."""
    text = clean_text(message.message) or "no reason given"
    kind = Busy if message.code == Busy.code else Refused
    error = kind(f"{short(inviter)} did not let this peer join: {text}", remedy=clean_text(message.remedy) or ASK_AGAIN)
    if message.code in REFUSAL_CODES:
        error.code = message.code
    return error


def clean_text(text: str) -> str:
    """Text of a peer's, fit for a terminal."""
    return "".join(letter for letter in text[:REASON_CHARS_MAX] if letter.isprintable()).strip()


def _as_member(message: Admitted | DeviceAdmitted) -> Admitted:
    """Nobody's machine is taken over by an invitation to a community."""
    if not isinstance(message, Admitted):
        raise PeerMisbehaved("an invitation to a community would make this peer a device of somebody else", step=STEP)
    return message


def _contact(twin: str, petname: str, trust: str, is_blocked: bool, now: float) -> Contact:
    if not is_key_id(twin) or trust not in set(Trust):
        raise PeerMisbehaved("a contact that is none", step=STEP)
    return Contact(TwinId(twin), clean_name(petname) if petname else "", Trust(trust), is_blocked, now)


def _welcome(message: Admitted, inviter: PeerId, twin: TwinId, now: float) -> Welcome:
    if not is_key_id(message.community):
        raise PeerMisbehaved("admitted to what is no community", step=STEP)
    if len(message.members) > MEMBERS_MAX:
        raise PeerMisbehaved(f"{len(message.members)} members' records at once", step=STEP)
    certified = open_certificate(message.certificate, step=STEP)
    if certified.peer != inviter:
        raise PeerMisbehaved("the inviter shows the certificate of another device", step=STEP)
    community = CommunityId(message.community)
    try:
        verify_chain(community, message.grant_chain, twin, now)
        # The last link is signed by the member before it: that must be the inviter, unless both are one twin's.
        if certified.twin != twin:
            verify_chain(community, message.grant_chain[:-1], certified.twin, now)
    except Refused as refused:
        raise PeerMisbehaved(f"the grant does not hold: {refused.message}", step=STEP) from None
    chain, members = tuple(message.grant_chain), tuple(message.members)
    return Welcome(community, clean_name(message.name), chain, certified, members, message.clock)
