"""What others write by links: proposals, signed by the writer's device, sealed under the link's key, kept at holders.

The owner need not be up. Whoever reads by the link, and the owner's devices, find them beside the link's state, and
believe those that are signed by somebody whom the state, which the owner signed, lets write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from croft.errors import PeerMisbehaved, Refused
from croft.identity.keys import SecretKey
from croft.identity.signed import open_by_device, sign_by_device
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.storage.formats import PEER_BYTES
from croft.storage.links import ID_BYTES, LinkState
from croft.storage.permits import Bearer, check_permit
from croft.wire.codec import Message

PROPOSAL_KIND: Final = "storage.proposal"
PROPOSAL_BYTES_MAX: Final = 32 << 10
PROPOSALS_MAX: Final = 16
"""Of one link that wait for its owner, each of another device."""
PROPOSALS_OF_OWNER_MAX: Final = 1_000
PURPOSE: Final = "proposal"
STEP: Final = "proposal"


class Proposal(Message, frozen=True):
    """What a device of a writer has put behind a link, and the owner has not taken in. `owner` is the writer, who owns
    the shares; `link_owner` and `link` say which link. `permit`: lets the link's owner and its readers have the shares.
    `sealed`: a `Content` of `LinkedFiles` under the link's key. Of one device, the highest `sequence` counts.
    """

    owner: bytes
    device: bytes
    link_owner: bytes
    link: bytes
    sequence: int
    permit: bytes
    sealed: bytes


class Members(Protocol):
    """What is known here of who belongs to what."""

    def is_member(self, community: CommunityId, twin: TwinId) -> bool:
        """Whether somebody is a member of a community now, and no guest; False if it is not known here."""
        ...

    def is_shut_out(self, device: bytes, twin: TwinId) -> bool:
        """Whether a device is its twin's no more, or the owner of this peer has blocked the twin."""
        ...


def sign_proposal(device: SecretKey, certificate: bytes, proposal: Proposal) -> bytes:
    """The bytes of a proposal, as holders keep them."""
    return sign_by_device(device, certificate, PROPOSAL_KIND, proposal)


def open_proposal(data: bytes) -> Proposal:
    """The proposal, whose every signature holds. Raises PeerMisbehaved."""
    proposal = open_by_device(data, PROPOSAL_KIND, Proposal, bytes_max=PROPOSAL_BYTES_MAX, what="a proposal", step=STEP)
    sizes = len(proposal.link_owner), len(proposal.link)
    if sizes != (PEER_BYTES, ID_BYTES) or not 0 < proposal.sequence < 1 << 53 or not proposal.sealed:
        raise PeerMisbehaved("a proposal whose numbers do not fit", step=STEP)
    return proposal


def check_writes(state: LinkState, bearer: Bearer, now: float) -> None:
    """Raises Refused unless somebody may write by a link that is in this state."""
    if not state.sealed:
        raise Refused("this link was revoked by its owner", remedy="Ask its owner for a new one.")
    check_permit(state.permit, state.owner, bearer, now, puts=False)
    if not names(state.writers, state.writing_communities, bearer):
        raise Refused(
            "this link lets you read, and not write", remedy="Ask its owner for one by which you may: --write."
        )


def names(writers: Sequence[bytes], communities: Sequence[bytes], bearer: Bearer) -> bool:
    """Whether somebody is among these people, or in one of these communities."""
    return bytes.fromhex(bearer.twin) in writers or any(
        bytes.fromhex(community) in communities for community in bearer.communities
    )


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes by a link, and in which of its communities they are, as far as it is known here."""

    peer: PeerId
    twin: TwinId
    communities: frozenset[CommunityId]


def writer_of(proposal: Proposal, communities: Sequence[bytes], members: Members) -> Writer:
    """Who wrote it. Raises Refused if nothing of theirs is wanted here, or the device is not theirs any more."""
    twin = TwinId(proposal.owner.hex())
    if members.is_shut_out(proposal.device, twin):
        raise Refused("what was written comes from a device that was revoked, or from somebody who is blocked here")
    named = (CommunityId(community.hex()) for community in communities)
    within = frozenset(community for community in named if members.is_member(community, twin))
    return Writer(PeerId(proposal.device.hex()), twin, within)
