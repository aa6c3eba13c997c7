"""What the local API answers about stored files; part of `croft.control.schema`."""

from __future__ import annotations

import msgspec


class FilesPut(msgspec.Struct, frozen=True, kw_only=True):
    """What was stored. `holders`: how many shares each peer took, by name; `missing`: shares that nobody took.

    `losses`: how many holders of a file may be lost. `stored_bytes`: what all shares take.
    """

    files: int
    size_bytes: int
    stored_bytes: int
    layout: str
    losses: int
    holders: dict[str, int]
    missing: int


class FilesRead(msgspec.Struct, frozen=True, kw_only=True):
    """What was read. `faults`: what holders were caught at meanwhile."""

    files: int
    size_bytes: int
    faults: list[str]


class StoredVersion(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One version of a stored file. `device` put it `at`; `is_removed`: the file was removed then.

    `layout`: how its shares are kept, as `4of8` or `copies=3`. `until`: when it goes by itself; None: never.
    """

    number: int
    size_bytes: int
    at: float
    device: str
    mode: int
    mtime: float
    is_removed: bool
    layout: str = ""
    until: float | None = None


class StoredFile(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A stored file, and its versions, oldest first. The fields besides are those of the newest one.

    `name_hex` is the name's bytes in hex if they are no UTF-8. `margin`: how many more holders may be lost, as the last
    look at them found; None: as many as the layout bears. `is_conflict`: two devices put the newest version apart.
    """

    name: str
    size_bytes: int
    at: float
    is_removed: bool
    versions: list[StoredVersion]
    name_hex: str = ""
    margin: int | None = None
    is_conflict: bool = False


class RollbackWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Makes an earlier version of a file the newest one again; `device`: of those with one number, which one's."""

    name: str
    number: int
    name_hex: str = ""
    device: str = ""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The files as they were at some time, under a name."""

    name: str
    at: float
    files: int


class SnapshotWanted(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot, by its name."""

    name: str


class FilesWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which files to tell of: those whose name is `name`, or begins with it and a slash; all of them if it is empty.

    `at_risk`: only those that lack shares, as the last look at their holders found.
    """

    name: str = ""
    name_hex: str = ""
    with_removed: bool = False
    at_risk: bool = False
    snapshot: str = ""


class FilesRemoved(msgspec.Struct, frozen=True, kw_only=True):
    """What was removed, and how much room that gave back."""

    files: int
    freed_bytes: int


class RemovalWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Removes a file, or all below a name if `is_folder`. `is_final`: with all versions, and shares are dropped now."""

    name: str
    name_hex: str = ""
    is_folder: bool = False
    is_final: bool = False


class HolderState(msgspec.Struct, frozen=True, kw_only=True):
    """A peer that may hold shares. `shares` and `held_bytes`: what it holds for this owner, None if it did not answer;
    `room_bytes`: what it would take besides. `passed`, `failed`: how often it proved what it holds, and did not."""

    peer: str
    name: str
    is_alive: bool
    shares: int | None
    held_bytes: int | None
    room_bytes: int | None
    passed: int
    failed: int


class WatchedData(msgspec.Struct, frozen=True, kw_only=True):
    """Data of somebody who is away, which this peer looks after. `short`: stripes that lack shares."""

    twin: str
    looked_at: float
    stripes: int
    short: int
    rebuilt: int


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What peers held for somebody who came back: files, contacts, and communities besides the one that was joined."""

    files: int
    contacts: int
    communities: int


class StorageState(msgspec.Struct, frozen=True, kw_only=True):
    """How the owner's files stand. `faults`: what holders were caught at since this peer started.

    `looked_at`: when all holders were asked last, Unix seconds, 0: not yet; `stripes`: pieces that are coded by
    themselves, of which `short` lacked shares and `unreadable` had too few; `rebuilt`: shares made again since start.
    `watched`: whose data this peer looks after.
    """

    files: int
    size_bytes: int
    holders: list[HolderState]
    faults: list[str]
    looked_at: float
    stripes: int
    short: int
    unreadable: int
    rebuilt: int
    watched: list[WatchedData]


class RebalanceWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Moves shares to where they belong now, at most so many bytes of them; `is_dry`: only says which."""

    bytes_max: int
    is_dry: bool = False


class SharesMoved(msgspec.Struct, frozen=True, kw_only=True):
    """Shares that go from one peer to another, by their names. `why`: `rule`, the old one may not hold them; `owner`,
    it has other shares of the same data, or its owner does; `room`, it is fuller than the new one."""

    source: str
    target: str
    why: str
    shares: int
    size_bytes: int


class PeerFilled(msgspec.Struct, frozen=True, kw_only=True):
    """How much of this owner's shares a peer holds: before, and once all that is wanted is moved."""

    name: str
    before_bytes: int
    after_bytes: int


class Rebalanced(msgspec.Struct, frozen=True, kw_only=True):
    """What was `moved`, and what is `left` to move; `stuck`: shares that ought to move, and nobody may hold them.

    `problems`: why some could not be moved; they are where they were."""

    moved: list[SharesMoved]
    left: list[SharesMoved]
    stuck: int
    peers: list[PeerFilled]
    problems: list[str]


class LinkWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Lets people or communities, by their names, read a file, or all below a name, for some time.

    `writers`: those who may put and remove files there, too. `verifies`: they may not even read, but check that all of
    it is there; and make lost shares again if it `repairs`.
    """

    name: str
    to: list[str]
    for_s: float
    name_hex: str = ""
    writers: list[str] = []
    verifies: bool = False
    repairs: bool = False


class FileLink(msgspec.Struct, frozen=True, kw_only=True):
    """A link to stored files. `line` is what is passed on; `to`: who may use it; `writers`: who of them may write."""

    link: str
    name: str
    to: list[str]
    made_at: float
    expires_at: float
    is_revoked: bool
    line: str
    writers: list[str] = []
    verifies: bool = False
    repairs: bool = False


class VerificationWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Verifies what a line leads to. `is_deep`: every share is read; `repairs`: lost shares are made again."""

    line: str
    is_deep: bool = False
    repairs: bool = False


class LinkVerified(msgspec.Struct, frozen=True, kw_only=True):
    """What holders proved of all behind a link: pieces that are coded by themselves, of which `short` lack shares and
    `unreadable` have too few; `rebuilt`: shares made again; `faults`: what holders were caught at."""

    name: str
    stripes: int
    short: int
    unreadable: int
    rebuilt: int
    faults: list[str]


class LinkNamed(msgspec.Struct, frozen=True, kw_only=True):
    """A link, by how its id begins."""

    link: str
