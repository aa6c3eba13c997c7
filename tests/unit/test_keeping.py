"""What a lender keeps of results and fetches of arguments, and what neither side lets the other say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from croft.compute.fetching import Fetches
from croft.compute.job_sessions import Session
from croft.compute.keeping import Keeping, Withheld
from croft.compute.kept_results import check_statuses
from croft.compute.messages import FetchBuffer, FetchStored, KeptResult, Opened
from croft.compute.worker_messages import (
    BUFFER_BYTES_MAX,
    KEPT_BYTES_MIN,
    RESULT_BYTES_MAX,
    ChunkDone,
    ChunkResults,
    ResultPart,
    Status,
)
from croft.errors import Failed, PeerMisbehaved
from croft.model.ids import PeerId, TwinId
from croft.model.kept import Held
from croft.wire.codec import decode, encode

TWIN = TwinId("tia")
DIGEST = b"\x01" * 32
LARGE = b"x" * (KEPT_BYTES_MIN + 1)


class Values:
    """Where values are kept: in memory, while there is room and nothing is broken."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.free = room
        self.error: Failed | None = None
        self.kept: dict[bytes, bytes] = {}

    def room(self, keeper: str) -> int:
        return self.free

    async def keep(self, keeper: str, parts: AsyncIterator[bytes], *, is_lasting: bool = True) -> Held:
        data = b"".join([part async for part in parts])
        if self.error is not None:
            raise self.error
        token = f"token{len(self.kept)}".encode()
        self.kept[token] = data
        return Held(PeerId("me"), token, len(data))

    async def read(self, value: Held) -> AsyncIterator[bytes]:
        yield self.kept[value.token]

    async def release(self, tokens: Sequence[bytes]) -> None:
        for token in tokens:
            self.kept.pop(token, None)


class NoFiles:
    async def check(self, owner: TwinId, content: bytes) -> None:
        raise Failed("not here")

    def read(self, owner: TwinId, content: bytes) -> AsyncIterator[bytes | memoryview]:
        raise AssertionError("nothing is held")


def withheld(values: Values) -> tuple[Keeping, Withheld]:
    keeping = Keeping(NoFiles())
    keeping.values = values
    keeping.begin("job")
    kept = Withheld(keeping, "job", TWIN)
    kept.begin(1)
    return keeping, kept


async def outcomes(kept: Withheld, *outcomes_: tuple[int, int, bytes], chunk: int = 1) -> list[tuple[int, int, bytes]]:
    passed = await kept.passed(ChunkResults(chunk, list(outcomes_)))
    assert isinstance(passed, ChunkResults)
    return passed.outcomes


def test_large_results_stay_and_small_ones_and_failures_are_passed_on() -> None:
    async def story() -> None:
        values = Values()
        _, kept = withheld(values)

        large, small, raised = await outcomes(kept, (0, 0, LARGE), (1, 0, b"small"), (2, int(Status.RAISED), LARGE))

        result = decode(large[2], KeptResult, step="test")
        assert large[:2] == (0, Status.KEPT) and values.kept[result.token] == LARGE and result.size == len(LARGE)
        assert (small, raised) == ((1, 0, b"small"), (2, Status.RAISED, LARGE))

    asyncio.run(story())


def test_a_result_that_comes_in_parts_is_kept_whole() -> None:
    async def story() -> None:
        values = Values()
        _, kept = withheld(values)
        for at in range(3):
            assert await kept.passed(ResultPart(1, 0, at, b"abc")) is None

        [outcome] = await outcomes(kept, (0, 0, b"end"))

        assert outcome[1] == Status.KEPT and list(values.kept.values()) == [b"abcabcabcend"]

    asyncio.run(story())


def test_what_is_waited_for_or_has_no_room_is_passed_on() -> None:
    async def story() -> None:
        _, kept = withheld(Values())
        kept.send(1)
        part = ResultPart(1, 0, 0, b"abc")
        assert await kept.passed(part) is part
        assert await outcomes(kept, (0, 0, LARGE)) == [(0, 0, LARGE)]

        _, kept = withheld(Values(room=RESULT_BYTES_MAX - 1))
        assert await kept.passed(part) is part
        _, kept = withheld(Values(room=len(LARGE) - 1))
        assert await outcomes(kept, (0, 0, LARGE)) == [(0, 0, LARGE)]

    asyncio.run(story())


def test_a_result_that_cannot_be_kept_is_lost_and_one_that_fails_midway_is_dropped() -> None:
    async def story() -> None:
        values = Values()
        values.error = Failed("the disk is full")
        _, kept = withheld(values)
        assert await outcomes(kept, (0, 0, LARGE)) == [(0, Status.LOST, b"")]

        values.error = None
        await kept.passed(ResultPart(1, 0, 0, b"abc"))
        assert await outcomes(kept, (0, int(Status.DIED), b"killed")) == [(0, Status.DIED, b"killed")]
        await kept.passed(ChunkDone(1, 0.0))
        assert values.kept == {}

    asyncio.run(story())


def test_what_a_job_kept_goes_with_it_and_only_its_own_may_be_dropped() -> None:
    async def story() -> None:
        values = Values()
        keeping, kept = withheld(values)
        [outcome] = await outcomes(kept, (0, 0, LARGE))
        token = decode(outcome[2], KeptResult, step="test").token
        serving = asyncio.create_task(keeping.serve())

        keeping.begin("other")
        keeping.drop("other", [token])
        await asyncio.sleep(0)
        assert token in values.kept
        keeping.end("job", is_over=True)
        while values.kept:
            await asyncio.sleep(0)
        serving.cancel()

    asyncio.run(story())


@pytest.mark.parametrize(
    "wanted",
    [
        FetchBuffer(DIGEST, 0, "peer", b"token"),
        FetchBuffer(DIGEST, BUFFER_BYTES_MAX + 1, "peer", b"token"),
        FetchBuffer(DIGEST[:8], 1, "peer", b"token"),
        FetchBuffer(DIGEST, 1, "", b"token"),
        FetchBuffer(DIGEST, 1, "peer", b""),
        FetchBuffer(DIGEST, 1, "peer", b"t" * 1_000),
        FetchStored(DIGEST, 0, b"content"),
        FetchStored(DIGEST, 1, b"content", "", b"token"),
    ],
)
def test_what_nobody_keeps_is_not_fetched(wanted: FetchBuffer | FetchStored) -> None:
    box: Any = None
    with pytest.raises(PeerMisbehaved):
        Fetches(Keeping(NoFiles()), 1, box).begin(wanted)


def test_a_lender_may_only_say_what_it_was_asked_for() -> None:
    messages: Any = None
    session = Session(messages, Opened(1, [], keeps_results=True), 1, lambda: None)
    kept = encode(KeptResult(b"token", 5, DIGEST))
    session.keeping.add(1)
    session.fetching.add(2)

    check_statuses(session, 1, [(0, Status.OK, b""), (1, Status.KEPT, kept), (2, Status.LOST, b"")])
    check_statuses(session, 2, [(0, Status.LOST, DIGEST)])
    for chunk, status, payload in (
        (2, Status.KEPT, kept),
        (3, Status.LOST, DIGEST),
        (2, Status.LOST, DIGEST[:5]),
        (1, Status.DISPUTED, b""),
        (1, Status.UNREADABLE, b""),
        (1, 77, b""),
    ):
        with pytest.raises(PeerMisbehaved):
            check_statuses(session, chunk, [(0, int(status), payload)])
