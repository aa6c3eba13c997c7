"""What backups keep beside the files, byte for byte: docs/specs/storage.md. Only add fields, with defaults.

A *store* is one backup of one device. Its bytes are cut into *chunks*, known by a keyed hash, which lie end to end in
*packs*; a *table* says which chunks lie in which pack. A *snapshot* is a tree of *listings*, one of each folder, which
are stored as files are: by the chunks of their bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from croft.errors import Usage
from croft.storage.retention import Policy
from croft.storage.service import HIDDEN
from croft.wire.codec import Message

DEFINITIONS: Final = HIDDEN + b"backups/definitions/"
STORES: Final = HIDDEN + b"backups/stores/"
PACKS, TABLES, SNAPSHOTS = b"/packs/", b"/tables/", b"/snapshots/"
NUMBER_DIGITS: Final = 10
NAME_CHARS_MAX: Final = 64
CHUNKS_LISTED_MAX: Final = 64
"""A longer list of chunks is stored as a blob of its own."""
DEPTH_MAX: Final = 4


class Kind(enum.IntEnum):
    """What a name in a folder is. Numbers are for ever."""

    FILE = 0
    FOLDER = 1
    SYMLINK = 2
    FIFO = 3
    CHARACTER_DEVICE = 4
    BLOCK_DEVICE = 5


class Blob(Message, frozen=True):
    """`size` bytes, by their chunks in order. With `depth`, what these hold is a `ChunkList`, and so on."""

    size: int
    depth: int
    chunks: list[bytes]


class ChunkList(Message, frozen=True):
    """What a blob of some depth holds."""

    format: int
    chunks: list[bytes]


class Node(Message, frozen=True):
    """One name in a folder.

    `blob`: a file's bytes without its holes, or a folder's `Listing`. `size` is of the whole file. `holes`: (offset,
    length) of what a sparse file has no bytes of. `link`: files of one snapshot with the same pair are one file with
    several names. `target`: of a symlink; `device`: number of a device. `is_torn`: it changed each time it was read.
    """

    name: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    blob: Blob | None = None
    target: bytes = b""
    xattrs: Sequence[tuple[bytes, bytes]] = ()
    link: tuple[int, int] | None = None
    holes: Sequence[tuple[int, int]] = ()
    device: int = 0
    is_torn: bool = False


class Listing(Message, frozen=True):
    """What is in a folder, by name."""

    format: int
    nodes: list[Node]


class PackTable(Message, frozen=True):
    """The chunks of one pack, (id, size), as they lie in it end to end from its start."""

    pack: bytes
    chunks: list[tuple[bytes, int]]


class Table(Message, frozen=True):
    """Packs that were put together."""

    format: int
    packs: list[PackTable]


class Definition(Message, frozen=True):
    """What is backed up, whither, when and for how long. `device_name`: of the device whose backup it is, as it called
    itself. `to`: words as `friends`, ids of communities and peers; none: whoever lends disk. `keep`: the layout, as
    `4of8`; empty: as the number of peers suggests. `every_s` 0: only when it is told to.
    """

    format: int
    device_name: str
    paths: list[bytes]
    exclude: Sequence[str] = ()
    to: Sequence[str] = ()
    keep: str = ""
    every_s: float = 0.0
    policy: Policy = Policy()
    made_at: float = 0.0


class SnapshotRecord(Message, frozen=True):
    """One run that came to its end: the paths of then, in the order of the top listing's names, and what is in them.

    `unreadable` names were left out; `torn` files changed each time they were read.
    """

    format: int
    at: float
    took_s: float
    paths: list[bytes]
    tree: Blob
    files: int
    size: int
    unreadable: int = 0
    torn: int = 0


@dataclass(frozen=True, slots=True)
class StoreName:
    """Which store: whose device's, and what it is called."""

    device: bytes
    name: str

    @property
    def definition(self) -> bytes:
        """Where its definition is kept."""
        return DEFINITIONS + self._text

    @property
    def prefix(self) -> bytes:
        """How the names of all else that belongs to it begin."""
        return STORES + self._text

    @property
    def _text(self) -> bytes:
        return self.device.hex().encode() + b"/" + self.name.encode()

    @classmethod
    def of_definition(cls, name: bytes) -> StoreName:
        """Whose definition is kept under a name."""
        device, _, text = name.removeprefix(DEFINITIONS).partition(b"/")
        return cls(bytes.fromhex(device.decode()), text.decode())


def snapshot_name(prefix: bytes, number: int) -> bytes:
    """Where a snapshot is kept; they are in order."""
    return prefix + SNAPSHOTS + str(number).zfill(NUMBER_DIGITS).encode()


def check_backup_name(name: str) -> None:
    """Raises Usage for what cannot be the name of a backup."""
    if not name or len(name) > NAME_CHARS_MAX or not name.isprintable() or any(mark in name for mark in "/@:"):
        raise Usage(
            f"a backup cannot be called `{name[:NAME_CHARS_MAX]}`",
            remedy=f"Say --name: 1 to {NAME_CHARS_MAX} letters, without `/`, `@` and `:`.",
        )
