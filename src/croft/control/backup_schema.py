"""What the local API answers about backups; part of `croft.control.schema`."""

from __future__ import annotations

import msgspec


class RetentionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How many snapshots to keep: the last ones, and one of each of so many hours, days, weeks, months and years.

    All of them 0: every snapshot is kept.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0


class BackupWanted(msgspec.Struct, frozen=True, kw_only=True):
    """One more backup of this device. `paths_hex`: absolute paths, their bytes in hex.

    `to`: `friends`, names of communities and of peers; none: whoever lends disk. `keep`: the layout, as `4of8`.
    `every_s` 0: it runs only when it is told to. `exclude`: patterns of names, or with a / of whole paths.
    """

    name: str
    paths_hex: list[str]
    to: list[str] = msgspec.field(default_factory=list)
    keep: str = ""
    every_s: float = 0.0
    exclude: list[str] = msgspec.field(default_factory=list)
    policy: RetentionPolicy = RetentionPolicy()


class BackupChange(msgspec.Struct, frozen=True, kw_only=True):
    """Changes a backup of this device; None: that stays as it is. See `BackupWanted`."""

    name: str
    to: list[str] | None = None
    keep: str | None = None
    every_s: float | None = None
    exclude: list[str] | None = None
    policy: RetentionPolicy | None = None


class BackupReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended. `ended_at` 0: it runs still. `error`: why it failed; then there is no snapshot of it.

    `snapshot`: its number. `new`, `changed`, `unchanged`: files. `read_bytes` of the disk; `new_bytes`: what no
    snapshot had; `sent_bytes`: what went to holders, all shares. `unreadable`: files that were left out, some of them
    named; `torn`: files that changed each time they were read.
    """

    began_at: float
    ended_at: float
    error: str
    snapshot: int
    files: int
    size_bytes: int
    new: int
    changed: int
    unchanged: int
    read_bytes: int
    new_bytes: int
    sent_bytes: int
    unreadable: int
    torn: int
    named_unreadable: list[str]
    named_torn: list[str]


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """A backup. `name` is what it is called here: DEVICE:NAME where another device has one of the same name.

    `is_own`: of this device, which alone runs it. `snapshots`: how many there are, `newest` the number of the last one,
    made `newest_at` of `size_bytes`. `stored_bytes`: what its packs hold, before it is coded; None: not known here.
    `next_at`: when it runs next, None: when it is told to. `margin`: how many more holders may be lost, as the last
    look at them found; negative: part of it cannot be read now; None: not known yet. `trouble`: what is wrong.
    """

    name: str
    device: str
    is_own: bool
    is_running: bool
    paths: list[str]
    to: list[str]
    keep: str
    every_s: float
    exclude: list[str]
    policy: RetentionPolicy
    snapshots: int
    newest: int
    newest_at: float
    size_bytes: int
    stored_bytes: int | None
    next_at: float | None
    margin: int | None
    trouble: str
    last_run: BackupReport | None


class BackupNamed(msgspec.Struct, frozen=True, kw_only=True):
    """A backup, by its name."""

    name: str


class BackupAdoption(msgspec.Struct, frozen=True, kw_only=True):
    """The backup of a device that is gone, with which this one is to go on.

    `own_name`: what it is called from then on; empty: as before. `paths_hex`: whole paths, in hex, that it
    backs up from then on; empty: as before.
    """

    name: str
    own_name: str = ""
    paths_hex: list[str] = msgspec.field(default_factory=list)


class BackupSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What a run found. `unreadable` files were left out, `torn` ones changed each time they were read."""

    number: int
    at: float
    took_s: float
    paths: list[str]
    files: int
    size_bytes: int
    unreadable: int
    torn: int


class BackupRestored(msgspec.Struct, frozen=True, kw_only=True):
    """What was restored. `left`: files that were there and right. `problems`: what this system or user may not set.

    `faults`: what holders were caught at meanwhile.
    """

    snapshot: int
    files: int
    size_bytes: int
    left: int
    problems: list[str]
    faults: list[str]


class BackupPruned(msgspec.Struct, frozen=True, kw_only=True):
    """What pruning did. `freed_bytes`: what holders dropped; 0 with `is_freed_later` where they do so by themselves."""

    forgotten: list[int]
    packs_dropped: int
    packs_rewritten: int
    freed_bytes: int
    is_freed_later: bool


class BackupVerified(msgspec.Struct, frozen=True, kw_only=True):
    """What verifying found. `missing`: chunks that snapshots need and no pack has. `margin`: how many more holders may
    be lost of the pack that is worst off; negative: it cannot be read now. `short`: packs that lack shares.

    `read_bytes`: what was read and checked, 0 unless that was asked for; `damaged`: files that are lost with what could
    not be read, some of them named.
    """

    snapshots: int
    packs: int
    missing: int
    margin: int | None
    short: int
    read_bytes: int
    damaged: list[str]

    @property
    def is_whole(self) -> bool:
        """Whether everything can be restored."""
        return not self.missing and not self.damaged and (self.margin is None or self.margin >= 0)


class BackupRemoved(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that is no more, and how much room that gave back; see `BackupPruned`."""

    name: str
    freed_bytes: int
    is_freed_later: bool
