"""Loads who this machine is, or makes it at the first start."""

from __future__ import annotations

import os
from dataclasses import dataclass

from croft.adapters.system import SystemClock, SystemEntropy
from croft.control.home import Home
from croft.errors import Failed, NotFound, PeerMisbehaved, Refused
from croft.identity.certificates import certify, open_certificate
from croft.identity.keys import (
    SecretKey,
    keep_root,
    load_or_create,
    load_root,
    recovery_words,
    sync_folder,
    twin_key,
)
from croft.identity.nicknames import nickname
from croft.model.ids import PeerId, TwinId
from croft.overlay.passport import Own

INSTANCE_BYTES = 8
TWIN_FILE = "twin"
CERTIFICATE_FILE = "certificate"
CERTIFICATE_BYTES_MAX = 4_096


@dataclass(frozen=True, slots=True)
class Identity:
    """The keys of this machine.

    `root` is the twin's entropy, from which its keys are derived; None on a device that was added to a twin, which has
    the twin's `certificate` in its place.
    """

    root: bytes | None
    device: SecretKey
    nickname: str
    certificate: bytes | None = None

    @property
    def peer(self) -> PeerId:
        """The device's public key."""
        return PeerId(self.device.public)

    @property
    def twin_key(self) -> SecretKey | None:
        """The twin's signing key, if it is on this device."""
        return twin_key(self.root) if self.root is not None else None

    @property
    def twin(self) -> TwinId:
        """The twin's public key."""
        if self.certificate is not None:
            return open_certificate(self.certificate, step="own certificate").twin
        assert self.twin_key is not None, "a device has a certificate or the key to make one"
        return TwinId(self.twin_key.public)

    def own(self, name: str) -> Own:
        """What this peer shows of itself in this run. An added device is called as it was when it was added."""
        instance = SystemEntropy().token(INSTANCE_BYTES)
        if self.certificate is not None:
            name = open_certificate(self.certificate, step="own certificate").name
            return Own(self.device, self.peer, self.twin, name, self.certificate, instance)
        name = name or self.nickname
        assert self.twin_key is not None, "a device has a certificate or the key to make one"
        certificate = certify(self.twin_key, self.peer, name, SystemClock().now())
        return Own(self.device, self.peer, self.twin, name, certificate, instance)


def load_identity(home: Home) -> tuple[Identity, bool]:
    """The identity, and whether it is new. Raises Failed, Refused."""
    entropy = SystemEntropy()
    certificate = _load_certificate(home)
    root = None if certificate else load_or_create(home.keys / TWIN_FILE, entropy)[0]
    device, is_new = load_or_create(home.keys / "device", entropy)
    key = SecretKey(device)
    identity = Identity(root, key, nickname(PeerId(key.public)), certificate)
    if certificate:
        _check(home, identity, certificate)
    return identity, is_new


def own_words(home: Home) -> str:
    """The recovery words of this machine's twin. Raises NotFound, Refused, Failed."""
    if _load_certificate(home):
        raise Refused(
            "this machine is an added device: it has no recovery words",
            remedy="Ask on the device on which you made your identity; see `croft device list`.",
        )
    root = load_root(home.keys / TWIN_FILE)
    if root is None:
        raise NotFound("there is no identity in this home yet", remedy="Make one: `croft up`.")
    return recovery_words(root)


def bring_back(home: Home, root: bytes) -> None:
    """Makes this fresh home one of the twin whose root entropy this is. Raises Refused, Failed."""
    home.make()
    is_fresh = not any(home.keys.iterdir())
    if not is_fresh or not keep_root(home.keys / TWIN_FILE, root):
        raise Refused(
            f"there is an identity in {home.state} already",
            remedy="Recover into a fresh home: CROFT_HOME=FOLDER croft recover …",
        )


def adopt(home: Home, certificate: bytes) -> None:
    """From the next start on, this machine is a device of the twin that signed the certificate. Raises Failed."""
    path = home.keys / CERTIFICATE_FILE
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        part.touch(mode=0o600)
        with part.open("wb") as file:
            file.write(certificate)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise Failed(f"cannot write {path}: {error.strerror}", remedy="Free some space, and join again.") from None


def _load_certificate(home: Home) -> bytes | None:
    path = home.keys / CERTIFICATE_FILE
    try:
        with path.open("rb") as file:
            return file.read(CERTIFICATE_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Failed(f"cannot read {path}: {error.strerror}") from None


def _check(home: Home, identity: Identity, certificate: bytes) -> None:
    try:
        is_own = open_certificate(certificate, step="own certificate").peer == identity.peer
    except PeerMisbehaved:
        is_own = False
    if not is_own:
        raise Failed(
            f"the certificate {home.keys / CERTIFICATE_FILE} is damaged or of another device",
            remedy="Put it back from a copy, or begin with a fresh home and `croft device add`.",
        )
