"""Decides who may come in: makes invitations, and admits at most one twin by each.

Sans-IO: events go in, effects come out, to be performed in order. A `Save` must be on disk before the effects that
follow it are performed: a guess is counted before it is answered, and an invitation is used before anybody is
admitted by it. What is drawn at random comes in as a seed, the time as `now`.

An invitation is OPEN until it is USED, WITHDRAWN or LOCKED; past `expires_at` it admits nobody, whatever its state.
The peer that used one may ask again for a short time, in case the answer was lost.

An invitation to what is the inviter's own twin, in the place of a community, is for a device of that twin.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, assert_never

from croft.errors import Busy, NotFound, PeerMisbehaved, Refused, Usage
from croft.identity.certificates import Certified, open_certificate
from croft.identity.keys import SecretKey
from croft.identity.tokens import TokenInvalid, make_token, read_token, token_date
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.overlay.invitation_code import (
    ASK_AGAIN,
    NAMEPLATE_MAX,
    Line,
    SpokenCode,
    line_text,
    new_secret,
)
from croft.overlay.join_messages import JoinRefused, PakeAnswer, PakeConfirm, PakeStart, Redeem, ToInviter
from croft.overlay.spoken_proof import SEED_BYTES, InviterProof

GUESSES_MAX: Final = 3
OPEN_MAX: Final = 64
KEPT_MAX: Final = 1_000
LIFETIME_S_MIN: Final = 10.0
LIFETIME_S_MAX: Final = 30 * 86_400.0
SESSIONS_MAX: Final = 16
SESSION_S_MAX: Final = 60.0
ASK_AGAIN_S_MAX: Final = 600.0
"""How long after its use the same peer may ask for the answer again."""
KEPT_S_MAX: Final = 7 * 86_400.0
"""How long past its expiry an invitation stays in the list."""
ID_BYTES: Final = 8
STEP: Final = "joining"


class State(enum.StrEnum):
    """What became of an invitation. `EXPIRED` is never stored: the time says it."""

    OPEN = "open"
    USED = "used"
    WITHDRAWN = "withdrawn"
    LOCKED = "locked"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Invitation:
    """One row of the table `invitation`.

    Attributes:
        created_at, expires_at, used_at: Unix seconds.
        guesses_left: how many more proofs of the spoken code may begin.
        used_by: the peer that came in by it.
        nameplate, secret: the spoken code, if there is one; `secret` is forgotten once it is of no use.
        is_for_guest: whoever uses it comes in as a guest.
    """

    id: str
    community: CommunityId
    created_at: float
    expires_at: float
    state: State = State.OPEN
    guesses_left: int = GUESSES_MAX
    used_by: PeerId | None = None
    nameplate: int | None = None
    secret: str | None = None
    used_at: float | None = None
    is_for_guest: bool = False

    def state_at(self, now: float) -> State:
        """The state, with expiry taken into account."""
        return State.EXPIRED if self.state is State.OPEN and now >= self.expires_at else self.state


@dataclass(frozen=True, slots=True)
class Created:
    """A new invitation, to be saved before it is shown. `line` and `code` are secrets; `code` may be empty."""

    invitation: Invitation
    line: str
    code: str


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """A peer, authenticated by its connection, sent this. `seed`: SEED_BYTES of fresh secret bytes."""

    peer: PeerId
    message: ToInviter
    now: float
    seed: bytes


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """The connection of a joining peer ended."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Time to forget what is over; once a minute is plenty."""

    now: float


Event = Received | PeerLeft | TimePassed


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Save:
    """Write this row, durably, before what follows."""

    invitation: Invitation


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete the row of that id."""

    id: str


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this to the peer; after a refusal, close."""

    peer: PeerId
    message: PakeAnswer | JoinRefused


@dataclass(frozen=True, slots=True)
class Admit:
    """Make this twin a member and tell its device so, with `confirmation` in the message.

    `is_again` if the peer was admitted by the same invitation before and asks for the answer once more.
    """

    peer: PeerId
    twin: TwinId
    name: str
    community: CommunityId
    invitation: str
    confirmation: bytes = b""
    is_again: bool = False
    is_for_guest: bool = False


Effect = Save | Forget | Reply | Admit


@dataclass(slots=True)
class _Session:
    """A proof of a spoken code that waits for the joiner's confirmation."""

    invitation: str
    proof: InviterProof
    ends_at: float


class Invitations:
    """The invitations of one peer. `rows` are what it saved before it was restarted."""

    def __init__(self, twin: SecretKey, peer: PeerId, rows: Iterable[Invitation] = ()) -> None:
        self._twin = twin
        self._peer = peer
        self._rows = {row.id: row for row in rows}
        self._sessions: dict[PeerId, _Session] = {}

    # --- what the owner does -----------------------------------------------------------------------------------------

    def create(
        self,
        community: CommunityId,
        *,
        addresses: Sequence[str],
        now: float,
        lifetime_s: float,
        is_spoken: bool,
        seed: bytes,
        is_for_guest: bool = False,
        passes: Callable[[str, float], Sequence[tuple[str, str]]] = lambda *_: (),
    ) -> Created:
        """A new invitation, made of SEED_BYTES of secret bytes. Raises Usage, or Busy if too many are open.

        `passes` gives, for the invitation's id and expiry, the relays by which a newcomer may come.
        """
        assert len(seed) == SEED_BYTES, "an invitation is made of a full seed"
        if not LIFETIME_S_MIN <= lifetime_s <= LIFETIME_S_MAX:
            raise Usage("an invitation is good for ten seconds at least and thirty days at most")
        if (
            len(self._rows) >= KEPT_MAX
            or sum(row.state_at(now) is State.OPEN for row in self._rows.values()) >= OPEN_MAX
        ):
            raise Busy(
                f"{OPEN_MAX} invitations are open, or {KEPT_MAX} are remembered",
                remedy="Withdraw some: `croft invite list`, `croft invite withdraw`.",
            )
        identifier = seed[:ID_BYTES].hex()
        assert identifier not in self._rows, "eight random bytes do not repeat"
        code = self._new_code(seed[ID_BYTES:], now) if is_spoken else None
        row = Invitation(
            identifier,
            community,
            created_at=now,
            expires_at=now + lifetime_s,
            guesses_left=GUESSES_MAX if code else 0,
            nameplate=code.nameplate if code else None,
            secret=code.secret if code else None,
            is_for_guest=is_for_guest,
        )
        self._rows[row.id] = row
        relays = tuple(passes(row.id, row.expires_at))
        is_for_device = self.is_for_device(row.community)
        line = line_text(Line(self._token(row), self._peer, tuple(addresses), relays, is_for_device))
        return Created(row, line, str(code) if code else "")

    def is_for_device(self, community: str) -> bool:
        """Whether an invitation is to no community, but makes its user a device of this very twin."""
        return community == self._twin.public

    def withdraw(self, identifier: str, now: float) -> Invitation:
        """Makes an open invitation worthless; the row is to be saved. Raises NotFound, or Refused if not open."""
        row = self._rows.get(identifier)
        if row is None:
            raise NotFound(f"there is no invitation {identifier[:40]!r}", remedy="See `croft invite list`.")
        state = row.state_at(now)
        if state is State.WITHDRAWN:
            return row
        if state is not State.OPEN:
            raise Refused(f"the invitation {identifier} is {state} already", remedy="See `croft invite list`.")
        return self._keep(replace(row, state=State.WITHDRAWN, secret=None))

    def all(self) -> list[Invitation]:
        """Every invitation remembered, oldest first."""
        return sorted(self._rows.values(), key=lambda row: (row.created_at, row.id))

    def spoken(self, now: float) -> list[Invitation]:
        """Those whose number is to be found on the LAN now."""
        return [row for row in self.all() if row.nameplate is not None and row.state_at(now) is State.OPEN]

    # --- what joiners do ---------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about an event, in this order."""
        match event:
            case Received():
                return self._received(event.peer, event.message, event.now, event.seed)
            case PeerLeft(peer):
                session = self._sessions.pop(peer, None)
                return self._lock_if_spent(session.invitation) if session else []
            case TimePassed(now):
                return self._tidy(now)
            case _:
                assert_never(event)

    def _received(self, peer: PeerId, message: ToInviter, now: float, seed: bytes) -> Sequence[Effect]:
        match message:
            case Redeem():
                return self._redeem(peer, message, now)
            case PakeStart():
                return self._begin(peer, message, now, seed)
            case PakeConfirm():
                return self._confirm(peer, message, now)
            case _:
                assert_never(message)

    def _redeem(self, peer: PeerId, message: Redeem, now: float) -> Sequence[Effect]:
        certified = self._certified(peer, message.certificate)
        if certified is None:
            return [_broken(peer, "the certificate of the joining device is not valid")]
        try:
            identifier, community, expires_at = open_token(message.token, TwinId(self._twin.public))
        except Refused as refusal:
            return [_refuse(peer, "invitation_wrong", refusal.message)]
        row = self._rows.get(identifier)
        if row is None or row.community != community:
            if now >= expires_at:
                return [_refuse_for(peer, State.EXPIRED)]
            return [_refuse(peer, "invitation_wrong", "the invitation is not known at the peer that it names")]
        return self._admit(row, certified, now, b"") or [self._refuse_row(peer, row, now)]

    def _begin(self, peer: PeerId, message: PakeStart, now: float, seed: bytes) -> Sequence[Effect]:
        effects = self._drop_session(peer, now)
        row = self._of_nameplate(message.nameplate, now)
        if row is None:
            return [*effects, _refuse(peer, "invitation_wrong", f"no code of number {message.nameplate} is open here")]
        is_again = self._may_ask_again(row, peer, now)
        if row.state_at(now) is not State.OPEN and not is_again:
            return [*effects, self._refuse_row(peer, row, now)]
        if not is_again and row.guesses_left <= 0:
            return [*effects, _refuse_for(peer, State.LOCKED)]
        if len(self._sessions) >= SESSIONS_MAX:
            return [*effects, _refuse(peer, "busy", "too many are joining at once", "Try again in a minute.")]
        secret = row.secret
        assert secret is not None, "a code that can be proven has its words"
        if not is_again:
            row = self._keep(replace(row, guesses_left=row.guesses_left - 1))
            effects.append(Save(row))
        proof = InviterProof(SpokenCode(message.nameplate, secret), peer, self._peer, seed)
        try:
            proof.finish(message.message)
        except PeerMisbehaved as fault:
            return [*effects, *self._lock_if_spent(row.id), _broken(peer, str(fault))]
        self._sessions[peer] = _Session(row.id, proof, min(now + SESSION_S_MAX, row.expires_at))
        return [*effects, Reply(peer, PakeAnswer(proof.message, row.community))]

    def _confirm(self, peer: PeerId, message: PakeConfirm, now: float) -> Sequence[Effect]:
        session = self._sessions.pop(peer, None)
        row = self._rows.get(session.invitation) if session else None
        if session is None or row is None:
            return [_broken(peer, "no proof of a code is under way")]
        if now >= session.ends_at:
            late = _broken(peer, "the proof of the code took too long")
            return [*self._lock_if_spent(row.id), late]
        certified = self._certified(peer, message.certificate)
        is_right = session.proof.is_confirmed(message.confirmation, row.community, message.certificate)
        if certified is None or not is_right:
            return self._guessed_wrong(peer, row)
        confirmation = session.proof.confirmation(row.community, message.certificate)
        return self._admit(row, certified, now, confirmation) or [self._refuse_row(peer, row, now)]

    def _guessed_wrong(self, peer: PeerId, row: Invitation) -> Sequence[Effect]:
        left = row.guesses_left if row.state is State.OPEN else 0
        tries = "no more tries" if left == 0 else "one more try" if left == 1 else f"{left} more tries"
        remedy = ASK_AGAIN if left == 0 else "Ask for the words again; they may be spelt otherwise."
        refusal = _refuse(peer, "invitation_wrong", f"the code is wrong; {tries}", remedy)
        return [*self._lock_if_spent(row.id), refusal]

    def _admit(self, row: Invitation, certified: Certified, now: float, confirmation: bytes) -> list[Effect]:
        """The effects of admitting, or nothing if this invitation does not admit this peer now."""
        is_again = self._may_ask_again(row, certified.peer, now)
        if row.state_at(now) is not State.OPEN and not is_again:
            return []
        admit = Admit(
            certified.peer,
            certified.twin,
            certified.name,
            row.community,
            row.id,
            confirmation,
            is_again,
            row.is_for_guest,
        )
        if is_again:
            return [admit]
        used = self._keep(replace(row, state=State.USED, used_by=certified.peer, used_at=now))
        return [Save(used), admit]

    # --- rules -------------------------------------------------------------------------------------------------------

    def _may_ask_again(self, row: Invitation, peer: PeerId, now: float) -> bool:
        return (
            row.state is State.USED
            and row.used_by == peer
            and row.used_at is not None
            and now < min(row.used_at + ASK_AGAIN_S_MAX, row.expires_at)
        )

    def _of_nameplate(self, nameplate: int, now: float) -> Invitation | None:
        """The open invitation of that number, else the newest, so that the refusal can say what became of it."""
        rows = [row for row in self.all() if row.nameplate == nameplate]
        opened = [row for row in rows if row.state_at(now) is State.OPEN]
        assert len(opened) <= 1, "a number is given to one open invitation at a time"
        candidates = opened or rows
        return candidates[-1] if candidates else None

    def _lock_if_spent(self, identifier: str) -> list[Effect]:
        row = self._rows[identifier]
        is_spent = row.nameplate is not None and row.guesses_left <= 0
        if row.state is not State.OPEN or not is_spent or self._is_being_proven(identifier):
            return []
        return [Save(self._keep(replace(row, state=State.LOCKED, secret=None)))]

    def _is_being_proven(self, identifier: str) -> bool:
        return any(session.invitation == identifier for session in self._sessions.values())

    def _drop_session(self, peer: PeerId, now: float) -> list[Effect]:
        """Ends what `peer` began before, and every proof whose time is over."""
        over = [other for other, session in self._sessions.items() if other == peer or now >= session.ends_at]
        ended = [self._sessions.pop(other).invitation for other in over]
        return [effect for identifier in ended for effect in self._lock_if_spent(identifier)]

    def _tidy(self, now: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        for peer in [peer for peer, session in self._sessions.items() if now >= session.ends_at]:
            session = self._sessions.pop(peer)
            effects += self._lock_if_spent(session.invitation)
        for row in self.all():
            if now >= row.expires_at + KEPT_S_MAX:
                del self._rows[row.id]
                effects.append(Forget(row.id))
            elif row.secret is not None and now >= row.expires_at:
                effects.append(Save(self._keep(replace(row, secret=None))))
            elif row.nameplate is not None:
                # After a restart, a proof that was under way is over, and its guess was counted.
                effects += self._lock_if_spent(row.id)
        return effects

    def _keep(self, row: Invitation) -> Invitation:
        self._rows[row.id] = row
        return row

    def _refuse_row(self, peer: PeerId, row: Invitation, now: float) -> Reply:
        return _refuse_for(peer, State.EXPIRED if now >= row.expires_at else row.state)

    def _certified(self, peer: PeerId, certificate: bytes) -> Certified | None:
        try:
            certified = open_certificate(certificate, step=STEP)
        except PeerMisbehaved:
            return None
        return certified if certified.peer == peer else None

    # --- secrets -----------------------------------------------------------------------------------------------------

    def _new_code(self, seed: bytes, now: float) -> SpokenCode:
        taken = {row.nameplate for row in self.spoken(now)}
        free = [number for number in range(1, NAMEPLATE_MAX + 1) if number not in taken]
        assert free, "there are more numbers than open invitations"
        return SpokenCode(free[int.from_bytes(seed[:4], "big") % len(free)], new_secret(seed[4:]))

    def _token(self, row: Invitation) -> bytes:
        return make_token(
            self._twin,
            "invitation({id}); community({community}); expires({at});",
            {"id": row.id, "community": bytes.fromhex(row.community), "at": token_date(row.expires_at)},
        )


def open_token(token: bytes, twin: TwinId) -> tuple[str, CommunityId, float]:
    """Id, community and expiry that a twin signed into the token of a line. Raises Refused; expiry is not judged."""
    try:
        identifier, community, expires_at = read_token(
            token, twin, {"invitation": str, "community": bytes, "expires": datetime}
        )
    except TokenInvalid:
        raise Refused("the invitation was not made by the peer that it names", remedy=ASK_AGAIN) from None
    return identifier, CommunityId(community.hex()), expires_at.timestamp()


_REFUSALS: Final[dict[State, tuple[str, str]]] = {
    State.USED: ("invitation_used", "the invitation has been used already; each works once"),
    State.EXPIRED: ("invitation_expired", "the invitation has expired"),
    State.WITHDRAWN: ("invitation_withdrawn", "the invitation was withdrawn by whoever made it"),
    State.LOCKED: ("invitation_locked", "the code was guessed wrong too often and is locked"),
}


def _refuse_for(peer: PeerId, state: State) -> Reply:
    code, message = _REFUSALS[state]
    return _refuse(peer, code, message)


def _broken(peer: PeerId, message: str) -> Reply:
    return _refuse(peer, "join_broken", message, "Try again; if it stays, upgrade Croft on both machines.")


def _refuse(peer: PeerId, code: str, message: str, remedy: str = ASK_AGAIN) -> Reply:
    return Reply(peer, JoinRefused(code, message, remedy))
