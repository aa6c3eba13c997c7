"""Read links: by which an owner lets people or communities read a file, or all below a name, as it changes.

What a link leads to lies at holders, sealed under the link's key and signed by the owner's device; whoever may read it
there gets with it a permit to read the shares. A link that is revoked leads to nothing any more: what its reader had
the key of stays readable to that reader, every later version has a key of its own.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from croft.errors import PeerMisbehaved, Refused, Usage
from croft.identity.keys import SecretKey
from croft.identity.signed import open_by_device, sign_by_device
from croft.storage.formats import FORMAT, PEER_BYTES, Content, Version, decode_stored
from croft.storage.sealing import NONCE_BYTES, derive
from croft.wire.codec import Message, decode, encode

LINK_KIND: Final = "storage.link"
LINK_PREFIX: Final = "croft:file:"
VERIFY_PREFIX: Final = "croft:verify:"
VERIFY: Final = "verify"
LINK_BYTES_MAX: Final = 48 << 10
ID_BYTES: Final = 16
KEY_BYTES: Final = 32
PEERS_MAX: Final = 16
STEP: Final = "link"


class Link(Message, frozen=True):
    """What is passed on. `peers`: where it was put, a hint."""

    format: int
    owner: bytes
    id: bytes
    key: bytes
    name: bytes
    peers: list[bytes]


class LinkedFile(Message, frozen=True):
    """A file behind a link; `name` is below the link's own, empty if the link is to this very file."""

    name: bytes
    version: Version


class LinkedFiles(Message, frozen=True):
    """What the content behind a link holds: of each file the newest version, several if they are in conflict; or what a
    writer puts there. `is_folder`: whether files lie below the link's name, or it is one file."""

    format: int
    files: list[LinkedFile]
    is_folder: bool = True


class LinkState(Message, frozen=True):
    """What a link leads to: `sealed` is a `Content` under the link's key; empty: nothing, it was revoked.

    `permit`: who may read; `writers`, `writing_communities`: who of them may write. `taken`: of each writer's device,
    the last proposal that is among the files.
    """

    owner: bytes
    device: bytes
    id: bytes
    sequence: int
    permit: bytes
    sealed: bytes
    writers: list[bytes] = msgspec.field(default_factory=list)
    writing_communities: list[bytes] = msgspec.field(default_factory=list)
    taken: list[tuple[bytes, int]] = msgspec.field(default_factory=list)


class MadeLink(Message, frozen=True):
    """A link as its owner keeps it beside the files: who may read by it, and who of them write; times in Unix seconds.

    `is_folder`: see `LinkedFiles`. `verifies`: it leads to what belongs together, without a key of it; `repairers`:
    devices that may make lost shares again.
    """

    format: int
    id: bytes
    key: bytes
    name: bytes
    twins: list[bytes]
    communities: list[bytes]
    made_at: float
    expires_at: float
    writers: list[bytes] = msgspec.field(default_factory=list)
    writing_communities: list[bytes] = msgspec.field(default_factory=list)
    is_folder: bool = True
    verifies: bool = False
    repairers: list[bytes] = msgspec.field(default_factory=list)

    @property
    def is_written(self) -> bool:
        """Whether anybody else may write by it."""
        return bool(self.writers or self.writing_communities)


class ToldLink(Message, frozen=True):
    """What holders were told last of where a link leads. `peers`: who they are; `digest`: of what it led to, empty for
    nothing, once it was revoked. `taken`: see `LinkState`."""

    format: int
    sequence: int
    digest: bytes
    peers: list[bytes]
    taken: list[tuple[bytes, int]] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True)
class OwnLink:
    """A link of this owner's, as all devices know it. `told` None: nothing was told yet."""

    made: MadeLink
    told: ToldLink | None = None
    is_revoked: bool = False

    @property
    def peers(self) -> list[bytes]:
        """Who keeps what it leads to."""
        return [] if self.told is None else self.told.peers

    def line(self, owner: bytes) -> str:
        """What is passed on."""
        made = self.made
        link = Link(FORMAT, owner, made.id, made.key, made.name, self.peers[:PEERS_MAX])
        return write_link(link, VERIFY_PREFIX if made.verifies else LINK_PREFIX)


def sign_link(device: SecretKey, certificate: bytes, state: LinkState) -> bytes:
    """The bytes of a link's state, as holders keep them."""
    return sign_by_device(device, certificate, LINK_KIND, state)


def open_link_state(data: bytes) -> LinkState:
    """The state, whose every signature holds. Raises PeerMisbehaved."""
    state = open_by_device(data, LINK_KIND, LinkState, bytes_max=LINK_BYTES_MAX, what="a link", step=STEP)
    if len(state.id) != ID_BYTES or not 0 < state.sequence < 1 << 53:
        raise PeerMisbehaved("a link whose numbers do not fit", step=STEP)
    return state


def seal_target(key: bytes, content: Content, nonce: bytes, purpose: str = "link") -> bytes:
    """What a link leads to, for whoever has its key. `nonce`: random."""
    return nonce + AESGCM(derive(key, purpose)).encrypt(nonce, encode(content), None)


def open_target(key: bytes, state: LinkState, purpose: str = "link") -> Content:
    """What a link leads to. Raises Refused once it was revoked, Usage for what does not open."""
    if not state.sealed:
        raise Refused("this link was revoked by its owner", remedy="Ask its owner for a new one.")
    return unseal_target(key, state.sealed, purpose)


def unseal_target(key: bytes, sealed: bytes, purpose: str = "link") -> Content:
    """What was sealed. Raises Usage for what does not open."""
    try:
        plain = AESGCM(derive(key, purpose)).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
    except (InvalidTag, ValueError):
        raise bad_link() from None
    return decode_stored(plain, Content)


def write_link(link: Link, prefix: str = LINK_PREFIX) -> str:
    """The line that is passed on."""
    return prefix + base64.urlsafe_b64encode(encode(link)).decode().rstrip("=")


def read_link(line: str, prefix: str = LINK_PREFIX) -> Link:
    """What a line says. Raises Usage for one that was mangled, or is for something else."""
    if prefix == LINK_PREFIX and line.strip().startswith(VERIFY_PREFIX):
        raise Usage("this line lets you verify, and read nothing", remedy="Say it so: `croft link verify LINE`.")
    text = line.strip().removeprefix(prefix)
    try:
        link = decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), Link, step=STEP)
    except (PeerMisbehaved, binascii.Error, ValueError):
        raise bad_link() from None
    sizes = (len(link.owner), len(link.id), len(link.key))
    is_sound = len(link.peers) <= PEERS_MAX and all(len(peer) == PEER_BYTES for peer in link.peers)
    if link.format != FORMAT or sizes != (PEER_BYTES, ID_BYTES, KEY_BYTES) or not is_sound:
        raise bad_link()
    return link


def bad_link() -> Usage:
    """What to say of a line that is no link."""
    return Usage("this link is damaged, or no link", remedy="Copy all of it, in one line.")
