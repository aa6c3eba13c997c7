"""Lets newcomers in, and comes in elsewhere: the shell of `invitation` and `joining`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, assert_never

from croft.errors import (
    Busy,
    ConnectionLost,
    CroftError,
    Failed,
    NotFound,
    PeerMisbehaved,
    Refused,
    TimedOut,
    Unreachable,
)
from croft.identity.certificates import open_certificate
from croft.identity.grants import admit, check_may_admit, found
from croft.identity.keys import SECRET_BYTES, SecretKey, community_key
from croft.model.ids import CommunityId, PeerId, TwinId, short
from croft.overlay import invitation as core
from croft.overlay.device_admission import check_is_fresh, hand_over, keep
from croft.overlay.devices import NEEDS_KEY
from croft.overlay.invitation_code import Line, SpokenCode, parse_code
from croft.overlay.join_messages import (
    FROM_INVITER_BYTES_MAX,
    JOIN_PROTOCOL,
    TO_INVITER_BYTES_MAX,
    Admitted,
    DeviceAdmitted,
    FromInviter,
    JoinRefused,
    PakeAnswer,
    PakeStart,
    ToInviter,
)
from croft.overlay.joining import DeviceJoiner, Joiner, LineJoiner, SpokenJoiner, W, Welcome, refusal
from croft.overlay.passport import Membership
from croft.overlay.spoken_proof import SEED_BYTES
from croft.ports import RelayAccess
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    import sqlite3

    from croft.overlay.service import Overlay
    from croft.ports import Clock, Connection, Database, Discovery, Entropy

log = logging.getLogger(__name__)

DIAL_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 20.0
JOINERS_MAX = 32
JOINER_S_MAX = 60.0
TICK_S = 5.0
FIND_TIMEOUT_S = 6.0
RECORD_BYTES_IN_ALL_MAX = FROM_INVITER_BYTES_MAX - (64 << 10)
FIELDS = tuple(field.name for field in dataclasses.fields(core.Invitation))
COLUMNS = ", ".join(FIELDS)
"""The table `invitation` has a column for each field."""


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """Where this peer came in, by whom, and whose device it is there.

    `is_to_start_anew`: as another twin's; all that is needed is kept for the next start.
    """

    membership: Membership
    inviter: str
    twin: TwinId
    members: int
    is_to_start_anew: bool = False


class Admissions:
    """This peer's invitations, both made and redeemed. `load` before `serve`."""

    def __init__(
        self,
        overlay: Overlay,
        database: Database,
        clock: Clock,
        entropy: Entropy,
        discovery: Discovery,
        root: bytes | None,
        twin_key: SecretKey | None,
        adopt: Callable[[bytes], None],
    ) -> None:
        self._overlay = overlay
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self._discovery = discovery
        self._root = root
        self._twin_key = twin_key
        self._adopt = adopt
        # Without the twin's key nothing can be signed: then no invitation is ever made, and all are refused.
        self._signer = twin_key or SecretKey(entropy.token(SECRET_BYTES))
        self._core = core.Invitations(self._signer, overlay.own.peer)
        self.relay_passes: Callable[[str, float], Sequence[tuple[str, str]]] = lambda *_: ()
        self.trust_relays: Callable[[Sequence[str]], None] = lambda _: None
        self.check_invites: Callable[[CommunityId, bool], None] = lambda community, is_for_guest: None
        """Raises Refused if the community's rules let this twin invite nobody, or make nobody a guest."""
        self.check_admits: Callable[[CommunityId, TwinId, bool], None] = lambda community, twin, is_for_guest: None
        """Raises Refused if this twin may not let that one in, Busy if it cannot yet."""
        self.admitted: Callable[[CommunityId, TwinId, str, bool], None] = lambda *_: None
        """Told of each newcomer, what they call themselves, and whether they come in as a guest."""
        self._published: set[int] = set()
        self._joiners = 0
        self._lock = asyncio.Lock()

    # --- what the owner does -----------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Takes in what the last run left on disk."""

        def read(db: sqlite3.Connection) -> list[core.Invitation]:
            rows = db.execute(f"SELECT {COLUMNS} FROM invitation").fetchall()
            return [
                core.Invitation(
                    **{**fields, "state": core.State(fields["state"]), "is_for_guest": bool(fields["is_for_guest"])}
                )
                for fields in (dict(zip(FIELDS, row, strict=True)) for row in rows)
            ]

        self._core = core.Invitations(self._signer, self._overlay.own.peer, await self._database.run(read))

    async def invite(
        self, lifetime_s: float, *, is_spoken: bool, community: CommunityId | None = None, is_for_guest: bool = False
    ) -> core.Created:
        """A new invitation to a community: this peer's first, which is founded if there is none, or another one.

        Raises Refused, Busy.
        """
        self._check_holds_key("invite nobody")
        membership = await self._community() if community is None else self._overlay.passport.memberships[community]
        check_may_admit(membership.chain)
        self.check_invites(membership.community, is_for_guest)
        return await self._create(membership.community, lifetime_s, is_spoken=is_spoken, is_for_guest=is_for_guest)

    async def add_device(self, lifetime_s: float) -> core.Created:
        """A line that makes a fresh machine one more device of this twin. Raises Refused, Busy."""
        self._check_holds_key("add no device")
        # Devices find each other as members do, so there must be something that they are members of.
        await self._community()
        return await self._create(CommunityId(self._overlay.own.twin), lifetime_s, is_spoken=False)

    async def _create(
        self, community: CommunityId, lifetime_s: float, *, is_spoken: bool, is_for_guest: bool = False
    ) -> core.Created:
        created = self._core.create(
            community,
            addresses=list(self._overlay.addresses()),
            now=self._clock.now(),
            lifetime_s=lifetime_s,
            is_spoken=is_spoken,
            seed=self._entropy.token(SEED_BYTES),
            is_for_guest=is_for_guest,
            passes=self.relay_passes,
        )
        await self._save(created.invitation)
        await self._publish()
        return created

    def invitations(self) -> list[core.Invitation]:
        """Those made here, newest first."""
        return self._core.all()[::-1]

    async def withdraw(self, invitation: str) -> core.Invitation:
        """Makes an open invitation worthless. Raises NotFound, Refused."""
        row = self._core.withdraw(invitation, self._clock.now())
        await self._save(row)
        await self._publish()
        return row

    async def serve(self) -> None:
        """Keeps the spoken codes on the LAN, and forgets what is over; ends by cancellation."""
        try:
            while True:
                await self._perform(self._core.handle(core.TimePassed(self._clock.now())), None)
                await self._publish()
                await asyncio.sleep(TICK_S)
        finally:
            self._published.clear()
            await self._discovery.close()

    # --- letting in --------------------------------------------------------------------------------------------------

    async def accept(self, connection: Connection) -> None:
        """Serves one connection of `croft/join/1`."""
        if self._joiners >= JOINERS_MAX:
            connection.close(1, "too many are joining at once")
            return
        self._joiners += 1
        try:
            async with asyncio.timeout(JOINER_S_MAX):
                await self._converse(connection)
        except (TimeoutError, ConnectionLost):
            pass
        except PeerMisbehaved as fault:
            log.warning("stranger %s, joining: %s", short(connection.remote), fault)
        finally:
            self._joiners -= 1
            connection.close(0, "done")
            await self._perform(self._core.handle(core.PeerLeft(connection.remote)), None)

    async def _converse(self, connection: Connection) -> None:
        stream = await connection.accept_stream()
        async with MessageStream(stream, step=core.STEP, frame_bytes_max=TO_INVITER_BYTES_MAX) as messages:
            while (payload := await messages.receive()) is not None:
                message: ToInviter = decode_union(payload, ToInviter, step=core.STEP)
                seed = self._entropy.token(SEED_BYTES)
                async with self._lock:
                    # One at a time: what is saved for one joiner is on disk before the next is judged.
                    if (refusal := self._kept_out(connection.remote, message)) is not None:
                        messages.post(JoinRefused(refusal.code, refusal.message, refusal.remedy))
                        continue
                    event = core.Received(connection.remote, message, self._clock.now(), seed)
                    await self._perform(self._core.handle(event), messages)
                await messages.flush()

    def _kept_out(self, peer: PeerId, message: ToInviter) -> Refused | None:
        """Why this joiner is not even asked for its invitation, which so is not used up."""
        if isinstance(message, PakeStart):
            return None
        try:
            certified = open_certificate(message.certificate, step=core.STEP)
            self._overlay.door.admit(peer, certified.twin)
        except PeerMisbehaved:
            return None  # the core says so
        except Refused as refusal:
            log.info("refused %s (%s), joining: %s", certified.name, short(peer), refusal.message)
            return refusal
        return None

    async def _perform(self, effects: Sequence[core.Effect], messages: MessageStream | None) -> None:
        for effect in effects:
            match effect:
                case core.Save(row):
                    await self._save(row)
                case core.Forget(number):
                    await self._delete(number)
                case core.Reply(_, message):
                    if messages is not None:
                        messages.post(message)
                case core.Admit():
                    assert messages is not None, "somebody asked to be admitted"
                    messages.post(self._admit_device(effect) if self._is_for_device(effect) else self._admit(effect))
                case _:
                    assert_never(effect)

    def _is_for_device(self, effect: core.Admit) -> bool:
        return self._core.is_for_device(effect.community)

    def _admit_device(self, effect: core.Admit) -> DeviceAdmitted:
        log.info("certified device %s (%s)", effect.name, short(effect.peer))
        return hand_over(self._overlay, self._signer, effect, self._clock.now())

    def _admit(self, effect: core.Admit) -> Admitted | JoinRefused:
        membership = self._overlay.passport.memberships.get(effect.community)
        if membership is None:
            return JoinRefused("refused", "its owner has left that community", "Ask another member for an invitation.")
        try:
            self.check_admits(effect.community, effect.twin, effect.is_for_guest)
            chain = admit(self._signer, membership.chain, effect.community, effect.twin)
            self.admitted(effect.community, effect.twin, effect.name, effect.is_for_guest)
        except (Refused, Busy) as error:
            return JoinRefused(error.code, error.message, error.remedy)
        log.info("admitted %s (%s) to %s", effect.name, short(effect.peer), membership.name)
        records: list[bytes] = []
        size = 0
        for member in self._overlay.community_members(effect.community):
            size += len(member.record)
            if size > RECORD_BYTES_IN_ALL_MAX:
                break
            records.append(member.record)
        certificate = self._overlay.own.certificate
        now = self._clock.now()
        return Admitted(effect.community, membership.name, chain, certificate, records, effect.confirmation, now)

    # --- coming in ---------------------------------------------------------------------------------------------------

    async def join(self, code: str) -> Arrival:
        """Joins a community by a line or a spoken code; or another twin, by a line for a device.

        Raises Usage, NotFound, Refused or Unreachable.
        """
        parsed = parse_code(code)
        own = self._overlay.own
        match parsed:
            case Line(_, inviter, addresses, shown, is_for_device):
                if inviter == own.peer:
                    raise Refused("this invitation was made on this very peer", remedy="Use it on another machine.")
                if is_for_device:
                    return await self._become_device(parsed)
                joiner = LineJoiner(parsed, own.twin, own.certificate)
                relays = [RelayAccess(url, bearer) for url, bearer in shown]
                welcome = await self._join_at(inviter, addresses, joiner, relays)
                self.trust_relays([url for url, _ in shown])
            case SpokenCode():
                welcome = await self._join_spoken(parsed)
            case _:
                assert_never(parsed)
        membership = Membership(welcome.community, welcome.name, welcome.grant_chain)
        await self._overlay.enter(membership, welcome.members, clock=welcome.clock)
        members = len(self._overlay.community_members(membership.community))
        return Arrival(membership, welcome.inviter.name, own.twin, members)

    async def _become_device(self, line: Line) -> Arrival:
        own = self._overlay.own
        check_is_fresh(self._overlay)
        joiner = DeviceJoiner(line, own.peer, own.certificate)
        relays = [RelayAccess(url, bearer) for url, bearer in line.relays]
        welcome = await self._join_at(line.inviter, line.addresses, joiner, relays)
        await keep(self._database, welcome, self._clock.now())
        self._adopt(welcome.certificate)
        first, inviter = welcome.memberships[0], welcome.inviter
        membership = Membership(first.community, first.name, first.grant_chain)
        return Arrival(membership, inviter.name, inviter.twin, len(first.members) + 1, is_to_start_anew=True)

    async def _join_spoken(self, code: SpokenCode) -> Welcome:
        own = self._overlay.own
        found_peers = await self._discovery.find(code.nameplate, FIND_TIMEOUT_S)
        error: CroftError = NotFound(
            f"nobody on this network has invitation number {code.nameplate} open",
            remedy="Check the number, or use the long line that `croft invite` prints.",
        )
        for inviter, addresses in found_peers:
            if inviter == own.peer:
                continue
            seed = self._entropy.token(SEED_BYTES)
            joiner = SpokenJoiner(code, own.peer, inviter, own.twin, own.certificate, seed)
            try:
                return await self._join_at(inviter, addresses, joiner)
            except CroftError as failure:
                error = failure
        raise error

    async def _join_at(
        self,
        inviter: PeerId,
        addresses: Sequence[str],
        joiner: Joiner[W],
        relays: Sequence[RelayAccess] = (),
    ) -> W:
        connection = await self._overlay.dial(inviter, addresses, JOIN_PROTOCOL, DIAL_TIMEOUT_S, relays)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await self._ask(connection, joiner)
        except TimeoutError:
            raise TimedOut(f"{short(inviter)} did not answer the invitation", remedy="Try again.") from None
        except ConnectionLost as lost:
            raise Unreachable(f"the connection to {short(inviter)} ended while joining: {lost}") from None
        except PeerMisbehaved as fault:
            raise Failed(
                f"{short(inviter)} does not keep to the protocol: {fault}", remedy="Ask for another invitation."
            ) from None
        finally:
            connection.close(0, "done")

    async def _ask(self, connection: Connection, joiner: Joiner[W]) -> W:
        stream = await connection.open_stream()
        async with MessageStream(stream, step=core.STEP, frame_bytes_max=FROM_INVITER_BYTES_MAX) as messages:
            messages.post(joiner.start())
            while True:
                payload = await messages.receive()
                if payload is None:
                    raise ConnectionLost("closed without an answer")
                message: FromInviter = decode_union(payload, FromInviter, step=core.STEP)
                match message:
                    case JoinRefused():
                        raise refusal(message, connection.remote)
                    case PakeAnswer():
                        messages.post(joiner.answered(message))
                    case _:
                        return joiner.admitted(message, self._clock.now())

    # --- inside ------------------------------------------------------------------------------------------------------

    def _check_holds_key(self, what: str) -> None:
        if self._twin_key is None:
            raise Refused(f"this device does not hold your key, and can {what}", remedy=NEEDS_KEY)

    async def _community(self) -> Membership:
        for membership in self._overlay.communities():
            return membership
        assert self._root is not None, "whoever holds the twin's key holds what it is made from"
        key = community_key(self._root, b"first")
        own = self._overlay.own
        community = CommunityId(key.public)
        membership = Membership(community, f"{own.name}'s circle", tuple(found(key, own.twin)))
        await self._overlay.enter(membership)
        return membership

    async def _save(self, row: core.Invitation) -> None:
        values = tuple(str(value) if isinstance(value, core.State) else value for value in dataclasses.astuple(row))
        marks = ", ".join("?" * len(values))
        await self._database.run(
            lambda db: db.execute(f"INSERT OR REPLACE INTO invitation ({COLUMNS}) VALUES ({marks})", values).rowcount
        )

    async def _delete(self, number: str) -> None:
        await self._database.run(lambda db: db.execute("DELETE FROM invitation WHERE id = ?", (number,)).rowcount)

    async def _publish(self) -> None:
        """Brings the LAN's view in line: each open spoken code is announced, no other."""
        wanted = {row.nameplate for row in self._core.spoken(self._clock.now()) if row.nameplate is not None}
        with contextlib.suppress(CroftError):
            for nameplate in sorted(self._published - wanted):
                self._published.discard(nameplate)
                await self._discovery.withdraw(nameplate)
            for nameplate in sorted(wanted - self._published):
                self._published.add(nameplate)
                await self._discovery.publish(nameplate, self._overlay.own.peer, list(self._overlay.addresses()))
