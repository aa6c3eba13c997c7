"""Inviters and joiners for tests, with keys that are the same in every run."""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3

from croft.identity.certificates import certify
from croft.identity.grants import admit, found
from croft.identity.keys import SecretKey, community_key, twin_key
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.overlay.invitation import Admit, Invitations
from croft.overlay.join_messages import Admitted

NOW = 1_700_000_000.0


def seed(name: object) -> bytes:
    """32 bytes that stand for chance."""
    return blake3(repr(name).encode()).digest()


@dataclass(frozen=True)
class Somebody:
    """A twin with one device."""

    name: str

    @property
    def twin_key(self) -> SecretKey:
        return twin_key(seed(("twin", self.name)))

    @property
    def twin(self) -> TwinId:
        return TwinId(self.twin_key.public)

    @property
    def device(self) -> SecretKey:
        return SecretKey(seed(("device", self.name)))

    @property
    def peer(self) -> PeerId:
        return PeerId(self.device.public)

    @property
    def certificate(self) -> bytes:
        return certify(self.twin_key, self.peer, self.name, NOW)


ALICE = Somebody("alice")
BOB = Somebody("bob")
CAROL = Somebody("carol")
MALLORY = Somebody("mallory")
ROOT = community_key(seed("root"), b"")
COMMUNITY = CommunityId(ROOT.public)
OTHER_COMMUNITY = CommunityId(community_key(seed("other"), b"").public)
ALICES_CHAIN = found(ROOT, ALICE.twin)


def inviter() -> Invitations:
    """Alice, who founded the community."""
    return Invitations(ALICE.twin_key, ALICE.peer)


def admitted(effect: Admit) -> Admitted:
    """What Alice's shell answers to an `Admit`."""
    chain = admit(ALICE.twin_key, ALICES_CHAIN, effect.community, effect.twin)
    return Admitted(effect.community, "home", chain, ALICE.certificate, [b"descriptor"], effect.confirmation)
