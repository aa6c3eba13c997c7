"""Which addresses a dial tries, and how its failure reads: the same for every transport."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from croft.adapters.socket_addresses import SocketAddress, best_first
from croft.errors import Unreachable
from croft.model.ids import PeerId, is_key_id, short

ADDRESSES_MAX = 32


def candidates(
    peer: PeerId,
    addresses: Sequence[str],
    *,
    own_id: PeerId,
    own_addresses: Collection[str],
    is_closed: bool,
    has_relay: bool = False,
) -> list[SocketAddress]:
    """The addresses worth trying, best first; may be none if there is a relay.

    Raises:
        Unreachable: there is none, or no dial can be made at all.
    """
    name = short(peer)
    if is_closed:
        raise Unreachable(f"dialling {name}: this peer is shutting down")
    if peer == own_id or not is_key_id(peer):
        raise Unreachable(f"dialling {name}: this is not another peer's id")
    found = best_first(
        address
        for text in addresses[:ADDRESSES_MAX]
        if text not in own_addresses and (address := SocketAddress.parse(text)) is not None and address.is_dialable
    )
    if not found and not has_relay:
        raise Unreachable(f"dialling {name}: no address of it is known", remedy="It may be off; try later.")
    return found


def no_answer(peer: PeerId, tried: Sequence[object], timeout_s: float) -> Unreachable:
    """Nothing came back in time."""
    return Unreachable(
        f"dialling {short(peer)}: no answer within {timeout_s:g} s at {_listed(tried)}",
        remedy="It may be off, or a firewall drops UDP between you and no relay serves both: see `croft net`.",
    )


def wrong_peer(peer: PeerId, tried: Sequence[object]) -> Unreachable:
    """Whoever answered holds another key."""
    return Unreachable(
        f"dialling {short(peer)}: another peer answers at {_listed(tried)}",
        remedy="Its addresses are out of date; try again once they have been refreshed.",
    )


def no_common_protocol(peer: PeerId) -> Unreachable:
    """The peer is there and speaks none of ours."""
    return Unreachable(
        f"dialling {short(peer)}: it does not speak this protocol version",
        remedy="Update Croft on both machines.",
    )


def failed(peer: PeerId, tried: Sequence[object], why: str) -> Unreachable:
    """Any other reason."""
    return Unreachable(f"dialling {short(peer)} at {_listed(tried)}: {why}")


def _listed(tried: Sequence[object]) -> str:
    return ", ".join(str(address) for address in tried)
