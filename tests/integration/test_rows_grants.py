"""I2 and I6: nothing is allowed until granted, and outsiders learn nothing; shown against real daemons.

A test's docstring names its row.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any

import pytest
from namespaces import bridged

from croft.adapters.iroh_transport import IrohTransport
from croft.compute.messages import COMMAND_PURPOSE, TASKS_PURPOSE, Declined, OpenCommand, Opened, OpenTasks
from croft.control.schema import ContactWanted, ExposureWanted
from croft.errors import ConnectionLost, CroftError
from croft.identity.grants import found
from croft.identity.keys import community_key
from croft.identity.revocations import revoke
from croft.identity.tokens import make_token, token_date
from croft.model.ids import CommunityId
from croft.model.isolation import Grade
from croft.node.identity import load_identity
from croft.overlay.devices import REVOCATION_KIND
from croft.overlay.join_messages import (
    JOIN_PROTOCOL,
    FromInviter,
    JoinRefused,
    PakeConfirm,
    PakeStart,
    Redeem,
    ToInviter,
)
from croft.overlay.messages import PROTOCOL, Answer, Call, Failure, OnControlStream
from croft.overlay.passport import Lends, Membership, describe
from croft.overlay.record_messages import NOTICE_RECORDS, Push
from croft.overlay.service import MEMBER_KIND
from croft.overlay.tunnel_messages import TUNNEL_PURPOSE, OpenTunnel, TunnelAnswer, TunnelRefused
from croft.wire.codec import Message, decode_union
from croft.wire.message_stream import MessageStream, receive_alone, send_alone
from support import peers
from support.evil_member import EvilMember, Greeted, evil_member
from support.peers import RealPeer
from support.quic_handshake import handshakes

DIAL_S_MAX = 5.0
ANSWER_S_MAX = 5.0
FRAME_BYTES_MAX = 1 << 20
STEP = "guest"
LENDS = Lends(64, 1 << 30, 1 << 30, Grade.A, "3.11", "x86_64", "1")


@pytest.fixture
def folder() -> Iterator[Path]:
    with peers.homes() as base:
        yield base


class Guest:
    """Somebody at ada's door, and what ada answers."""

    def __init__(self, evil: EvilMember, ada: RealPeer) -> None:
        status = ada.api.status()
        self.evil = evil
        self.peer, self.twin = status.peer, status.twin
        self.addresses = status.addresses
        self.community = CommunityId(status.communities[0].community)

    @contextlib.asynccontextmanager
    async def link(self) -> AsyncIterator[Greeted]:
        try:
            greeted = await self.evil.greet(self.peer, self.addresses)
        except AssertionError as rejected:
            raise Turned(str(rejected)) from None
        try:
            yield greeted
        finally:
            greeted.connection.close(0, "done")
            await greeted.control.close()

    async def ask_on_stream(self, purpose: str, opening: Message, answers: UnionType) -> Any:
        """The first answer on a new stream of that purpose."""
        async with self.link() as link:
            stream = await link.open(purpose)
            try:
                await send_alone(stream, opening)
                async with asyncio.timeout(ANSWER_S_MAX):
                    payload = await receive_alone(stream, step=STEP, frame_bytes_max=FRAME_BYTES_MAX)
            except ConnectionLost as lost:
                raise Turned(f"dropped: {lost}") from None
            return decode_union(payload, answers, step=STEP)

    async def call(self, method: str) -> str:
        async with self.link() as link:
            await link.send(Call(1, method, 5.0, b""))
            async with asyncio.timeout(ANSWER_S_MAX):
                while (payload := await link.control.receive()) is not None:
                    message: OnControlStream = decode_union(payload, OnControlStream, step=STEP)
                    assert not isinstance(message, Answer), f"{method} was answered"
                    if isinstance(message, Failure):
                        return message.message
        return "closed"

    async def join(self, message: ToInviter) -> str:
        connection = await self.evil.transport.dial(self.peer, self.addresses, JOIN_PROTOCOL, DIAL_S_MAX)
        try:
            stream = await connection.open_stream()
            async with MessageStream(stream, step=STEP) as messages:
                messages.post(message)
                payload = await messages.receive()
            assert payload is not None, "closed without a reason"
            answer: FromInviter = decode_union(payload, FromInviter, step=STEP)
            assert isinstance(answer, JoinRefused), answer
            return answer.message
        finally:
            connection.close(0, "done")

    async def tell(self, kind: str, record: bytes) -> str:
        async with self.link() as link:
            await link.notice(NOTICE_RECORDS, Push(self.community, [(kind, record)]))
            await asyncio.sleep(0.1)
        return "told"

    def token(self) -> bytes:
        """An invitation to ada's community, which ada did not make."""
        return make_token(
            community_key(secrets.token_bytes(32), b""),
            "invitation({id}); community({community}); expires({at});",
            {"id": "0" * 16, "community": bytes.fromhex(self.community), "at": token_date(time.time() + 60)},
        )


class Turned(Exception):
    """Refused at the door."""


async def tasks(guest: Guest) -> str:
    return declined(await guest.ask_on_stream(TASKS_PURPOSE, OpenTasks("3.11"), Opened | Declined))


async def command(guest: Guest) -> str:
    return declined(await guest.ask_on_stream(COMMAND_PURPOSE, OpenCommand(), Opened | Declined))


def declined(answer: Opened | Declined) -> str:
    assert isinstance(answer, Declined), answer
    return answer.message


def tunnel(service: str, protocol: str = "tcp", *, only_ask: bool = False) -> Callable[[Guest], Awaitable[str]]:
    async def verb(guest: Guest) -> str:
        opening = OpenTunnel(service, protocol, only_ask)
        answer = await guest.ask_on_stream(TUNNEL_PURPOSE, opening, TunnelAnswer)
        assert isinstance(answer, TunnelRefused), answer
        return answer.message

    return verb


async def unknown_purpose(guest: Guest) -> str:
    with pytest.raises(Turned) as turned:
        await guest.ask_on_stream("shell/1", OpenTunnel("22", "tcp"), TunnelAnswer)
    return str(turned.value)


def call(method: str) -> Callable[[Guest], Awaitable[str]]:
    return lambda guest: guest.call(method)


def join(make: Callable[[Guest], ToInviter]) -> Callable[[Guest], Awaitable[str]]:
    return lambda guest: guest.join(make(guest))


async def other_protocol(guest: Guest) -> str:
    with pytest.raises(CroftError) as refused:
        await guest.evil.transport.dial(guest.peer, guest.addresses, b"croft/shell/1", DIAL_S_MAX)
    return refused.value.message


async def revoke_ada(guest: Guest) -> str:
    identity_key = guest.evil.own.device
    record = revoke(identity_key, guest.peer, guest.community, list(guest.evil.membership.chain), time.time())
    return await guest.tell(REVOCATION_KIND, record)


async def speak_for_ada(guest: Guest) -> str:
    membership = Membership(guest.community, "", guest.evil.membership.chain)
    record = describe(guest.evil.own, membership, LENDS, ["127.0.0.1:9"], now=time.time(), sequence=1).record
    at = record.find(guest.evil.own.peer.encode())
    forged = record[:at] + guest.peer.encode() + record[at + 64 :]
    return await guest.tell(MEMBER_KIND, forged)


VERBS: dict[str, Callable[[Guest], Awaitable[str]]] = {
    "run functions": tasks,
    "run a command": command,
    "ask for ssh": tunnel("ssh", only_ask=True),
    "ask for port 22": tunnel("22", only_ask=True),
    "connect to port 22": tunnel("22"),
    "connect to a name": tunnel("wiki"),
    "connect to another host": tunnel("10.0.0.1:22"),
    "send datagrams": tunnel("53", "udp"),
    "open a stream for something unheard of": unknown_purpose,
    "call for an invitation": call("invite"),
    "call for a member list": call("members"),
    "call for settings": call("settings"),
    "stop the peer": call("stop"),
    "join by a token that somebody else signed": join(lambda g: Redeem(g.token(), g.evil.own.certificate)),
    "join by noise": join(lambda g: Redeem(secrets.token_bytes(300), g.evil.own.certificate)),
    "join by a code that is not open": join(lambda _: PakeStart(7, secrets.token_bytes(33))),
    "join by a proof that was not begun": join(lambda g: PakeConfirm(bytes(32), g.evil.own.certificate)),
    "speak another protocol": other_protocol,
    "revoke the peer": revoke_ada,
    "speak for the peer": speak_for_ada,
}


def test_twenty_verbs_are_refused_to_a_stranger_and_to_a_member_without_a_grant(folder: Path) -> None:
    """I2: fresh peer: 20 verbs tried by a stranger and by an ungranted member -> 40 refusals, and nothing changed."""
    ada, mal = peers.community(folder, ["ada", "mal"])
    stranger = peers.make(folder, "stranger")
    stranger.ok("init")
    ada.ok("contacts", "trust", "mal", "none")
    mal.stop()
    before = [(peer.peer, peer.slots, peer.self_name) for peer in ada.api.peers()]

    refusals = asyncio.run(try_all(ada, stranger, mal))

    assert len(VERBS) == 20 and len(refusals) == 40
    assert all(refusals.values()), refusals
    assert [(peer.peer, peer.slots, peer.self_name) for peer in ada.api.peers()] == before
    assert ada.log().count("a record from mal is refused") == 2
    assert ada.is_idle() and ada.api.exposures() == [] and ada.api.devices()[0].link == "self"


async def try_all(ada: RealPeer, stranger: RealPeer, mal: RealPeer) -> dict[tuple[str, str], str]:
    refusals: dict[tuple[str, str], str] = {}
    async with without_membership(stranger) as nobody, evil_member(mal) as member:
        for who, evil in (("stranger", nobody), ("member", member)):
            guest = Guest(evil, ada)
            for name, verb in VERBS.items():
                try:
                    refusals[who, name] = await verb(guest)
                except Turned as turned:
                    assert who == "stranger" or "dropped" in str(turned), (who, name, turned)
                    refusals[who, name] = str(turned)
    return refusals


@contextlib.asynccontextmanager
async def without_membership(home: RealPeer) -> AsyncIterator[EvilMember]:
    """A stranger who says that the community's founder let him in."""
    identity, _ = load_identity(home.files)
    own = identity.own(home.name)
    transport = await IrohTransport.open(identity.device.raw, [PROTOCOL], "127.0.0.1:0")
    root = community_key(secrets.token_bytes(32), b"")
    try:
        yield EvilMember(own, Membership(CommunityId(root.public), "mine", tuple(found(root, own.twin))), transport)
    finally:
        await transport.close()


# --- I6: what an outsider can read -----------------------------------------------------------------------------------

ASK_AS_A_STRANGER = """
import asyncio, secrets, sys
from croft.adapters.iroh_transport import IrohTransport
from croft.control.schema import ContactWanted, ExposureWanted
from croft.errors import ConnectionLost, CroftError
from croft.identity.certificates import certify
from croft.identity.keys import SecretKey
from croft.overlay.join_messages import JOIN_PROTOCOL, PakeStart, Redeem
from croft.overlay.messages import PROTOCOL, VERSION, Hello
from croft.wire.message_stream import MessageStream

async def main():
    device, twin = SecretKey(secrets.token_bytes(32)), SecretKey(secrets.token_bytes(32))
    certificate = certify(twin, device.public, "nobody", 1.0)
    transport = await IrohTransport.open(device.raw, [PROTOCOL], "0.0.0.0:0")
    hello = Hello(VERSION, certificate, [], secrets.token_bytes(16))
    asked = [(PROTOCOL, hello), (JOIN_PROTOCOL, Redeem(secrets.token_bytes(200), certificate))]
    asked += [(JOIN_PROTOCOL, PakeStart(number, secrets.token_bytes(33))) for number in range(1, 6)]
    for protocol, message in asked:
        connection = await transport.dial(sys.argv[1], sys.argv[2:], protocol, 5.0)
        try:
            async with asyncio.timeout(3), MessageStream(await connection.open_stream(), step="stranger") as messages:
                messages.post(message)
                print((await messages.receive() or b"").hex(), flush=True)
        except (ConnectionLost, TimeoutError) as lost:
            print(str(lost).encode().hex(), flush=True)
        connection.close(0, "done")
    await transport.close()

asyncio.run(main())
"""
PLANTED = [f"planted-{word}-{number}" for number in range(6) for word in ("peer", "petname", "service", "file", "job")]


def test_an_outsider_with_the_address_and_all_that_was_sent_learns_none_of_thirty_names(folder: Path) -> None:
    """I6: stranger with the address and full pcap learns none of 30 planted names, of peers, services and more."""
    kinds = ("peer", "petname", "service", "file", "job")
    names = {kind: [name for name in PLANTED if f"-{kind}-" in name] for kind in kinds}
    with bridged(3) as lan:
        with lan.capture(lan[0]) as seen, lan.capture(lan[2]) as at_the_stranger:
            ada, bob = peers.community(folder, names["peer"][:2], lan.hosts[:2])
            for petname in names["petname"]:
                ada.api.note(ContactWanted(who=names["peer"][1], petname=petname))
            for number, service in enumerate(names["service"]):
                ada.api.expose(ExposureWanted(port=9000 + number, name=service, to=[names["petname"][-1]]))
                assert bob.croft("tunnel", "--stdio", f"{names['peer'][0]}:{service}").returncode == 4
            inputs = []
            for name in names["file"]:
                (folder / name).write_text("what is in it")
                inputs += ["-i", name]
            script = f"echo {' '.join(names['job'])} > {names['file'][0]}; cat {names['file'][0]}"
            ran = ada.croft("run", *inputs, "--on", names["petname"][-1], "--", "sh", "-c", script, cwd=folder)
            status = ada.api.status()
            eve = peers.make(folder, "eve", lan[2]).start()
            refused = eve.croft("join", bob.api.invite(is_spoken=False).line[:-9] + "AAAAAAAAA")
            said = lan[2].run(sys.executable, "-c", ASK_AS_A_STRANGER, status.peer, *status.addresses)
            answers = b"".join(bytes.fromhex(line) for line in said.split())

    assert ran.returncode == 0 and names["job"][0] in ran.stdout, ran.stderr
    assert refused.returncode != 0
    assert len(PLANTED) == 30 and seen.frames > 100 and b"no grant" in answers
    words = [*PLANTED, status.twin, status.communities[0].community, status.communities[0].name]
    hellos = [
        hello
        for handshake in handshakes([*seen.each_frame(), *at_the_stranger.each_frame()])
        for hello in (handshake.client, handshake.server)
        if hello is not None
    ]
    in_clear = b"".join(body for hello in hellos for body in hello.extensions.values())
    assert b"croft/1" in in_clear, "the handshakes were read"
    for told in (bytes(seen.data), bytes(at_the_stranger.data), in_clear, answers):
        assert [word for word in words if word.encode() in told] == []
        assert [word for word in words if len(word) == 64 and bytes.fromhex(word) in told] == []
