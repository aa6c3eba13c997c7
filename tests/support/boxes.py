"""Boxes with a worker in them, and a peer's side to talk to it with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from croft.adapters.box_process import ProcessSandbox
from croft.adapters.bubblewrap_sandbox import BubblewrapSandbox
from croft.adapters.isolation_probe import Findings, probe
from croft.adapters.landlock_sandbox import LandlockSandbox
from croft.adapters.plain_process import PlainProcessSandbox
from croft.adapters.python_runtime import runtime_environment, runtime_paths, worker_argv
from croft.compute.worker_messages import (
    ChunkDone,
    ChunkResults,
    FromWorker,
    FunctionFailed,
    Outcome,
    Ready,
    RunChunk,
    Status,
)
from croft.model.isolation import Grade, Isolation
from croft.ports import Box, BoxSpec
from croft.wire.codec import Message, decode_union, encode
from croft.wire.frames import FrameReader, frame
from croft.wire.values import decode_value
from support.worker_process import arguments, load_message

NAMESPACE_KINDS = ("namespaces and cgroup", "namespaces alone")
CONFINING_KINDS = (*NAMESPACE_KINDS, "landlock")
KINDS = (*CONFINING_KINDS, "plain")


@cache
def findings() -> Findings:
    """What this machine offers, tried once."""
    return probe()


def sandbox_of(kind: str) -> ProcessSandbox:
    """A sandbox of this kind. Fails where this machine has none, and says why."""
    found = findings()
    match kind:
        case "namespaces and cgroup" if not found.namespaces_reason and found.groups is not None:
            return BubblewrapSandbox(Isolation(Grade.A), found.groups)
        case "namespaces alone" if not found.namespaces_reason:
            return BubblewrapSandbox(Isolation(Grade.B), None)
        case "landlock" if not found.landlock_reason:
            return LandlockSandbox(Isolation(Grade.C), None)
        case "plain":
            return PlainProcessSandbox(Isolation(Grade.D), None)
    reasons = (found.groups_reason, found.namespaces_reason, found.landlock_reason)
    raise AssertionError(f"this machine has no sandbox of {kind}: {'; '.join(filter(None, reasons))}")


def worker_spec(work_dir: Path | None, name: str = "test", slots: int = 1) -> BoxSpec:
    """A small box with a worker."""
    return BoxSpec(
        name=name,
        argv=worker_argv(slots),
        read_only=runtime_paths(),
        work_dir=work_dir,
        environment=runtime_environment(),
        memory_bytes=256 << 20,
        processes_max=24,
        scratch_bytes=16 << 20,
        work_bytes=16 << 20,
        work_files_max=500,
    )


class Peer:
    """The peer's side of a box with a worker."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self._reader = FrameReader(step="test")
        self._received: list[bytes] = []
        self._chunks = 0

    async def send(self, message: Message) -> None:
        """Sends one message."""
        await self.box.write(frame(encode(message)))

    async def receive(self) -> FromWorker | None:
        """The next message; None once the box has ended."""
        while not self._received:
            data = await self.box.read(1 << 20)
            if not data:
                return None
            self._received += self._reader.feed(data)
        message: FromWorker = decode_union(self._received.pop(0), FromWorker, step="test")
        return message

    async def run(
        self, function: Callable[..., object], tasks: Sequence[bytes], task_s_max: float = 20.0
    ) -> list[Outcome]:
        """Outcomes of one chunk in order of tasks; fewer than tasks if the box ended."""
        message = load_message(function)
        await self.send(message)
        self._chunks += 1
        await self.send(RunChunk(self._chunks, message.digest, list(tasks), task_s_max))
        outcomes: dict[int, Outcome] = {}
        while (answer := await self.receive()) is not None:
            if isinstance(answer, ChunkResults):
                outcomes.update((outcome[0], outcome) for outcome in answer.outcomes)
            elif isinstance(answer, FunctionFailed):
                raise AssertionError(answer.reason)
            elif isinstance(answer, ChunkDone) and answer.chunk == self._chunks:
                break
        return [outcomes[index] for index in sorted(outcomes)]

    async def call(self, function: Callable[..., object], *args: object) -> object:
        """The value of one call. Asserts that it succeeds."""
        [(_, status, payload)] = await self.run(function, [arguments(*args)])
        assert status == Status.OK, (Status(status), payload[-2000:])
        return decode_value(payload)


@asynccontextmanager
async def open_peer(sandbox: ProcessSandbox, work_dir: Path | None, **changes: object) -> AsyncIterator[Peer]:
    """A box with a worker that is ready; `changes` replace parts of its spec."""
    described: Mapping[str, object] = changes
    box = await sandbox.open(replace(worker_spec(work_dir), **described))  # type: ignore[arg-type]  # by name
    try:
        peer = Peer(box)
        assert isinstance(await peer.receive(), Ready)
        yield peer
    finally:
        await box.close()
