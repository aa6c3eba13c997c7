"""I4: a member with a real key and a real grant breaks every rule. Nothing works, and each attack is named in the log.

One honest daemon (ada) and one honest consumer (bob) live through all of it; mallory's daemon was stopped, and the test
speaks for it.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import blake3
import pytest

from croft.adapters.iroh_connection import STREAMS_MAX
from croft.compute.environment import Environment, Wheel
from croft.compute.environment_messages import (
    WHEELS_PURPOSE,
    GetWheel,
    WheelAnswer,
    WheelEnd,
    WheelMissing,
    WheelPart,
)
from croft.compute.messages import COMMAND_PURPOSE, TASKS_PURPOSE, Declined, OpenCommand, Opened, OpenTasks
from croft.compute.worker_messages import (
    BufferPart,
    CancelChunk,
    ChunkDone,
    ChunkResults,
    CommandExited,
    FileBytes,
    FileEnd,
    FileList,
    GetFile,
    ListFiles,
    LoadFunction,
    PutFile,
    ResultPart,
    RunChunk,
    RunCommand,
)
from croft.errors import ConnectionLost
from croft.model.ids import PeerId
from croft.overlay.control_stream import CALLS_SERVED_MAX
from croft.overlay.links import STREAMS_PER_LINK_MAX
from croft.overlay.messages import (
    CONTROL_FRAME_BYTES_MAX,
    Answer,
    Call,
    Heartbeat,
    HeartbeatEcho,
    Hello,
    Load,
    Notice,
    StreamHeader,
)
from croft.overlay.passport import Lends, describe
from croft.overlay.presence import PRESENCE_KIND, sign_presence
from croft.overlay.record_messages import (
    NOTICE_RECORDS,
    RECORDS_PER_PUSH_MAX,
    Branches,
    Have,
    Push,
    Roots,
    Wanted,
)
from croft.wire.codec import Message, decode_union, encode
from croft.wire.frames import frame
from croft.wire.message_stream import ByteStream, MessageStream
from croft.wire.values import encode_value
from support import peers
from support.evil_member import EvilMember, Greeted, evil_member
from support.peers import RealPeer, until

LENDS = Lends(2, 1 << 30, 1 << 28, "B", "3.11", "x86_64", "1")
MEMBER = "member"

T = TypeVar("T")


@dataclass
class Scene:
    """Two honest peers, and what the evil one can say."""

    ada: RealPeer
    bob: RealPeer
    mallory: RealPeer
    peer: PeerId
    addresses: list[str]
    process: int

    def attack(self, story: Callable[[EvilMember, Greeted], Awaitable[None]]) -> None:
        """Plays a story on a greeted connection."""

        async def play() -> None:
            async with evil_member(self.mallory) as evil, self.greeted(evil) as greeted:
                await story(evil, greeted)

        asyncio.run(play())

    @asynccontextmanager
    async def greeted(self, evil: EvilMember, hello: Hello | None = None) -> AsyncIterator[Greeted]:
        greeted = await evil.greet(self.peer, self.addresses, hello)
        try:
            yield greeted
        finally:
            greeted.connection.close(0, "done")
            await greeted.control.close()

    def logged(self, text: str, *, by: str = "mallory") -> None:
        """Waits until ada's log names the evildoer with this reason, in lines that were not there before."""

        def lines() -> list[str]:
            return [line for line in self.ada.log()[self.seen :].splitlines() if by in line and text in line]

        until(lines, f"ada's log says of {by}: {text}\n{self.ada.log()[self.seen :][-2000:]}")

    seen: int = 0


@pytest.fixture(scope="module")
def community() -> Iterator[Scene]:
    with peers.homes() as base:
        ada, bob, mallory = peers.community(base, ["ada", "bob", "mallory"])
        status = ada.api.status()
        mallory.stop()
        process = ada.process
        assert process is not None
        yield Scene(ada, bob, mallory, PeerId(status.peer), list(status.addresses), process)


@pytest.fixture
def scene(community: Scene) -> Iterator[Scene]:
    """The same two peers for every attack: the last one must have left them whole."""
    community.seen = len(community.ada.log())
    yield community
    assert community.ada.process == community.process, "ada still runs, in the same process"
    with community.bob.grid() as grid:
        assert list(grid.map(abs, [-7], on=["ada"])) == [7], "ada still works for bob"
    until(community.ada.is_idle, "nothing is left running")


def record_of(evil: EvilMember, *, at: float = 0.0, lends: Lends = LENDS, name: str = "mallory") -> bytes:
    own = replace(evil.own, name=name)
    now = time.time() + at
    return describe(own, evil.membership, lends, ["127.0.0.1:9"], now=now, sequence=int(now * 1000)).record


# --- the control stream ----------------------------------------------------------------------------------------------


def test_a_frame_that_announces_four_gigabytes_ends_the_link(scene: Scene) -> None:
    async def story(_: EvilMember, greeted: Greeted) -> None:
        await greeted.raw(b"\xff\xff\xff\xff")
        assert await greeted.is_dropped()

    scene.attack(story)
    scene.logged(f"limit is {CONTROL_FRAME_BYTES_MAX}")


def test_random_bytes_end_the_link(scene: Scene) -> None:
    async def story(_: EvilMember, greeted: Greeted) -> None:
        await greeted.raw(frame(b"\x93" + secrets.token_bytes(500)))
        assert await greeted.is_dropped()

    scene.attack(story)
    scene.logged("not a valid message")


def test_a_message_of_unknown_kind_ends_the_link(scene: Scene) -> None:
    class Unheard(Message, frozen=True, tag=99):
        text: str

    async def story(_: EvilMember, greeted: Greeted) -> None:
        await greeted.send(Unheard("of"))
        assert await greeted.is_dropped()

    scene.attack(story)
    scene.logged("not a valid message")


def test_a_second_hello_ends_the_link(scene: Scene) -> None:
    async def story(evil: EvilMember, greeted: Greeted) -> None:
        await greeted.send(evil.hello())
        assert await greeted.is_dropped()

    scene.attack(story)
    scene.logged("not a valid message")


def test_a_call_begun_twice_ends_the_link(scene: Scene) -> None:
    async def story(_: EvilMember, greeted: Greeted) -> None:
        for _number in range(CALLS_SERVED_MAX * 2):
            greeted.control.post(Call(1, "none", 1.0, b""))
        await greeted.control.flush()
        assert await greeted.is_dropped()

    scene.attack(story)
    scene.logged("begun twice")


def test_answers_to_calls_that_were_never_made_change_nothing(scene: Scene) -> None:
    async def story(_: EvilMember, greeted: Greeted) -> None:
        for number in range(2000):
            greeted.control.post(Answer(number, b"x"))
            greeted.control.post(HeartbeatEcho(number))
        greeted.control.post(Heartbeat(7))
        await greeted.control.flush()
        while not isinstance(decode_union(await greeted.control.receive() or b"", Every, step="test"), HeartbeatEcho):
            continue

    scene.attack(story)


Every = Call | Answer | Notice | Heartbeat | HeartbeatEcho


def test_whoever_does_not_read_what_it_asked_for_is_dropped(scene: Scene) -> None:
    async def story(_: EvilMember, greeted: Greeted) -> None:
        # Each is answered with all that it said; nothing of it is ever read here.
        size = 256 << 10
        try:
            for number in range(200):
                await greeted.send(Call(number, "x" * size, 1.0, b""))
        except ConnectionLost:
            return
        assert await greeted.is_dropped()

    scene.attack(story)
    assert scene.ada.resident_bytes / 1e6 < 200


def test_a_silent_member_is_dropped(scene: Scene) -> None:
    async def story(_: EvilMember, greeted: Greeted) -> None:
        assert await greeted.is_dropped()

    scene.attack(story)
    scene.logged("nothing heard")


def test_a_hello_under_a_borrowed_certificate_is_refused(scene: Scene) -> None:
    async def story(evil: EvilMember, greeted: Greeted) -> None:
        # What ada showed us is hers: said by us, it proves nothing.
        stolen = Hello(1, greeted.victim.certificate, greeted.victim.memberships, b"other")
        with pytest.raises(AssertionError, match="of another device"):
            async with scene.greeted(evil, stolen):
                pass

    scene.attack(story)
    scene.logged("certificate is of another device", by="refused")


# --- records ---------------------------------------------------------------------------------------------------------


def listed(peer: RealPeer) -> list[tuple[str, int]]:
    return sorted((other.peer, other.slots) for other in peer.api.peers())


@pytest.mark.parametrize(
    ("named", "forge", "reason"),
    [
        ("flipped", lambda evil: flip(record_of(evil)), "is refused"),
        ("future", lambda evil: record_of(evil, at=86_400.0), "is refused"),
        ("boastful", lambda evil: record_of(evil, lends=replace(LENDS, slots=10**9)), "slots"),
        ("oversized", lambda evil: record_of(evil) + bytes(70_000), "is refused"),
        ("garbage", lambda evil: secrets.token_bytes(300), "is refused"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_record_that_does_not_hold_is_refused_by_name(
    scene: Scene, named: str, forge: Callable[[EvilMember], bytes], reason: str
) -> None:
    before = listed(scene.ada)

    async def story(evil: EvilMember, greeted: Greeted) -> None:
        await greeted.notice(NOTICE_RECORDS, Push(evil.community, [(MEMBER, forge(evil))]))
        await asyncio.to_thread(scene.logged, reason)

    scene.attack(story)
    assert listed(scene.ada) == before


def flip(record: bytes) -> bytes:
    at = len(record) // 2
    return record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :]


def test_an_old_record_said_again_changes_nothing(scene: Scene) -> None:
    async def story(evil: EvilMember, greeted: Greeted) -> None:
        fresh = record_of(evil, lends=replace(LENDS, slots=3))
        await greeted.notice(NOTICE_RECORDS, Push(evil.community, [(MEMBER, fresh)]))
        await asyncio.to_thread(until, lambda: (evil.own.peer, 3) in listed(scene.ada), "ada takes the fresh one")
        stale = record_of(evil, at=-3600.0, lends=replace(LENDS, slots=4))
        for _ in range(50):
            await greeted.notice(NOTICE_RECORDS, Push(evil.community, [(MEMBER, stale)]))
        greeted.control.post(Heartbeat(9))
        await greeted.control.flush()
        await asyncio.sleep(0.3)
        assert (evil.own.peer, 3) in await asyncio.to_thread(listed, scene.ada)

    scene.attack(story)


def test_too_many_records_at_once_end_the_link(scene: Scene) -> None:
    async def story(evil: EvilMember, greeted: Greeted) -> None:
        records = [(MEMBER, b"x")] * (RECORDS_PER_PUSH_MAX + 1)
        await greeted.notice(NOTICE_RECORDS, Push(evil.community, records))
        assert await greeted.is_dropped()

    scene.attack(story)
    scene.logged("records at once")


@pytest.mark.parametrize("kind", ["Roots", "Branches", "Have", "Wanted"])
def test_a_comparison_over_its_bounds_ends_the_link(scene: Scene, kind: str) -> None:
    big = list(range(60_000))

    async def story(evil: EvilMember, greeted: Greeted) -> None:
        community = evil.community
        message = {
            "Roots": Roots(community, [(MEMBER, number, number) for number in big]),
            "Branches": Branches(community, MEMBER, big),
            "Have": Have(community, MEMBER, 1 << 40, -5, [(number, number << 40) for number in big]),
            "Wanted": Wanted(community, MEMBER, big),
        }[kind]
        await greeted.notice(NOTICE_RECORDS, message)
        assert await greeted.is_dropped()

    scene.attack(story)
    scene.logged(f"{kind} over its bounds")


@pytest.mark.parametrize(
    "load", [Load(-5, 0.0, 0.0), Load(10**9, 0.0, 0.0), Load(0, float("nan"), 0.0), Load(0, 0.0, 1e300)]
)
def test_a_load_that_cannot_be_is_refused(scene: Scene, load: Load) -> None:
    async def story(evil: EvilMember, greeted: Greeted) -> None:
        presence = sign_presence(evil.own.device, evil.community, load, int(time.time() * 1000))
        await greeted.notice(NOTICE_RECORDS, Push(evil.community, [(PRESENCE_KIND, presence)]))
        await asyncio.to_thread(scene.logged, "a load of")

    scene.attack(story)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_streams_that_never_say_what_they_are_for_are_bounded_and_dropped(scene: Scene) -> None:
    async def story(_: EvilMember, greeted: Greeted) -> None:
        opened = []
        for _number in range(STREAMS_PER_LINK_MAX * 2):
            stream = await greeted.connection.open_stream()
            await stream.write(b"\x00")
            opened.append(stream)
        beating = asyncio.create_task(beat(greeted))
        try:
            await asyncio.to_thread(scene.logged, "streams open at once")
            await asyncio.to_thread(scene.logged, "stream header: none")
        finally:
            beating.cancel()

    assert STREAMS_PER_LINK_MAX * 2 < STREAMS_MAX
    scene.attack(story)


async def beat(greeted: Greeted) -> None:
    number = 0
    while True:
        number += 1
        await greeted.send(Heartbeat(number))
        await asyncio.sleep(1)


def test_a_stream_for_an_unknown_purpose_is_dropped(scene: Scene) -> None:
    async def story(_: EvilMember, greeted: Greeted) -> None:
        stream = await greeted.open("rule/the/world")
        with pytest.raises(ConnectionLost):
            while await stream.read(100):
                continue

    scene.attack(story)
    scene.logged("a purpose that is not served here")


def test_a_header_of_a_megabyte_is_refused(scene: Scene) -> None:
    async def story(_: EvilMember, greeted: Greeted) -> None:
        stream = await greeted.connection.open_stream()
        with pytest.raises(ConnectionLost):
            await stream.write(frame(encode(StreamHeader("x" * (1 << 20)))))
            while await stream.read(100):
                continue

    scene.attack(story)
    scene.logged("limit is")


# --- as a consumer ---------------------------------------------------------------------------------------------------


async def open_tasks(greeted: Greeted) -> MessageStream:
    stream = await greeted.open(TASKS_PURPOSE)
    messages = MessageStream(stream, step="evil")
    messages.post(OpenTasks("3.11"))
    payload = await messages.receive()
    assert payload is not None
    assert isinstance(decode_union(payload, Opened | ChunkDone, step="evil"), Opened)
    return messages


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (RunChunk(1, b"unsent", [b"x"]), "function that was not sent"),
        (RunChunk(1, b"unsent", []), "empty"),
        (PutFile("x"), "PutFile"),
        (ChunkDone(1, 0.0), "valid"),
        (BufferPart(b"d" * 32, 1 << 62, 0, b"x"), "limit"),
        (BufferPart(b"d" * 32, 10, 5, b"x"), "does not continue"),
        (BufferPart(b"d" * 32, 1, 0, b"xyz"), "does not continue"),
        (BufferPart(b"d" * 32, 1, 0, b"x"), "not what its digest says"),
    ],
    ids=["function", "empty", "file", "backwards", "vast", "late", "long", "forged"],
)
def test_tasks_against_the_rules_end_their_stream(scene: Scene, message: Message, reason: str) -> None:
    async def story(_: EvilMember, greeted: Greeted) -> None:
        async with await open_tasks(greeted) as messages:
            messages.post(message)
            with pytest.raises(ConnectionLost):
                while await messages.receive() is not None:
                    continue
                raise ConnectionLost("closed in order")

    scene.attack(story)
    scene.logged(reason)


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def test_an_evil_pickle_runs_only_inside_the_box(scene: Scene, tmp_path: Path) -> None:
    target = tmp_path / "owned"
    pickled = pickle.dumps(Bomb(str(target)))
    digest = blake3.blake3(pickled).digest()

    async def story(_: EvilMember, greeted: Greeted) -> None:
        async with await open_tasks(greeted) as messages:
            messages.post(LoadFunction(digest, pickled, "3.11"))
            messages.post(RunChunk(1, digest, [pickle.dumps(((Bomb(str(target)),), {}))]))
            async with asyncio.timeout(20):
                while (payload := await messages.receive()) is not None:
                    if b"\x0b" in payload[:3] or len(payload) > 0:
                        break

    scene.attack(story)
    assert not target.exists()


@pytest.mark.parametrize("path", ["../out", "/etc/shadow", "a/../../out", "x" * 5000, "nul\0byte"])
def test_paths_out_of_the_jobs_folder_lead_nowhere(scene: Scene, path: str) -> None:
    async def story(_: EvilMember, greeted: Greeted) -> None:
        stream = await greeted.open(COMMAND_PURPOSE)
        async with MessageStream(stream, step="evil") as messages:
            messages.post(OpenCommand())
            assert await messages.receive() is not None
            messages.post(GetFile(path))
            messages.post(PutFile(path))
            messages.post(FileBytes(b"evil"))
            async with asyncio.timeout(20):
                try:
                    answer = await messages.receive()
                except ConnectionLost:
                    answer = None
            assert answer is None or b"root:" not in answer

    scene.attack(story)
    assert not (scene.ada.files.jobs.parent / "out").exists() and not (scene.ada.files.jobs / "out").exists()


WHEEL = Wheel("evil-1.0-py3-none-any.whl", 10, bytes(32))


@pytest.mark.parametrize(
    "wheels",
    [
        [],
        [WHEEL, WHEEL],
        [Wheel("../evil-1.0-py3-none-any.whl", 10, bytes(32))],
        [Wheel("evil-1.0-py3-none-any.whl", 1 << 62, bytes(32))],
        [Wheel("evil-1.0-py3-none-any.whl", 10, bytes(1 << 20))],
        [Wheel(f"evil{number}-1.0-py3-none-any.whl", 10, bytes(32)) for number in range(2_000)],
    ],
    ids=["empty", "twice", "path", "vast", "digest", "many"],
)
@pytest.mark.parametrize("purpose", [TASKS_PURPOSE, COMMAND_PURPOSE])
def test_an_impossible_environment_ends_its_stream(scene: Scene, purpose: str, wheels: list[Wheel]) -> None:
    environment = Environment("3.11", wheels)
    opening = (
        OpenTasks("3.11", environment=environment) if purpose == TASKS_PURPOSE else OpenCommand(environment=environment)
    )

    async def story(_: EvilMember, greeted: Greeted) -> None:
        async with MessageStream(await greeted.open(purpose), step="evil") as messages:
            messages.post(opening)
            with pytest.raises(ConnectionLost):
                assert await messages.receive() is None
                raise ConnectionLost("closed in order")

    scene.attack(story)
    scene.logged("environment")


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([WheelPart(b"x" * 11)], "more of evil"),
        ([WheelPart(b"x" * 10), WheelPart(b"x")], "more of evil"),
        ([WheelPart(b"")], "more of evil"),
        ([WheelPart(b"x" * 10), WheelEnd()], "what is not that wheel"),
        ([WheelEnd()], "what is not that wheel"),
        ([WheelPart(b"x"), WheelMissing()], "more of evil"),
        ([GetWheel(bytes(32))], "not a valid message"),
    ],
    ids=["long", "longer", "empty", "forged", "nothing", "torn", "backwards"],
)
def test_a_wheel_against_the_rules_is_refused_by_name_and_not_kept(
    scene: Scene, answers: list[Message], reason: str
) -> None:
    async def story(_: EvilMember, greeted: Greeted) -> None:
        async with MessageStream(await greeted.open(TASKS_PURPOSE), step="evil") as messages:
            messages.post(OpenTasks("3.11", environment=Environment("3.11", [WHEEL])))
            async with MessageStream(await greeted.lend(), step="evil") as served:
                assert await served.receive() is not None
                for answer in answers:
                    served.post(answer)
                declined = decode_union(await messages.receive() or b"", Opened | Declined, step="evil")
                assert isinstance(declined, Declined) and reason in declined.message

    scene.attack(story)
    scene.logged(reason)
    assert not [path for path in (scene.ada.files.environments / "wheels").iterdir() if path.name in ("00" * 32,)]


@pytest.mark.parametrize("digest", [b"", bytes(32), b"../../keys", b"x" * 100_000])
def test_a_wheel_that_is_not_here_is_not_found_whatever_it_is_called(scene: Scene, digest: bytes) -> None:
    async def story(_: EvilMember, greeted: Greeted) -> None:
        async with MessageStream(await greeted.open(WHEELS_PURPOSE), step="evil") as messages:
            messages.post(GetWheel(digest))
            answer = decode_union(await messages.receive() or b"", WheelAnswer, step="evil")
            assert answer == WheelMissing()

    scene.attack(story)


def test_a_flood_of_openings_is_bounded(scene: Scene) -> None:
    async def story(_: EvilMember, greeted: Greeted) -> None:
        async def one() -> bool:
            try:
                async with asyncio.timeout(30):
                    stream = await greeted.open(COMMAND_PURPOSE)
                    async with MessageStream(stream, step="evil") as messages:
                        messages.post(OpenCommand(memory_bytes=1 << 60))
                        await messages.receive()
                    stream.abort()
                    return True
            except ConnectionLost:
                return True
            except TimeoutError:
                return False

        beating = asyncio.create_task(beat(greeted))
        assert all(await asyncio.gather(*(one() for _ in range(100)))), "each is answered or dropped"
        beating.cancel()

    scene.attack(story)


# --- as a lender -----------------------------------------------------------------------------------------------------

Answering = Callable[[RunChunk], list[Message]]


def lies_of(chunk: RunChunk) -> dict[str, list[Message]]:
    payload = encode(7)
    return {
        "garbage": [ChunkResults(chunk.chunk, [(0, 0, secrets.token_bytes(40))])],
        "another's task": [ChunkResults(chunk.chunk, [(len(chunk.arguments) + 5, 0, payload)])],
        "another's chunk": [ChunkResults(chunk.chunk + 1000, [(0, 0, payload)])],
        "twice": [ChunkResults(chunk.chunk, [(0, 0, payload), (0, 0, payload)])],
        "a part from nowhere": [ResultPart(chunk.chunk, 0, 50, payload)],
        "a part of nothing": [ResultPart(chunk.chunk, 0, 0, b"")],
        "a part of another's task": [ResultPart(chunk.chunk, len(chunk.arguments) + 5, 0, payload)],
        "a part of another's chunk": [ResultPart(chunk.chunk + 1000, 0, 0, payload)],
        "an unknown status": [ChunkResults(chunk.chunk, [(0, 77, payload)])],
        "nothing, for ever": [],
        "done without results": [ChunkDone(chunk.chunk, -1e300)],
        "an evil pickle": [ChunkResults(chunk.chunk, [(0, 0, pickle.dumps(Bomb("/tmp/never")))])],
    }


def slowly(number: int) -> int:
    time.sleep(0.1)
    return number


@pytest.mark.parametrize("lie", sorted(lies_of(RunChunk(1, b"", [b""]))))
def test_a_lender_that_lies_about_results_costs_no_honest_result(scene: Scene, lie: str) -> None:
    """Ada lets mallory and bob work for her: what mallory answers is refused or fails by name, bob does the rest."""

    asked: list[int] = []

    async def serve(stream: ByteStream) -> None:
        async with MessageStream(stream, step="evil") as messages:
            if await messages.receive() is None:
                return
            messages.post(Opened(2, []))
            while (payload := await messages.receive()) is not None:
                message = decode_union(payload, RunChunk | LoadFunction | CancelChunk, step="evil")
                if isinstance(message, RunChunk):
                    asked.append(message.chunk)
                    for answer in lies_of(message)[lie]:
                        messages.post(answer)

    def work() -> list[object]:
        with scene.ada.grid() as grid:
            futures = [grid.submit(slowly, number) for number in range(40)]
            results: list[object] = []
            for future in futures:
                try:
                    results.append(future.result(timeout=60))
                except Exception as error:
                    results.append(error)
            return results

    async def story(evil: EvilMember, greeted: Greeted) -> None:
        results = await lend(evil, greeted, serve, work)
        assert asked, "mallory was given work"
        for number, result in enumerate(results):
            assert result == number or isinstance(result, Exception) or lie == "twice", (number, result)
        if lie == "nothing, for ever":
            assert results == list(range(40)), "all of it was done by others"

    scene.attack(story)


async def lend(
    evil: EvilMember, greeted: Greeted, serve: Callable[[ByteStream], Awaitable[None]], work: Callable[[], T]
) -> T:
    """Lets the evil member serve sessions of tasks while `work` runs in a thread; what that returned."""
    await greeted.notice(NOTICE_RECORDS, Push(evil.community, [(MEMBER, record_of(evil))]))
    beating = asyncio.create_task(beat(greeted))
    serving: set[asyncio.Task[None]] = set()

    async def accept() -> None:
        while True:
            serving.add(asyncio.ensure_future(serve(await greeted.lend())))

    accepting = asyncio.create_task(accept())
    try:
        return await asyncio.to_thread(work)
    finally:
        for task in (beating, accepting, *serving):
            task.cancel()
        await asyncio.gather(beating, accepting, *serving, return_exceptions=True)


@pytest.mark.parametrize("path", ["../../escaped", "/tmp/escaped"])
def test_a_lender_that_lists_files_outside_the_folder_writes_nothing_here(
    scene: Scene, path: str, tmp_path: Path
) -> None:
    """A consumer fetches a folder from mallory, who names files elsewhere: refused by name, nothing is written."""

    async def serve(stream: ByteStream) -> None:
        async with MessageStream(stream, step="evil") as messages:
            if await messages.receive() is None:
                return
            messages.post(Opened(1, []))
            while (payload := await messages.receive()) is not None:
                match decode_union(payload, RunCommand | ListFiles | GetFile, step="evil"):
                    case RunCommand():
                        messages.post(CommandExited(0))
                    case ListFiles():
                        messages.post(FileList([path]))
                    case GetFile():
                        messages.post(FileBytes(b"evil"))
                        messages.post(FileEnd())

    async def story(evil: EvilMember, greeted: Greeted) -> None:
        await greeted.notice(NOTICE_RECORDS, Push(evil.community, [(MEMBER, record_of(evil))]))
        beating = asyncio.create_task(beat(greeted))

        async def accept() -> None:
            while True:
                serving.add(asyncio.create_task(serve(await greeted.lend())))

        serving: set[asyncio.Task[None]] = set()
        accepting = asyncio.create_task(accept())
        folder = tmp_path / "one" / "two"
        folder.mkdir(parents=True)
        command = ("run", "--on", evil.own.peer, "-o", "out/", "--", "true")
        await asyncio.to_thread(scene.ada.croft, *command, cwd=folder)
        for task in (beating, accepting, *serving):
            task.cancel()
        await asyncio.gather(beating, accepting, *serving, return_exceptions=True)

    scene.attack(story)
    assert [entry for entry in tmp_path.rglob("*") if not entry.is_dir()] == []
    assert not Path("/tmp/escaped").exists()
    scene.logged("not in the folder")


def test_a_lender_whose_results_are_wrong_is_outvoted_and_named(scene: Scene) -> None:
    """G8: mallory does the work and lies about a fifth: with votes no result is wrong, and mallory gets no credit.

    The last one here: ada asks mallory no more.
    """

    async def serve(stream: ByteStream) -> None:
        async with MessageStream(stream, step="evil") as messages:
            if await messages.receive() is None:
                return
            messages.post(Opened(2, []))
            while (payload := await messages.receive()) is not None:
                message = decode_union(payload, RunChunk | LoadFunction | CancelChunk, step="evil")
                if isinstance(message, RunChunk):
                    numbers = [pickle.loads(pickled)[0][0] for pickled in message.arguments]
                    said = [number if number % 5 else -number - 1 for number in numbers]
                    outcomes = [(index, 0, encode_value(value)) for index, value in enumerate(said)]
                    messages.post(ChunkResults(message.chunk, outcomes))
                    messages.post(ChunkDone(message.chunk, 0.01))

    def work() -> tuple[list[int], dict[str, list[int]], dict[str, int]]:
        with scene.ada.grid() as grid:
            mapped = grid.map(slowly, range(100), verify="vote:3")
            return list(mapped), mapped.liars, mapped.done_by

    async def story(evil: EvilMember, greeted: Greeted) -> None:
        results, liars, done_by = await lend(evil, greeted, serve, work)
        assert results == list(range(100))
        assert list(liars) == ["mallory"] and "mallory" not in done_by

    scene.attack(story)
