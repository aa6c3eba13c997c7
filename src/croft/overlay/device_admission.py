"""One more device for a twin: what its first device hands over, and how the new one keeps it.

The twin's key stays where it is. What travels are a certificate, the twin's memberships and the owner's contacts.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from croft.errors import PeerMisbehaved, Refused
from croft.identity.certificates import certify
from croft.overlay.join_messages import FROM_INVITER_BYTES_MAX, DeviceAdmitted
from croft.overlay.passport import Membership, open_descriptor

if TYPE_CHECKING:
    import sqlite3

    from croft.identity.keys import SecretKey
    from croft.overlay.invitation import Admit
    from croft.overlay.joining import DeviceWelcome
    from croft.overlay.service import Overlay
    from croft.ports import Database

log = logging.getLogger(__name__)

RECORD_BYTES_IN_ALL_MAX = FROM_INVITER_BYTES_MAX // 2
MEMBER_KIND = "member"


def hand_over(overlay: Overlay, twin_key: SecretKey, effect: Admit, now: float) -> DeviceAdmitted:
    """What the new device gets."""
    size = 0
    memberships = []
    for membership in overlay.communities():
        records = []
        for member in overlay.community_members(membership.community):
            size += len(member.record)
            if size > RECORD_BYTES_IN_ALL_MAX:
                break
            records.append(member.record)
        memberships.append((str(membership.community), membership.name, list(membership.chain), records))
    contacts = [(str(one.twin), one.petname, one.trust.value, one.is_blocked) for one in overlay.contacts.all()]
    certificate = certify(twin_key, effect.peer, effect.name, now)
    return DeviceAdmitted(certificate, overlay.own.certificate, memberships, contacts)


def check_is_fresh(overlay: Overlay) -> None:
    """Raises Refused if this machine's peer has a life of its own already."""
    if communities := overlay.communities():
        raise Refused(
            f"this peer is somebody already: a member of {communities[0].name}",
            remedy="Use the line on a fresh machine, or with a fresh home: CROFT_HOME=FOLDER croft up --join LINE",
        )


async def keep(database: Database, welcome: DeviceWelcome, now: float) -> None:
    """Writes down what the twin's first device handed over, all or nothing; it counts from the next start on."""
    memberships = [
        (one.community, one.name, msgspec.msgpack.encode(one.grant_chain), now) for one in welcome.memberships
    ]
    contacts = [(one.twin, one.petname, one.trust.value, int(one.is_blocked), one.added_at) for one in welcome.contacts]
    records = []
    for one in welcome.memberships:
        known = {one.community: Membership(one.community, one.name, one.grant_chain)}
        for record in one.members:
            try:
                member = open_descriptor(record, known, now)
            except PeerMisbehaved as fault:
                log.warning("a record from %s is refused: %s", welcome.inviter.name, fault)
            else:
                records.append((MEMBER_KIND, one.community, member.peer, record))

    def write(db: sqlite3.Connection) -> None:
        db.executemany("INSERT OR REPLACE INTO membership VALUES (?, ?, ?, ?)", memberships)
        db.executemany(
            "INSERT OR REPLACE INTO contact (twin, petname, trust, is_blocked, added_at) VALUES (?, ?, ?, ?, ?)",
            contacts,
        )
        db.executemany("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)", records)

    await database.run(write)
