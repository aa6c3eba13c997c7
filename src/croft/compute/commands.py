"""Runs one command on some peer: files in, live output, the command's own exit code, files out."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from croft.compute.circles import Tell
from croft.compute.environment import Environment
from croft.compute.job_sessions import StoredInput, check_prepared
from croft.compute.jobs import Peers
from croft.compute.lenders import Candidate, Lenders, Wish, is_decline
from croft.compute.messages import COMMAND_PURPOSE, Declined, OpenCommand, Opened, Preparing, PutStored
from croft.compute.worker_messages import (
    FILE_DEPTH_MAX,
    FILE_PART_BYTES,
    FILES_LISTED_MAX,
    CommandExited,
    FileBytes,
    FileEnd,
    FileFailed,
    FileList,
    FilePut,
    FromWorker,
    GetFile,
    ListFiles,
    Output,
    PutFile,
    RunCommand,
)
from croft.errors import (
    Busy,
    ConnectionLost,
    CroftError,
    Failed,
    Full,
    PeerMisbehaved,
    Refused,
    Unreachable,
    by_code,
)
from croft.model.ids import PeerId
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.ports import Stream

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.25
LEASE_SPARE_S = 30.0
"""A lease outlasts its command by this much: files are put before it and fetched after it."""
STEP = "command"

FromLender = Opened | Declined | Preparing | FromWorker
OnOutput = Callable[[int, bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """What to run. `inputs`: (file here, relative name there); `outputs`: (relative name there, file here); a
    name that ends with / is a folder, fetched with all that is in it. `stored`: inputs that lie at peers.

    `circle`, `member`: it may have streams with others of that circle, in which it is called so; "" for none.

    `stdin`: which of the inputs, by its name there, is the command's standard input; "" for none. `wait_s`: how long to
    wait in line where every peer is full. `needs`: devices, one of each. `priority`: among the same twin's. `packages`:
    what Python finds there besides. `is_wasm`: it is a WebAssembly program; `fuel`: what it may burn, 0: no limit.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[tuple[Path, str], ...] = ()
    outputs: tuple[tuple[str, Path], ...] = ()
    cpus: float = 1.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    time_s_max: float = 0.0
    stdin: str = ""
    wait_s: float = inf
    needs: tuple[str, ...] = ()
    priority: int = 0
    circle: str = ""
    member: str = ""
    stored: tuple[StoredInput, ...] = ()
    packages: Environment | None = None
    is_wasm: bool = False
    fuel: int = 0


Placed = Callable[[PeerId, Tell], AbstractContextManager[None]]
"""Says on which peer a member of a circle is, and how to tell that peer where the others are. Raises CroftError."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How it ended. `missing`: outputs that could not be fetched, with the reason."""

    exit_code: int
    signal: int
    reason: str
    peer: PeerId
    peer_name: str
    missing: tuple[str, ...] = ()


class CommandJob:
    """One command, from choosing a peer to fetching its files."""

    def __init__(self, job: str, peers: Peers, wish: Wish, spec: CommandSpec, placed: Placed | None = None) -> None:
        self._placed = placed or (lambda *_: nullcontext())
        self._job = job
        self._peers = peers
        self._spec = spec
        self._lenders = Lenders(wish)
        self._has_shown_output = False
        self._full: set[PeerId] = set()
        self.peer: PeerId | None = None

    async def run(self, on_output: OnOutput, on_start: Callable[[str], Awaitable[None]]) -> CommandResult:
        """The result, from the first peer that sees it through.

        Peers that have no room are passed over at first; when all are full, it waits in line at one of them. A peer
        that was lost before anything was printed is replaced by another one.

        Raises:
            Full: all that would take it are full, and stayed so. Refused: no peer takes it.
            Unreachable: its peer was lost after it had printed. Failed: a file problem.
        """
        loop = asyncio.get_running_loop()
        nobody_since = loop.time()
        give_up_at = loop.time() + self._spec.wait_s
        tried: set[PeerId] = set()
        while True:
            ranked = self._lenders.ranked(self._peers.candidates(), (), loop.time())
            if not ranked:
                if loop.time() - nobody_since > self._lenders.patience_s(self._peers.candidates()):
                    reasons = "; ".join(self._lenders.reasons()) or "none that fits is here"
                    raise Refused(f"no peer takes this command: {reasons}", remedy="See who is here: `croft peers`.")
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            candidate = next((one for one in ranked if one.peer not in self._full), ranked[0])
            wait_s = max(0.0, give_up_at - loop.time()) if candidate.peer in self._full else 0.0
            try:
                result = await self._run_on(candidate, wait_s, on_output, on_start)
            except Full as full:
                self._full.add(candidate.peer)
                if loop.time() >= give_up_at and all(one.peer in self._full for one in ranked):
                    raise Full(f"{candidate.name} is {full.message}", remedy=full.remedy) from None
                if wait_s:
                    await asyncio.sleep(LOOK_AGAIN_S)  # even its line was full
            except (Busy, Refused, Unreachable) as error:
                self._lenders.refused(candidate, error.message, loop.time(), is_declined=is_decline(error))
            except ConnectionLost as lost:
                if self._has_shown_output:
                    raise Unreachable(
                        f"{candidate.name} was lost while it ran the command ({lost})",
                        remedy="What it had printed is above; run the command again.",
                    ) from None
                self._lenders.refused(candidate, f"lost: {lost}", loop.time())
            except PeerMisbehaved as fault:
                log.warning("peer %s (%s) broke the protocol: %s", candidate.name, candidate.peer[:10], fault)
                self._lenders.refused(candidate, f"broke the protocol: {fault}", loop.time())
            else:
                return result
            if candidate.peer not in tried:
                tried.add(candidate.peer)
                nobody_since = loop.time()

    async def _run_on(
        self, candidate: Candidate, wait_s: float, on_output: OnOutput, on_start: Callable[[str], Awaitable[None]]
    ) -> CommandResult:
        stream: Stream = await self._peers.open_stream(candidate.peer, COMMAND_PURPOSE)
        spec = self._spec
        try:
            async with MessageStream(stream, step=STEP) as messages:
                asked = OpenCommand(
                    spec.cpus,
                    spec.memory_bytes,
                    spec.disk_bytes,
                    self._job,
                    wait_s,
                    spec.time_s_max + LEASE_SPARE_S if spec.time_s_max else 0.0,
                    spec.needs,
                    spec.priority,
                    spec.circle,
                    spec.member,
                    spec.packages,
                    spec.is_wasm,
                )
                messages.post(asked)
                while isinstance(opened := await _receive(messages), Preparing):
                    pass
                if not isinstance(opened, Opened):
                    raise PeerMisbehaved("no answer to the opening", step=STEP)
                if spec.circle and not opened.has_streams:
                    raise Refused("it is older than circles", remedy="Upgrade that peer.")
                check_prepared(spec.packages, opened)
                if spec.is_wasm and not opened.is_wasm:
                    raise Refused("its Croft runs no WebAssembly", remedy="Its owner should take a newer one.")
                self.peer = candidate.peer
                with self._placed(candidate.peer, messages.post):
                    await self._put_inputs(messages)
                    for stored in spec.stored:
                        await _put_stored(messages, stored, candidate, reads_stored=opened.reads_stored)
                    await on_start(candidate.name)
                    run = RunCommand(
                        *(list(spec.argv), dict(spec.environment), spec.time_s_max, spec.stdin),
                        is_wasm=spec.is_wasm,
                        fuel=spec.fuel,
                    )
                    messages.post(run)
                    exited = await self._follow(messages, on_output)
                    missing = await self._get_outputs(messages)
                await stream.finish()
                return CommandResult(
                    exited.exit_code,
                    exited.signal,
                    exited.reason,
                    candidate.peer,
                    candidate.name,
                    tuple(missing),
                )
        finally:
            stream.abort()

    async def _put_inputs(self, messages: MessageStream) -> None:
        for source, name in self._spec.inputs:
            await _send_file(messages, source, name)
        for source, _ in self._spec.inputs:
            if (failed := await _answer_to_file(messages)) is not None:
                raise Failed(f"the peer cannot take {source} as {failed.path}: {failed.reason}")

    async def _get_outputs(self, messages: MessageStream) -> list[str]:
        """Fetches the files that were named, and all that are in folders that were; returns what went wrong."""
        problems: list[str] = []
        for name, destination in self._spec.outputs:
            if not name.endswith("/"):
                problems.append(await _get_output(messages, name, destination))
                continue
            paths = await _list_folder(messages, name.rstrip("/"))
            if isinstance(paths, FileFailed):
                problems.append(f"{name}: {paths.reason}")
                continue
            for path in paths:
                place = destination / path
                await asyncio.to_thread(place.parent.mkdir, parents=True, exist_ok=True)
                problems.append(await _get_output(messages, name + path, place))
        return [problem for problem in problems if problem]

    async def _follow(self, messages: MessageStream, on_output: OnOutput) -> CommandExited:
        while True:
            message = await _receive(messages)
            match message:
                case Output(descriptor, data):
                    self._has_shown_output = True
                    await on_output(descriptor, data)
                case CommandExited():
                    return message
                case _:
                    raise PeerMisbehaved(f"{type(message).__name__} while the command ran", step=STEP)


async def _receive(messages: MessageStream) -> FromLender:
    payload = await messages.receive()
    if payload is None:
        raise ConnectionLost("it closed the stream")
    message: FromLender = decode_union(payload, FromLender, step=STEP)
    if isinstance(message, Declined):
        error: CroftError = by_code(message.code, message.message, message.remedy)
        raise error
    return message


async def _send_file(messages: MessageStream, source: Path, name: str) -> None:
    try:
        file = await asyncio.to_thread(source.open, "rb")
    except OSError as error:
        raise Failed(f"cannot read {source}: {error.strerror}") from None
    try:
        messages.post(PutFile(name, os.access(source, os.X_OK)))
        while part := await asyncio.to_thread(file.read, FILE_PART_BYTES):
            await messages.send(FileBytes(part))
        await messages.send(FileEnd())
    finally:
        file.close()


async def _answer_to_file(messages: MessageStream) -> FileFailed | None:
    """Whether a file is there: None, or why not."""
    match await _receive(messages):
        case FilePut():
            return None
        case FileFailed() as failed:
            return failed
        case other:
            raise PeerMisbehaved(f"{type(other).__name__} while files were sent", step=STEP)


async def _put_stored(
    messages: MessageStream, stored: StoredInput, candidate: Candidate, *, reads_stored: bool
) -> None:
    """Has the peer read it where it lies, else sends it."""
    if reads_stored and candidate.peer in stored.at:
        messages.post(PutStored(stored.path, stored.content))
        if (failed := await _answer_to_file(messages)) is None:
            return
        log.info("%s does not hold %s any more: %s", candidate.name, stored.path, failed.reason)
    messages.post(PutFile(stored.path))
    async for piece in stored.read():
        for at in range(0, len(piece), FILE_PART_BYTES):
            await messages.send(FileBytes(bytes(piece[at : at + FILE_PART_BYTES])))
    await messages.send(FileEnd())
    if (failed := await _answer_to_file(messages)) is not None:
        raise Failed(f"{candidate.name} cannot take the stored file as {failed.path}: {failed.reason}")


async def _list_folder(messages: MessageStream, name: str) -> list[str] | FileFailed:
    """The files in a folder there. Raises PeerMisbehaved for paths that lead out of it."""
    messages.post(ListFiles(name))
    reply = await _receive(messages)
    match reply:
        case FileList(paths):
            if len(paths) > FILES_LISTED_MAX or not all(map(is_inside, paths)):
                raise PeerMisbehaved("a list of files that are not in the folder", step=STEP)
            return paths
        case FileFailed():
            return reply
        case _:
            raise PeerMisbehaved(f"{type(reply).__name__} while files were listed", step=STEP)


def is_inside(path: str) -> bool:
    """Whether a path that a lender names stays below the folder that was asked for."""
    parts = path.split("/")
    is_plain = path.isprintable() and not any(part in ("", ".", "..") for part in parts)
    return is_plain and len(parts) <= FILE_DEPTH_MAX + 1


async def _get_output(messages: MessageStream, name: str, destination: Path) -> str:
    """Fetches one file, whole or not at all; returns what went wrong, or nothing."""
    part = destination.with_name(f".{destination.name}.part")
    messages.post(GetFile(name))
    file: BinaryIO | None = None
    try:
        while True:
            message = await _receive(messages)
            match message:
                case FileBytes(data):
                    if file is None:
                        file = await asyncio.to_thread(part.open, "wb")
                    await asyncio.to_thread(file.write, data)
                case FileEnd():
                    if file is None:
                        file = await asyncio.to_thread(part.open, "wb")
                    file.close()
                    await asyncio.to_thread(part.replace, destination)
                    return ""
                case FileFailed(path, reason):
                    return f"{path}: {reason}"
                case Opened() | Declined() | Preparing():
                    raise PeerMisbehaved("an answer to an opening while files were fetched", step=STEP)
                case _:
                    raise PeerMisbehaved(f"{type(message).__name__} while files were fetched", step=STEP)
    except OSError as error:
        raise Failed(f"cannot write {destination}: {error.strerror}") from None
    finally:
        if file is not None and not file.closed:
            file.close()
            part.unlink(missing_ok=True)
