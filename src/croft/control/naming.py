"""Decides which peer or person a name means, for the command line, the Python API and the daemon alike."""

from __future__ import annotations

from collections.abc import Sequence

from croft.control import schema
from croft.errors import NotFound, Usage

ID_PREFIX_MIN = 4


def find_peer(peers: Sequence[schema.Peer], name: str) -> schema.Peer:
    """The peer of this name or id, or of an id that starts like this. Raises NotFound, Usage naming the candidates."""
    found = [peer for peer in peers if name in (peer.name, peer.peer)]
    found = found or [peer for peer in peers if name.casefold() == peer.name.casefold()]
    found = found or [peer for peer in peers if len(name) >= ID_PREFIX_MIN and peer.peer.startswith(name)]
    if not found:
        raise NotFound(f"no peer is called `{name}`", remedy="See who is here: `croft peers`.")
    if len(found) > 1:
        ids = ", ".join(peer.peer[:10] for peer in found)
        raise Usage(f"several peers are called `{name}`: {ids}", remedy="Name it by the start of its id.")
    return found[0]
