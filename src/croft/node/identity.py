"""Loads who this machine is, or makes it at the first start."""

from __future__ import annotations

from dataclasses import dataclass

from croft.adapters.system import SystemClock, SystemEntropy
from croft.control.home import Home
from croft.identity.certificates import certify
from croft.identity.keys import SecretKey, load_or_create, twin_key
from croft.identity.nicknames import nickname
from croft.model.ids import PeerId, TwinId
from croft.overlay.passport import Own

INSTANCE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Identity:
    """The keys of this machine. `root` is the twin's entropy, from which its keys are derived."""

    root: bytes
    twin_key: SecretKey
    device: SecretKey
    nickname: str

    @property
    def peer(self) -> PeerId:
        """The device's public key."""
        return PeerId(self.device.public)

    @property
    def twin(self) -> TwinId:
        """The twin's public key."""
        return TwinId(self.twin_key.public)

    def own(self, name: str) -> Own:
        """What this peer shows of itself in this run."""
        name = name or self.nickname
        certificate = certify(self.twin_key, self.peer, name, SystemClock().now())
        instance = SystemEntropy().token(INSTANCE_BYTES)
        return Own(self.device, self.peer, self.twin, name, certificate, instance)


def load_identity(home: Home) -> tuple[Identity, bool]:
    """The identity, and whether it is new. Raises Failed, Refused."""
    entropy = SystemEntropy()
    root, _ = load_or_create(home.keys / "twin", entropy)
    device, is_new = load_or_create(home.keys / "device", entropy)
    key = SecretKey(device)
    return Identity(root, twin_key(root), key, nickname(PeerId(key.public))), is_new
