"""I5: bytes that no peer of ours would send, at every door where bytes from others come in: no crash, no growth.

Each door is a function that takes bytes and may raise only what its contract names. Half of the frames are random, half
are valid ones with a few bytes changed, cut or repeated. CI tries a million, `make fault` ten.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from random import Random

import pytest
from distributed.protocol import Serialize, dumps

from croft.compute.circle_messages import Connect, FromMember, Listen, OpenMemberStream
from croft.compute.environment import Environment, Wheel, check_sound, fitting
from croft.compute.environment_messages import GetWheel, WheelAnswer, WheelEnd, WheelMissing, WheelPart
from croft.compute.messages import OpenCommand, Opened, OpenTasks, Reply
from croft.compute.worker_messages import BufferPart, ChunkResults, FromWorker, LoadFunction, RunChunk, ToWorker
from croft.dask import guard
from croft.errors import CodecError, CroftError, PeerMisbehaved
from croft.identity.by_member import Signatory
from croft.identity.certificates import certify, open_certificate
from croft.identity.grants import found, verify_chain
from croft.identity.keys import SecretKey, community_key, twin_key
from croft.identity.revocations import open_revocation, revoke
from croft.ledger.offer import open_offer
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.overlay.invitation_code import parse_code
from croft.overlay.join_messages import FromInviter, Redeem, ToInviter
from croft.overlay.messages import VERSION, Call, Greeting, Hello, Load, Notice, OnControlStream, StreamHeader
from croft.overlay.passport import Lends, Membership, Own, describe, open_descriptor
from croft.overlay.presence import open_presence, sign_presence
from croft.overlay.providers import open_provision, sign_provision
from croft.overlay.record_messages import Have, Push, RecordMessage, Roots
from croft.overlay.relay_pass import make_pass, open_pass
from croft.overlay.resumption import Resumption
from croft.overlay.socks import SocksServer
from croft.overlay.tunnel_messages import OpenTunnel, TunnelAnswer, TunnelOpened, TunnelRefused
from croft.twins.call_messages import AskCall, StopCall, ToCaller, ToProvider, ValueKept, ValuePart, ValueRef
from croft.twins.capability import Terms, make_capability, open_capability
from croft.twins.capability_schema import Checker, Mismatch, open_schema
from croft.twins.cards import Said, make_card, open_card
from croft.twins.community_operation import Operation, open_operation, write_operation
from croft.twins.kept_values import AskedOfKeeper, ReleaseValues, WantValue
from croft.twins.letter_messages import Offered
from croft.twins.letters import Author, Body, Box, find_key, open_body, open_letter, reading_key
from croft.twins.pen import Pen
from croft.wire.codec import decode, decode_union, encode
from croft.wire.frames import FrameReader, frame
from croft.wire.values import decode_value, encode_value

FRAMES = 10_000_000 if os.environ.get("CROFT_CAMPAIGN") == "long" else 1_000_000
TYPED_SHARE = 100
"""Codes are typed by the owner, not sent by a peer: so many times fewer of them."""
FRAME_BYTES_MAX = 400
GROWTH_BYTES_MAX = 2 << 20
SEED = 7

DEVICE, TWIN = SecretKey(b"d" * 32), twin_key(b"t" * 32)
ROOT = community_key(b"r" * 32, b"")
COMMUNITY = CommunityId(ROOT.public)
PEER = PeerId(DEVICE.public)
NOW = 1_700_000_000.0
CHAIN = tuple(found(ROOT, TwinId(TWIN.public)))
CERTIFICATE = certify(TWIN, PEER, "fuzz", NOW)
MEMBERSHIP = Membership(COMMUNITY, "town", CHAIN)
OWN = Own(DEVICE, PEER, TwinId(TWIN.public), "fuzz", CERTIFICATE, b"instance")
RECORD = describe(
    OWN, MEMBERSHIP, Lends(1, 1, 1, "A", "3.11", "x86_64", "1"), ["10.0.0.1:1"], now=NOW, sequence=int(NOW * 1000)
).record
PRESENCE = sign_presence(DEVICE, COMMUNITY, Load(1, 0.5, 0.5), int(NOW * 1000))

DASK_FRAMES = dumps(guard.lowered({"status": "OK", "data": {"x": Serialize([1, "two"])}, "set": {1, 2}}))

SIGNATORY = Signatory(DEVICE, CERTIFICATE, COMMUNITY, CHAIN)
READING_KEY = reading_key(DEVICE).public_key().public_bytes_raw()
PARAMETERS = b'{"type":"object","properties":{"a":{"type":"array","items":{"type":"integer"}}},"required":["a"]}'
SIGNATURE = b'{"parameters":' + PARAMETERS + b"}"
[LETTER] = Pen(Author(DEVICE, CERTIFICATE, bytes.fromhex(TWIN.public)), Random(SEED).randbytes).write(
    Box(COMMUNITY, TWIN.public),
    Body("text", "hello"),
    {bytes.fromhex(PEER): READING_KEY},
    sequence=1,
    previous=b"",
    now=NOW,
)

Door = Callable[[bytes], object]


def letter_of(data: bytes) -> object:
    letter = open_letter(data)
    key = find_key(letter, bytes.fromhex(PEER), reading_key(DEVICE))
    return open_body(letter, key) if key else None


def framed(data: bytes) -> object:
    reader = FrameReader(1 << 16, step="fuzz")
    return [reader.feed(data[:7]), reader.feed(data[7:])]


def chain_of(data: bytes) -> object:
    return verify_chain(COMMUNITY, [data], TwinId(TWIN.public), NOW)


def environment_of(data: bytes) -> object:
    environment = decode(data, Environment, step="fuzz")
    check_sound(environment)
    return fitting(environment, environment.python, {"py3-none-any": 0}, 1 << 40)


DOORS: dict[str, tuple[Door, list[bytes]]] = {
    "frames": (framed, [frame(b"payload"), frame(b"") * 3]),
    "greeting": (
        lambda data: decode_union(data, Greeting, step="fuzz"),
        [encode(Hello(VERSION, CERTIFICATE, [(COMMUNITY, list(CHAIN))], b"i"))],
    ),
    "control stream": (
        lambda data: decode_union(data, OnControlStream, step="fuzz"),
        [encode(Call(1, "method", 1.0, b"body")), encode(Notice("topic", b"body"))],
    ),
    "stream header": (lambda data: decode(data, StreamHeader, step="fuzz"), [encode(StreamHeader("tasks/1"))]),
    "records": (
        lambda data: decode_union(data, RecordMessage, step="fuzz"),
        [
            encode(Push(COMMUNITY, [("member", RECORD)])),
            encode(Roots(COMMUNITY, [("member", 1, 1)])),
            encode(Have(COMMUNITY, "member", 1, 0, [(1, 2)])),
        ],
    ),
    "descriptor": (lambda data: open_descriptor(data, {COMMUNITY: MEMBERSHIP}, NOW), [RECORD]),
    "presence": (partial(open_presence, COMMUNITY), [PRESENCE]),
    "certificate": (lambda data: open_certificate(data, step="fuzz"), [CERTIFICATE]),
    "grant": (chain_of, list(CHAIN)),
    "joining": (
        lambda data: decode_union(data, ToInviter, step="fuzz"),
        [encode(Redeem(b"t" * 40, CERTIFICATE))],
    ),
    "joined": (lambda data: decode_union(data, FromInviter, step="fuzz"), []),
    "code": (lambda data: parse_code(data.decode("latin-1")), [b"7-abandon-ability"]),
    "wheel that is asked for": (lambda data: decode(data, GetWheel, step="fuzz"), [encode(GetWheel(b"d" * 32))]),
    "wheel that comes": (
        lambda data: decode_union(data, WheelAnswer, step="fuzz"),
        [encode(WheelPart(b"data")), encode(WheelEnd()), encode(WheelMissing())],
    ),
    "environment": (environment_of, [encode(Environment("3.11", [Wheel("a-1.0-py3-none-any.whl", 9, b"d" * 32)]))]),
    "task opening": (lambda data: decode(data, OpenTasks, step="fuzz"), [encode(OpenTasks("3.11", 1))]),
    "command opening": (lambda data: decode(data, OpenCommand, step="fuzz"), [encode(OpenCommand(1.0, 1, 1))]),
    "task answer": (lambda data: decode_union(data, Reply, step="fuzz"), [encode(Opened(1, [b"digest"]))]),
    "to a worker": (
        lambda data: decode_union(data, ToWorker, step="fuzz"),
        [
            encode(RunChunk(1, b"f" * 32, [b"argument"], 0.0, [[b"d" * 32]])),
            encode(LoadFunction(b"f" * 32, b"pickle", "3.11")),
            encode(BufferPart(b"d" * 32, 9, 0, b"argument")),
        ],
    ),
    "from a worker": (
        lambda data: decode_union(data, FromWorker, step="fuzz"),
        [encode(ChunkResults(1, [(0, 0, b"value")]))],
    ),
    "tunnel opening": (
        lambda data: decode(data, OpenTunnel, step="fuzz"),
        [encode(OpenTunnel("web", "tcp"))],
    ),
    "tunnel answer": (
        lambda data: decode_union(data, TunnelAnswer, step="fuzz"),
        [encode(TunnelOpened("web")), encode(TunnelRefused("refused", "no", "ask"))],
    ),
    "stream of a circle": (
        lambda data: decode(data, OpenMemberStream, step="fuzz"),
        [encode(OpenMemberStream("owner", "circle", "one", "two"))],
    ),
    "packet of a doorway": (
        lambda data: decode_union(data, FromMember, step="fuzz"),
        [encode(Listen()), encode(Connect(7, "two"))],
    ),
    "message of a Dask worker": (
        lambda data: guard.read(FrameReader(1 << 16, step="fuzz").feed(data) or [b""], deserialize=True),
        [b"".join(map(frame, DASK_FRAMES))],
    ),
    "provision": (
        lambda data: open_provision(COMMUNITY, data, NOW),
        [sign_provision(DEVICE, COMMUNITY, "key", int(NOW * 1000))],
    ),
    "offer": (lambda data: open_offer(COMMUNITY, data, NOW), []),
    "card": (
        lambda data: open_card(COMMUNITY, data, NOW),
        [make_card(SIGNATORY, READING_KEY, Said(NOW, "I mend radios", (PEER,)), now=NOW, sequence=1)],
    ),
    "capability": (
        lambda data: open_capability(COMMUNITY, data, NOW),
        [make_capability(SIGNATORY, Terms("add", SIGNATURE), (), is_withdrawn=False, now=NOW, sequence=1)],
    ),
    "schema of a capability": (lambda data: Checker(open_schema(data)).check({"a": [1, 2]}), [PARAMETERS]),
    "letter": (letter_of, [LETTER.record]),
    "letters that pass": (
        lambda data: decode(data, Offered, step="fuzz"),
        [encode(Offered(COMMUNITY, TWIN.public, "", [(PEER, 1, 5)]))],
    ),
    "call": (
        lambda data: decode_union(data, ToProvider, step="fuzz"),
        [encode(AskCall(1, "add", b"arguments", refs=[ValueRef("a", PEER, b"t" * 32, 9)])), encode(StopCall(1))],
    ),
    "answer to a call": (
        lambda data: decode_union(data, ToCaller, step="fuzz"),
        [encode(ValuePart(1, b"value")), encode(ValueKept(1, b"t" * 32, 9))],
    ),
    "kept value that is asked for": (
        lambda data: decode_union(data, AskedOfKeeper, step="fuzz"),
        [encode(WantValue(b"t" * 32)), encode(ReleaseValues([b"t" * 32]))],
    ),
    "operation of a community": (
        lambda data: open_operation(data, COMMUNITY),
        [write_operation(ROOT, Operation(COMMUNITY, 0, [], "create", TWIN.public, "town", NOW))],
    ),
    "revocation": (
        lambda data: open_revocation(data, COMMUNITY, NOW),
        [revoke(TWIN, PEER, COMMUNITY, CHAIN, NOW)],
    ),
    "relay pass": (
        lambda data: open_pass(data.decode("latin-1"), NOW),
        [make_pass(DEVICE, b"r" * 32, "7", NOW + 60).encode()],
    ),
    "lasting stream": (lambda data: Resumption().feed(data), [b"\0" + frame(b"data"), b"\x03" + bytes(4)]),
    "socks": (lambda data: SocksServer().feed(data), [b"\x05\x01\x00", b"\x05\x01\x00\x05\x01\x00\x03\x03bob\x00\x50"]),
    "value": (
        decode_value,
        [encode_value({"a": [1, 2.5, None, b"x", "y", (1, 2), {3, 4}], "n": 1 << 70, "c": 1j}), encode_value([[[[]]]])],
    ),
}
ANSWERING = ("socks", "lasting stream")
"""Doors that wait for more, or answer, rather than refuse."""
REFUSALS = (PeerMisbehaved, CroftError, CodecError, Mismatch)


def frames_for(valid: list[bytes], random: Random, count: int) -> Iterator[bytes]:
    for _ in range(count):
        if not valid or random.random() < 0.5:
            yield random.randbytes(random.randrange(FRAME_BYTES_MAX))
            continue
        data = bytearray(random.choice(valid))
        for _ in range(random.randrange(1, 4)):
            at = random.randrange(len(data) + 1)
            match random.randrange(4):
                case 0 if at < len(data):
                    data[at] = random.randrange(256)
                case 1:
                    del data[at : at + random.randrange(1, 16)]
                case 2:
                    data[at:at] = random.randbytes(random.randrange(1, 16))
                case _:
                    data += data[at : at + 64]
        yield bytes(data)


@pytest.mark.parametrize("name", DOORS)
def test_no_bytes_do_more_than_be_refused(name: str) -> None:
    door, valid = DOORS[name]
    random = Random(f"{SEED}{name}")
    for data in valid:
        door(data)  # what is changed below is valid as it is

    count = FRAMES // len(DOORS) // (TYPED_SHARE if name == "code" else 1)
    attempt(door, frames_for(valid, random, count // 10))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    refused = attempt(door, frames_for(valid, random, count - count // 10))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert refused > count // 4 or name in ANSWERING, "most of it is not valid"
    assert after - before < GROWTH_BYTES_MAX


def attempt(door: Door, frames: Iterator[bytes]) -> int:
    refused = 0
    for data in frames:
        try:
            door(data)
        except REFUSALS:
            refused += 1
        except BaseException:
            print("the frame:", data.hex())
            raise
    return refused
