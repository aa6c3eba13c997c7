"""Decides which peer or person a name means, for the command line, the Python API and the daemon alike."""

from __future__ import annotations

from collections.abc import Sequence

from croft.control import schema
from croft.errors import NotFound, Usage
from croft.model.ids import TwinId, is_key_id

ID_PREFIX_MIN = 4


def find_peer(peers: Sequence[schema.Peer], name: str) -> schema.Peer:
    """The peer that a name means: what it is called here, an id or its start, a petname, what it calls itself.

    Raises NotFound, or Usage that names the candidates.
    """
    wanted = name.casefold()
    found = [peer for peer in peers if name in (peer.name, peer.peer)]
    found = found or [peer for peer in peers if wanted == peer.name.casefold()]
    found = found or [peer for peer in peers if len(name) >= ID_PREFIX_MIN and peer.peer.startswith(name)]
    found = found or [peer for peer in peers if peer.petname and wanted == peer.petname.casefold()]
    found = found or [peer for peer in peers if wanted == peer.self_name.casefold()]
    if not found:
        raise NotFound(f"no peer is called `{name}`", remedy="See who is here: `croft peers`.")
    if len(found) > 1:
        names = ", ".join(f"{peer.name} ({peer.peer[:10]})" for peer in found)
        raise Usage(
            f"several peers are called `{name}`: {names}", remedy="Use one of these names, or the start of an id."
        )
    return found[0]


def find_provider(contacts: Sequence[schema.Contact], peers: Sequence[schema.Peer], name: str) -> str:
    """The id of the person whom the owner calls so, with all devices, or else of the peer of that name.

    Raises NotFound, or Usage that names the candidates.
    """
    if any(contact.petname.casefold() == name.casefold() for contact in contacts if contact.petname):
        return find_person(contacts, peers, name)
    try:
        return find_peer(peers, name).peer
    except NotFound:
        return find_person(contacts, peers, name)


def find_person(contacts: Sequence[schema.Contact], peers: Sequence[schema.Peer], name: str) -> TwinId:
    """The person that a name means: a petname, one of the person's devices, or the id.

    Raises NotFound, or Usage that names the candidates.
    """
    wanted = name.casefold()
    twins = [contact.twin for contact in contacts if contact.petname and contact.petname.casefold() == wanted]
    known = {contact.twin for contact in contacts} | {peer.twin for peer in peers}
    twins = twins or [twin for twin in sorted(known) if len(name) >= ID_PREFIX_MIN and twin.startswith(name)]
    if not twins and is_key_id(name) and not any(peer.peer == name for peer in peers):
        twins = [name]
    if not twins:
        alike = [peer for peer in peers if wanted == peer.self_name.casefold() and peer.name != name]
        twins = sorted({peer.twin for peer in alike}) if len({peer.twin for peer in alike}) == 1 else []
    if len(twins) > 1:
        raise Usage(
            f"several people are called `{name}`: {', '.join(twin[:10] for twin in twins)}",
            remedy="Use the start of an id that only one of them has.",
        )
    return TwinId(twins[0] if twins else find_peer(peers, name).twin)
