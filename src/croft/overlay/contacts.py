"""Decides what people are called here, how far each is trusted, and who is blocked.

Sans-IO. A name that the owner gives (a petname) stands above what anybody calls himself, and no two peers are shown
under the same name. Source: petname systems (Stiegler 2005). The owner's devices tell each other their notes; of two
notes of one person the later one counts (last writer wins), on all devices alike.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from croft.errors import Busy, NotFound, PeerMisbehaved, Usage
from croft.identity.certificates import clean_name
from croft.model.ids import PeerId, TwinId, is_key_id

CONTACTS_MAX = 4_096
DEVICE_MARK = "/"
"""Stands between a person's petname and the name of one of several devices."""
ID_MARK = "~"
"""Stands between a name that several have and the start of an id."""
ID_DIGITS_MIN = 4
LATER_S = 0.001
STEP = "own contacts"


class Trust(enum.StrEnum):
    """How far a person's code may come on this machine."""

    NONE = "none"
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


TRUST_TEXT = {
    Trust.NONE: "nothing of theirs runs here",
    Trust.LOW: "their code runs here only at isolation grade A",
    Trust.NORMAL: "their code runs here at the grade that `sandbox.required_grade` says",
    Trust.HIGH: "their code runs here as that of your own devices",
}


@dataclass(frozen=True, slots=True)
class Contact:
    """What the owner noted of a person, and when. An empty petname: none was given. A removal is a note as well."""

    twin: TwinId
    petname: str = ""
    trust: Trust = Trust.NORMAL
    is_blocked: bool = False
    added_at: float = 0.0
    changed_at: float = 0.0
    is_forgotten: bool = False

    @property
    def rank(self) -> tuple[float, bool, str, str, bool]:
        """Of two notes of one person the one of higher rank counts."""
        return self.changed_at, self.is_forgotten, self.petname, self.trust.value, self.is_blocked


@dataclass(frozen=True, slots=True)
class Device:
    """A known device and what it calls itself."""

    peer: PeerId
    twin: TwinId
    name: str


class ContactBook:
    """The owner's notes. Each change returns the contact that is to be saved."""

    def __init__(self, own: TwinId, rows: Iterable[Contact] = ()) -> None:
        self._own = own
        self._rows = {row.twin: row for row in rows}
        self.revision = 0
        """Changes with every change."""

    def load(self, rows: Iterable[Contact]) -> None:
        """Takes in what was saved before a restart."""
        self._rows = {row.twin: row for row in rows}
        self.revision += 1

    def all(self) -> list[Contact]:
        """Every contact, by petname, those without one last."""
        known = [row for row in self._rows.values() if not row.is_forgotten]
        return sorted(known, key=lambda row: (not row.petname, row.petname.casefold(), row.twin))

    def notes(self) -> list[Contact]:
        """All that was noted, removals too: what another device of the owner's is to know."""
        return list(self._rows.values())

    def get(self, twin: TwinId) -> Contact:
        """What is noted of a person; the plain case if nothing is."""
        row = self._rows.get(twin)
        return row if row is not None and not row.is_forgotten else Contact(twin)

    def friends(self) -> frozenset[TwinId]:
        """Whom the owner noted and trusts as usual or more."""
        trusted = (Trust.NORMAL, Trust.HIGH)
        return frozenset(row.twin for row in self.all() if row.trust in trusted and not row.is_blocked)

    def trust_of(self, twin: TwinId) -> Trust:
        """How far a person is trusted; one's own devices in full."""
        return Trust.HIGH if twin == self._own else self.get(twin).trust

    def is_blocked(self, twin: TwinId) -> bool:
        """Whether nothing of this person is taken and nothing is given."""
        contact = self._rows.get(twin)
        return contact is not None and contact.is_blocked

    # --- changes -----------------------------------------------------------------------------------------------------

    def name(self, twin: TwinId, petname: str, now: float) -> Contact:
        """Gives a person a petname, or another one. Raises Usage if it is no name or somebody else's, Busy."""
        if not _is_petname(petname):
            raise Usage(
                f"{petname[:80]!r} is no petname",
                remedy=f"Use up to 64 letters, without `{DEVICE_MARK}` and `{ID_MARK}`.",
            )
        for row in self._rows.values():
            if row.twin != twin and row.petname.casefold() == petname.casefold():
                raise Usage(
                    f"`{row.petname}` is another contact ({row.twin[:10]}) already",
                    remedy="Choose another petname, or rename that one: `croft contacts rename`.",
                )
        return self._keep(replace(self._changeable(twin, now), petname=petname), now)

    def trust(self, twin: TwinId, trust: Trust, now: float) -> Contact:
        """Trusts a person more or less. Raises Usage for oneself, Busy."""
        return self._keep(replace(self._other(twin, now, "trust"), trust=trust), now)

    def block(self, twin: TwinId, now: float) -> Contact:
        """From now on, nothing of this person. Raises Usage for oneself, Busy."""
        return self._keep(replace(self._other(twin, now, "block"), is_blocked=True), now)

    def unblock(self, twin: TwinId, now: float) -> Contact:
        """Undoes `block`. Raises NotFound if this person is not blocked."""
        if not self.is_blocked(twin):
            raise NotFound(f"{self.get(twin).petname or twin[:10]} is not blocked", remedy="See `croft contacts`.")
        return self._keep(replace(self._rows[twin], is_blocked=False), now)

    def remove(self, twin: TwinId, now: float) -> Contact:
        """Forgets what was noted, a block too; returns the note of that. Raises NotFound."""
        row = self._rows.get(twin)
        if row is None or row.is_forgotten:
            raise NotFound(f"{twin[:10]} is not among the contacts", remedy="See `croft contacts`.")
        return self._keep(Contact(twin, changed_at=row.changed_at, is_forgotten=True), now)

    def merge(self, note: Contact, now: float) -> Contact | None:
        """Takes in what another device of the owner's noted, if it is later; what is to be saved then.

        Raises PeerMisbehaved for what no device of ours would note.
        """
        if not is_key_id(note.twin) or not 0 <= note.changed_at < float("inf") or not 0 <= note.added_at < float("inf"):
            raise PeerMisbehaved("a note of nobody, or of no time", step=STEP)
        if note.petname and not _is_petname(note.petname):
            raise PeerMisbehaved(f"{note.petname[:80]!r} is no petname", step=STEP)
        if note.twin == self._own:
            note = replace(note, trust=Trust.NORMAL, is_blocked=False)
        # A clock that is ahead on one device must not make its notes the last ones for ever.
        note = replace(note, changed_at=min(note.changed_at, now))
        known = self._rows.get(note.twin)
        if known is not None and known.rank >= note.rank:
            return None
        if known is None and not self._has_room():
            return None
        self._rows[note.twin] = note
        self.revision += 1
        return note

    # --- names -------------------------------------------------------------------------------------------------------

    def shown(self, devices: Sequence[Device], own: PeerId) -> dict[PeerId, str]:
        """What each device is called here: unlike all others, petnames first, then what devices call themselves."""
        counts: dict[TwinId, int] = {}
        for device in devices:
            counts[device.twin] = counts.get(device.twin, 0) + 1
        names: dict[PeerId, str] = {}
        owners: dict[str, list[Device]] = {}
        for device in devices:
            petname = self.get(device.twin).petname
            # Our own marks in a name that a device gives itself would make it look like another one's.
            plain = device.name.replace(DEVICE_MARK, "-").replace(ID_MARK, "-")
            name = petname or plain
            if petname and counts[device.twin] > 1:
                name = f"{petname}{DEVICE_MARK}{plain}"
            names[device.peer] = name
            owners.setdefault(name.casefold(), []).append(device)
        for alike in owners.values():
            if len(alike) > 1:
                for device in self._to_mark(alike, own):
                    names[device.peer] += ID_MARK + _start_of_id(device, alike)
        return names

    def _to_mark(self, alike: Sequence[Device], own: PeerId) -> Sequence[Device]:
        """Which of several under one name are not just called by it: all but the one whom the owner calls so."""
        meant = [device for device in alike if device.peer == own] or [
            device for device in alike if self.get(device.twin).petname
        ]
        return [device for device in alike if device not in meant] if len(meant) == 1 else alike

    # --- inside ------------------------------------------------------------------------------------------------------

    def _other(self, twin: TwinId, now: float, what: str) -> Contact:
        if twin == self._own:
            raise Usage(f"you cannot {what} yourself", remedy="To shut out a device of yours: `croft device revoke`.")
        return self._changeable(twin, now)

    def _changeable(self, twin: TwinId, now: float) -> Contact:
        row = self._rows.get(twin)
        if row is None and not self._has_room():
            raise Busy(f"{CONTACTS_MAX} contacts are noted already", remedy="Remove some: `croft contacts remove`.")
        if row is None or row.is_forgotten:
            return Contact(twin, added_at=now, changed_at=row.changed_at if row else 0.0)
        return row

    def _has_room(self) -> bool:
        """Makes room by the oldest removal, if there is one."""
        if len(self._rows) < CONTACTS_MAX:
            return True
        oldest = min((row for row in self._rows.values() if row.is_forgotten), key=lambda row: row.rank, default=None)
        if oldest is not None:
            del self._rows[oldest.twin]
        return oldest is not None

    def _keep(self, contact: Contact, now: float) -> Contact:
        # Later than what it replaces, also if the clock was set back in between.
        contact = replace(contact, changed_at=max(now, contact.changed_at + LATER_S))
        self._rows[contact.twin] = contact
        self.revision += 1
        return contact


class Names:
    """What each known device is called here, worked out when something has changed."""

    def __init__(self, book: ContactBook, own: PeerId) -> None:
        self._book = book
        self._own = own
        self._devices: dict[PeerId, Device] = {}
        self._names: dict[PeerId, str] = {}
        self._revision = -1

    def learn(self, device: Device) -> None:
        """A device is known, or calls itself otherwise now."""
        if self._devices.get(device.peer) != device:
            self._devices[device.peer] = device
            self._revision = -1

    def forget(self, peer: PeerId) -> None:
        """A device is known no more."""
        if self._devices.pop(peer, None):
            self._revision = -1

    def of(self, peer: PeerId) -> str:
        """What a device is called; nothing if it is not known."""
        if self._revision != self._book.revision:
            self._names = self._book.shown(list(self._devices.values()), self._own)
            self._revision = self._book.revision
        return self._names.get(peer, "")


def _is_petname(petname: str) -> bool:
    is_clean = clean_name(petname) == petname and petname not in ("", "nameless")
    return is_clean and DEVICE_MARK not in petname and ID_MARK not in petname


def _start_of_id(device: Device, alike: Sequence[Device]) -> str:
    """As many digits of the id as tell it from the others."""
    others = [other.peer for other in alike if other.peer != device.peer]
    length = ID_DIGITS_MIN
    while any(other[:length] == device.peer[:length] for other in others) and length < len(device.peer):
        length += 1
    return device.peer[:length]
