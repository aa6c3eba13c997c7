"""Stored files from a program: put, get and open them by name. `grid.storage` is one of these."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol, overload

from croft.client.local_api import LocalApi
from croft.client.stored_argument import StoredArgument
from croft.client.work_connection import WorkConnection
from croft.compute.worker_messages import BUFFER_BYTES_MAX
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import duration_s, size_bytes
from croft.control.work_messages import (
    GetDone,
    OpenGet,
    OpenPut,
    PieceOfFile,
    PieceRead,
    PutDone,
    StorageProgress,
)
from croft.errors import NotFound, TooLarge, Unreachable, Usage

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

PIECE_BYTES = 1 << 20
READ_AHEAD_BYTES = 1 << 20
LINK_LIFETIME = "30d"
REBALANCED = "10G"
REBALANCED_AT_ONCE_BYTES = 64 << 20
ENDED = Unreachable("the daemon ended meanwhile", remedy="Start it with `croft up`, and try again.")

OnProgress = Callable[[StorageProgress], None]
Name = str | bytes
"""Of a stored file: parts divided by /. Bytes, where it is no text."""


class Readable(Protocol):
    """An open binary file."""

    def read(self, size: int, /) -> bytes: ...


class StoredFiles:
    """The files that this peer's owner stores at others. Every method may be called from any thread.

    All raise Unreachable if the daemon is not running.
    """

    def __init__(self, home: Home, api: LocalApi) -> None:
        self._work_socket = home.work_socket
        self._api = api

    def put(
        self,
        what: bytes | bytearray | memoryview | str | os.PathLike[str] | Readable,
        name: Name = "",
        *,
        on: Sequence[str] = (),
        never: Sequence[str] = (),
        keep: str = "",
        lifetime: str | float = 0.0,
        progress: OnProgress = lambda _: None,
    ) -> schema.FilesPut:
        """Stores bytes, a file, a folder with all that is in it, or what an open file gives; a new version, if there
        is one of this name.

        Args:
            what: the bytes; or a path; or an open binary file.
            name: what to call it; needed unless it is a path.
            on, never: peers that may hold it, or may not.
            keep: `4of8`: any 4 of 8 shares are enough; `copies=3`; by default as the number of peers suggests.
            lifetime: after how long it goes by itself, in seconds or like "90d"; by default never.

        Raises:
            Refused: too few peers may hold it, or they have no room. Failed: a file cannot be read.
        """
        for_s = duration_s(lifetime) if lifetime else 0.0
        if isinstance(what, str | os.PathLike):
            path = os.path.abspath(os.fspath(what))
            files = [(os.fsencode(path), name_bytes(name or os.path.basename(path)))]
            opening = OpenPut(files, b"", self.peer_ids(on), self.peer_ids(never), keep, for_s)
            return self.put_paths(opening, progress)
        if not name:
            raise Usage("what is put needs a name", remedy="Say it: put(data, 'name').")
        opening = OpenPut([], name_bytes(name), self.peer_ids(on), self.peer_ids(never), keep, for_s)
        data = io.BytesIO(what) if isinstance(what, bytes | bytearray | memoryview) else what
        return self.put_piped(opening, data, progress)

    def get(self, name: Name, *, number: int = 0) -> bytes:
        """All of one file; `number`: of an earlier version. Raises NotFound, Unreachable."""
        return b"".join(self.read(OpenGet(name_bytes(name), number=number)))

    def fetch(
        self,
        name: Name,
        place: str | os.PathLike[str],
        *,
        number: int = 0,
        replaces: bool = False,
        progress: OnProgress = lambda _: None,
    ) -> schema.FilesRead:
        """Reads a file, or all below a name, to a place on this machine. Raises NotFound, Refused, Unreachable."""
        at = os.fsencode(os.path.abspath(os.fspath(place)))
        return self.get_to(OpenGet(name_bytes(name), at, number, replaces), progress)

    @overload
    def open(self, name: Name, mode: Literal["rb"] = "rb", *, number: int = 0) -> io.BufferedReader: ...

    @overload
    def open(self, name: Name, mode: Literal["wb"], *, keep: str = "") -> io.BufferedWriter: ...

    def open(
        self, name: Name, mode: Literal["rb", "wb"] = "rb", *, number: int = 0, keep: str = ""
    ) -> io.BufferedReader | io.BufferedWriter:
        """A stored file as a file: `rb` reads any part of it, `wb` writes a new version, which counts once closed.

        Raises NotFound, Usage.
        """
        if mode == "wb":
            return io.BufferedWriter(_Writing(self, name, keep), PIECE_BYTES)
        if mode != "rb":
            raise Usage(f"a stored file cannot be opened as `{mode}`", remedy="Use rb or wb.")
        return io.BufferedReader(_Reading(self, name, number), READ_AHEAD_BYTES)

    def file(self, name: Name, *, number: int = 0) -> StoredArgument:
        """A stored file as an argument of tasks, which get it as a file that is open for reading.

        They run at peers that hold it, if they can, and read it there; others get it from this machine's peer. It is
        this version also if a newer one is put meanwhile. Up to 1 GiB, and three quarters of a task's memory.

        Raises NotFound: there is no such file, or no such version.
        """
        at = name_bytes(name)
        shown = name if isinstance(name, str) else name.decode(errors="replace")
        found = next((one for one in self.ls(name) if one.name == shown or one.name_hex == at.hex()), None)
        versions = [] if found is None else [one for one in found.versions if number in (0, one.number)]
        if not versions or versions[-1].is_removed:
            raise NotFound(f"there is no stored file `{shown}`", remedy="See which there are: `croft ls`.")
        newest = versions[-1]
        if newest.size_bytes > BUFFER_BYTES_MAX:
            raise TooLarge(
                f"`{shown}` is too large for an argument: {newest.size_bytes:,} bytes",
                remedy="Give it to a command: `croft run --stored`.",
            )
        return StoredArgument(shown, newest.size_bytes, at, newest.number, newest.at)

    def ls(
        self, name: Name = "", *, with_removed: bool = False, at_risk: bool = False, snapshot: str = ""
    ) -> list[schema.StoredFile]:
        """The file of this name, and all below it; all files by default. `at_risk`: only those that lack shares."""
        at = name_bytes(name).hex() if name else ""
        wanted = schema.FilesWanted(name_hex=at, with_removed=with_removed, at_risk=at_risk, snapshot=snapshot)
        return self._api.files(wanted)

    def rm(self, name: Name, *, is_folder: bool = False, is_final: bool = False) -> schema.FilesRemoved:
        """Removes a file, or with `is_folder` all below a name. `is_final`: with every version. Raises NotFound."""
        shown = name if isinstance(name, str) else name.decode(errors="replace")
        at = name_bytes(name).hex()
        wanted = schema.RemovalWanted(name=shown, name_hex=at, is_folder=is_folder, is_final=is_final)
        return self._api.remove_files(wanted)

    def rebalance(
        self,
        *,
        dry_run: bool = False,
        limit: str | int = REBALANCED,
        progress: Callable[[schema.Rebalanced], None] = lambda _: None,
    ) -> schema.Rebalanced:
        """Moves shares to where they belong now: where each file's rule lets them be, one per owner, by the room that
        peers offer, those who joined since among them. Each has its new place before it leaves the old one.

        Args:
            dry_run: only says what would be moved.
            limit: at most so many bytes, as a number or like "10G".
            progress: is told of each part that is done.

        Raises Refused, if no other peer lends disk; Unreachable.
        """
        left = size_bytes(limit)
        if dry_run:
            return self._api.rebalance_storage(schema.RebalanceWanted(bytes_max=left, is_dry=True))
        done: schema.Rebalanced | None = None
        while True:
            part = self._api.rebalance_storage(schema.RebalanceWanted(bytes_max=min(left, REBALANCED_AT_ONCE_BYTES)))
            moved = sum(one.size_bytes for one in part.moved)
            left -= moved
            done = part if done is None else _both(done, part)
            progress(done)
            if not moved or left <= 0:  # what one share left, another one may take: until there is nothing more to move
                return done

    # --- links -------------------------------------------------------------------------------------------------------

    def link(
        self,
        name: Name,
        to: Iterable[str] = (),
        *,
        write: Iterable[str] = (),
        lifetime: str | float = LINK_LIFETIME,
        verify: bool = False,
        repair: bool = False,
    ) -> schema.FileLink:
        """Lets people and communities, by their names, read a file, or all below a name, as it changes; those of
        `write` put and remove files there, too.

        Its `line` is a name for them: `get(line)`, `ls(line)`, `put(data, f"{line}/page")`, `rm(f"{line}/page")`.
        `lifetime`: how long it is good, in seconds or like "90d". `verify`: they read nothing, and `verify_link` tells
        them whether all of it is there; with `repair` they make lost shares again. Raises NotFound, Usage, Unreachable.
        """
        shown = name if isinstance(name, str) else name.decode(errors="replace")
        at, for_s = name_bytes(name).hex(), duration_s(lifetime)
        wanted = schema.LinkWanted(
            name=shown,
            name_hex=at,
            to=list(to),
            writers=list(write),
            for_s=for_s,
            verifies=verify,
            repairs=repair,
        )
        return self._api.make_link(wanted)

    def verify_link(self, line: str, *, deep: bool = False, repair: bool = False) -> schema.LinkVerified:
        """Has holders prove that all behind a line is there; `deep`: every share is read, and compared with its id.

        `repair`: lost shares are made again elsewhere, as far as the line lets one. Raises Refused, NotFound, Usage.
        """
        return self._api.verify_link(schema.VerificationWanted(line=line, is_deep=deep, repairs=repair))

    def links(self) -> list[schema.FileLink]:
        """Links that this peer's owner made, on whatever device."""
        return self._api.links()

    def revoke_link(self, link: str) -> schema.FileLink:
        """Has a link lead to nothing any more; `link`: its id, or how that begins. Raises NotFound, Unreachable."""
        return self._api.revoke_link(link)

    # --- what the command line uses too ------------------------------------------------------------------------------

    def peer_ids(self, names: Iterable[str]) -> list[str]:
        """The ids of peers named by people. Raises NotFound."""
        return [self._api.find_peer(name).peer for name in names]

    def put_paths(self, opening: OpenPut, progress: OnProgress) -> schema.FilesPut:
        """Puts what the opening names."""
        work = WorkConnection(self._work_socket, ENDED)
        try:
            work.send(opening)
            return _put_done(work, progress)
        finally:
            work.close()

    def put_piped(self, opening: OpenPut, data: Readable | BinaryIO, progress: OnProgress) -> schema.FilesPut:
        """Puts what `data` gives, to its end."""
        work = WorkConnection(self._work_socket, ENDED)
        sent = 0
        try:
            work.send(opening)
            while piece := data.read(PIECE_BYTES):
                work.send(PieceOfFile(piece))
                sent += len(piece)
                progress(StorageProgress(0, sent, -1))
            work.send(PieceOfFile(b""))
            return _put_done(work, lambda _: None)
        finally:
            work.close()

    def get_to(self, opening: OpenGet, progress: OnProgress) -> schema.FilesRead:
        """Reads files to the opening's place."""
        work = WorkConnection(self._work_socket, ENDED)
        try:
            work.send(opening)
            while True:
                match work.receive():
                    case StorageProgress() as told:
                        progress(told)
                    case GetDone(count, size, faults):
                        return schema.FilesRead(files=count, size_bytes=size, faults=faults)
                    case other:
                        raise AssertionError(f"{type(other).__name__} in a get")
        finally:
            work.close()

    def read(self, opening: OpenGet) -> Iterator[bytes]:
        """The bytes of one file, as they come."""
        work = WorkConnection(self._work_socket, ENDED)
        try:
            work.send(opening)
            while True:
                match work.receive():
                    case PieceRead(data):
                        yield data
                    case GetDone():
                        return
                    case other:
                        raise AssertionError(f"{type(other).__name__} in a get")
        finally:
            work.close()

    def begin(self, opening: OpenPut) -> WorkConnection:
        """A put whose pieces follow."""
        work = WorkConnection(self._work_socket, ENDED)
        work.send(opening)
        return work


class AsyncStoredFiles:
    """The asyncio twin of `StoredFiles`: the same calls, awaited."""

    def __init__(self, files: StoredFiles) -> None:
        self._files = files

    async def put(
        self,
        what: bytes | bytearray | memoryview | str | os.PathLike[str] | Readable,
        name: Name = "",
        *,
        on: Sequence[str] = (),
        never: Sequence[str] = (),
        keep: str = "",
        lifetime: str | float = 0.0,
    ) -> schema.FilesPut:
        """See `StoredFiles.put`."""
        return await asyncio.to_thread(self._files.put, what, name, on=on, never=never, keep=keep, lifetime=lifetime)

    async def get(self, name: Name, *, number: int = 0) -> bytes:
        """See `StoredFiles.get`."""
        return await asyncio.to_thread(self._files.get, name, number=number)

    async def fetch(
        self, name: Name, place: str | os.PathLike[str], *, number: int = 0, replaces: bool = False
    ) -> schema.FilesRead:
        """See `StoredFiles.fetch`."""
        return await asyncio.to_thread(self._files.fetch, name, place, number=number, replaces=replaces)

    async def ls(self, name: Name = "", *, with_removed: bool = False) -> list[schema.StoredFile]:
        """See `StoredFiles.ls`."""
        return await asyncio.to_thread(self._files.ls, name, with_removed=with_removed)

    async def file(self, name: Name, *, number: int = 0) -> StoredArgument:
        """See `StoredFiles.file`."""
        return await asyncio.to_thread(self._files.file, name, number=number)

    async def rm(self, name: Name, *, is_folder: bool = False, is_final: bool = False) -> schema.FilesRemoved:
        """See `StoredFiles.rm`."""
        return await asyncio.to_thread(self._files.rm, name, is_folder=is_folder, is_final=is_final)

    async def rebalance(self, *, dry_run: bool = False, limit: str | int = REBALANCED) -> schema.Rebalanced:
        """See `StoredFiles.rebalance`."""
        return await asyncio.to_thread(self._files.rebalance, dry_run=dry_run, limit=limit)

    async def link(
        self,
        name: Name,
        to: Iterable[str] = (),
        *,
        write: Iterable[str] = (),
        lifetime: str | float = LINK_LIFETIME,
        verify: bool = False,
        repair: bool = False,
    ) -> schema.FileLink:
        """See `StoredFiles.link`."""
        return await asyncio.to_thread(
            self._files.link, name, to, write=write, lifetime=lifetime, verify=verify, repair=repair
        )

    async def verify_link(self, line: str, *, deep: bool = False, repair: bool = False) -> schema.LinkVerified:
        """See `StoredFiles.verify_link`."""
        return await asyncio.to_thread(self._files.verify_link, line, deep=deep, repair=repair)

    async def links(self) -> list[schema.FileLink]:
        """See `StoredFiles.links`."""
        return await asyncio.to_thread(self._files.links)

    async def revoke_link(self, link: str) -> schema.FileLink:
        """See `StoredFiles.revoke_link`."""
        return await asyncio.to_thread(self._files.revoke_link, link)


class _Reading(io.RawIOBase):
    """One version of a stored file, read by ranges."""

    def __init__(self, files: StoredFiles, name: Name, number: int) -> None:
        found = [file for file in files.ls(name, with_removed=True) if _is_called(file, name)]
        if not found:
            from croft.errors import NotFound

            raise NotFound(f"there is no file `{name!s}`", remedy="See which there are: `croft ls`.")
        version = next((one for one in found[0].versions if one.number == number), found[0].versions[-1])
        self._files = files
        self._opening = (name_bytes(name), version.number)
        self._size = version.size_bytes
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), max(0, self._size - self._at))
        if not wanted:
            return 0
        name, number = self._opening
        at = 0
        for piece in self._files.read(OpenGet(name, number=number, offset=self._at, size=wanted)):
            view[at : at + len(piece)] = piece
            at += len(piece)
        self._at += at
        return at

    def readall(self) -> bytes:
        name, number = self._opening
        data = b"".join(self._files.read(OpenGet(name, number=number, offset=self._at)))
        self._at += len(data)
        return data


class _Writing(io.RawIOBase):
    """A new version of a stored file."""

    def __init__(self, files: StoredFiles, name: Name, keep: str) -> None:
        self._work = files.begin(OpenPut([], name_bytes(name), keep=keep))

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        view = memoryview(data).cast("B")
        for at in range(0, len(view), PIECE_BYTES):
            self._work.send(PieceOfFile(bytes(view[at : at + PIECE_BYTES])))
        return len(view)

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._work.send(PieceOfFile(b""))
            _put_done(self._work, lambda _: None)
        finally:
            self._work.close()
            super().close()


def _both(first: schema.Rebalanced, then: schema.Rebalanced) -> schema.Rebalanced:
    """Two parts of one rebalancing."""
    moved: dict[tuple[str, str, str], schema.SharesMoved] = {}
    for one in (*first.moved, *then.moved):
        way = (one.source, one.target, one.why)
        known = moved.get(way)
        shares, size = (known.shares, known.size_bytes) if known is not None else (0, 0)
        moved[way] = schema.SharesMoved(
            source=one.source,
            target=one.target,
            why=one.why,
            shares=shares + one.shares,
            size_bytes=size + one.size_bytes,
        )
    before = {peer.name: peer.before_bytes for peer in first.peers}
    return schema.Rebalanced(
        moved=list(moved.values()),
        left=then.left,
        stuck=then.stuck,
        peers=[
            schema.PeerFilled(
                name=peer.name, before_bytes=before.get(peer.name, peer.before_bytes), after_bytes=peer.after_bytes
            )
            for peer in then.peers
        ],
        problems=list(dict.fromkeys([*first.problems, *then.problems])),
    )


def name_bytes(name: Name) -> bytes:
    """The name of a stored file as it is kept."""
    data = name if isinstance(name, bytes) else os.fsencode(name)
    return data.strip(b"/")


def _is_called(file: schema.StoredFile, name: Name) -> bool:
    wanted = name_bytes(name)
    return bytes.fromhex(file.name_hex) == wanted if file.name_hex else file.name.encode() == wanted


def _put_done(work: WorkConnection, progress: OnProgress) -> schema.FilesPut:
    while True:
        match work.receive():
            case StorageProgress() as told:
                progress(told)
            case PutDone(files, size, stored, layout, losses, holders, missing):
                return schema.FilesPut(
                    files=files,
                    size_bytes=size,
                    stored_bytes=stored,
                    layout=layout,
                    losses=losses,
                    holders=holders,
                    missing=missing,
                )
            case other:
                raise AssertionError(f"{type(other).__name__} in a put")
