"""What is kept at holders, byte for byte: docs/specs/storage.md. Only add fields, with defaults; tags are for ever.

A *stripe* is up to some MiB of sealed bytes, coded into n shares. A *content* is what one key seals: a file's bytes or
a node of the file list; its *parts* lie in stripes, small ones many to a stripe. All of this is itself sealed and
stored, up to the *head*, which is signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec
from blake3 import blake3

from croft.errors import Failed, PeerMisbehaved, Usage
from croft.storage.erasure import SHARES_MAX
from croft.storage.merkle import HASH_BYTES
from croft.storage.sealing import KEY_BYTES, SEGMENT_BYTES, TAG_BYTES, sealed_bytes_max
from croft.wire.codec import Message, decode, decode_union, encode

FORMAT: Final = 1
STRIPE_BYTES_MAX: Final = sealed_bytes_max(SEGMENT_BYTES) + (1 << 20)
SHARE_BYTES_MAX: Final = STRIPE_BYTES_MAX
PARTS_INLINE_BYTES_MAX: Final = 4 << 10
"""A longer list of parts is stored as a content of its own."""
DEPTH_MAX: Final = 4
NAME_BYTES_MAX: Final = 4_096
PEER_BYTES: Final = 32
STEP = "stored format"

M = TypeVar("M", bound=Message)

# `gc=False`: there are very many of some, and no cycles among them; the garbage collector need not look at each.


class Stripe(Message, frozen=True, gc=False):
    """`size` bytes in n shares, of which any k are enough. `shares`: their ids; `holders`: where each was first put."""

    k: int
    size: int
    shares: list[bytes]
    holders: list[bytes]

    @property
    def n(self) -> int:
        """How many shares there are."""
        return len(self.shares)

    @property
    def share_bytes(self) -> int:
        """The size of each share; the last ones of the first k may end in padding."""
        return -(-self.size // self.k)

    @property
    def id(self) -> bytes:
        """What names the stripe: it does not depend on who holds it."""
        return blake3(encode((self.k, self.size, self.shares)), derive_key_context="croft storage v1 stripe").digest()


class Part(Message, frozen=True, gc=False):
    """Sealed bytes of a content: `length` of them at `offset` of a stripe; `size` once they are opened."""

    stripe: Stripe
    offset: int
    length: int
    size: int
    method: int


class Content(Message, frozen=True, gc=False):
    """What one key seals. With `depth`, what the parts hold is the list of parts, and so on."""

    format: int
    size: int
    key: bytes
    depth: int
    parts: list[Part]


class PartList(Message, frozen=True):
    """What a content of some depth holds."""

    format: int
    parts: list[Part]


class Bounds(Message, frozen=True, gc=False):
    """Who may hold something, as its owner wants it: `on`: just these peers, if any; not `never`, nor `never_twins`."""

    on: list[bytes]
    never: list[bytes]
    never_twins: list[bytes]


class StripeList(Message, frozen=True):
    """What whoever looks after an owner's data knows of it: which shares belong together, and no key.

    `bounds`: who may hold what; `bounds_of`: for each stripe, the number of its bounds among these.
    """

    format: int
    stripes: list[Stripe]
    bounds: list[Bounds] = msgspec.field(default_factory=list)
    bounds_of: list[int] = msgspec.field(default_factory=list)


class Version(Message, frozen=True, gc=False):
    """One version of a file. Two with one `number` by different devices are a conflict.

    `content` None: the file was removed. `mode` and `mtime_ns` as the file had them; `at`: when it was put, Unix
    seconds; `device` put it. `until`: when its owner wants it to go, in whole Unix seconds; 0: never. `bounds`: who may
    hold it; None: anybody.
    """

    number: int
    device: bytes
    at: float
    size: int
    content: Content | None
    mode: int = 0o644
    mtime_ns: int = 0
    until: int = 0
    bounds: Bounds | None = None


class Entry(Message, frozen=True, gc=False):
    """A name, parts divided by /, and its versions, oldest first.

    Versions up to number `dropped` were given up; with `given_up`, of each device those up to its number alone: what
    another one puts, that nobody here has heard of, may have a number as low.
    """

    name: bytes
    versions: list[Version]
    dropped: int = 0
    given_up: list[tuple[bytes, int]] = msgspec.field(default_factory=list)


class Leaf(Message, frozen=True, tag=1):
    """Entries of the file list, by name."""

    format: int
    entries: list[Entry]


class Child(Message, frozen=True, gc=False):
    """A node below: from which name on, how many entries, and where it is. `digest` is of its plain bytes."""

    first: bytes
    count: int
    digest: bytes
    content: Content


class Branch(Message, frozen=True, tag=2):
    """Nodes of the file list, by name."""

    format: int
    children: list[Child]


Node = Leaf | Branch


class Head(Message, frozen=True):
    """What a device last knew of the owner's files; travels signed, `sealed` is a `Root` under the owner's key.

    `sequence` counts the heads of the device, `previous` is the digest of the one before. `vector`: of each device, the
    head that this one takes in.
    """

    format: int
    owner: bytes
    device: bytes
    sequence: int
    previous: bytes
    vector: list[tuple[bytes, int]]
    sealed: bytes
    at: float


class Root(Message, frozen=True):
    """The top of the file list."""

    format: int
    top: list[Child]


def decode_stored(data: bytes | memoryview, kind: type[M]) -> M:
    """A stored message. Raises Failed for one of a newer format, or damaged; nothing is changed then."""
    _refuse_newer(data, 0)
    try:
        return decode(data, kind, step=STEP)
    except PeerMisbehaved as fault:
        raise Failed(f"stored data is damaged: {fault}", remedy="Use another copy of the file list.") from None


def decode_node(data: bytes | memoryview) -> Node:
    """A node of the file list. Raises Failed, as `decode_stored`."""
    _refuse_newer(data, 1)
    try:
        node: Node = decode_union(data, Node, step=STEP)
    except PeerMisbehaved as fault:
        raise Failed(f"stored data is damaged: {fault}", remedy="Use another copy of the file list.") from None
    return node


def check_stripe(stripe: Stripe) -> None:
    """Raises PeerMisbehaved unless the numbers of a stripe fit together."""
    is_sound = (
        1 <= stripe.k <= stripe.n <= SHARES_MAX
        and 0 < stripe.size <= STRIPE_BYTES_MAX
        and len(stripe.holders) == stripe.n
        and all(len(share) == HASH_BYTES for share in stripe.shares)
        and all(len(holder) == PEER_BYTES for holder in stripe.holders)
    )
    if not is_sound:
        raise PeerMisbehaved("a stripe whose numbers do not fit", step=STEP)


def check_content(content: Content) -> None:
    """Raises Failed unless the numbers of a content fit together; whoever wrote a link may have written anything."""
    if content.format != FORMAT:
        raise newer(content.format)
    is_sound = (
        len(content.key) == KEY_BYTES
        and 0 <= content.depth <= DEPTH_MAX
        and content.size >= 0
        and all(_is_sound(part) for part in content.parts)
        and (content.depth > 0 or sum(part.size for part in content.parts) == content.size)
    )
    try:
        for part in content.parts:
            check_stripe(part.stripe)
    except PeerMisbehaved:
        is_sound = False
    if not is_sound:
        raise Failed("this link, or the file list, is damaged", remedy="Ask for it again, or use another copy.")


def _is_sound(part: Part) -> bool:
    return (
        0 <= part.size <= SEGMENT_BYTES
        and TAG_BYTES <= part.length <= sealed_bytes_max(SEGMENT_BYTES)
        and part.offset >= 0
        and part.offset + part.length <= part.stripe.size
    )


def check_name(name: bytes) -> None:
    """Raises Usage for what cannot be the name of a file."""
    if not name or len(name) > NAME_BYTES_MAX or b"\0" in name:
        raise Usage(f"a file cannot be called {name[:60]!r}", remedy=f"Names have 1 to {NAME_BYTES_MAX} bytes.")


def newer(format: int) -> Failed:
    """What was read is of a later format."""
    return Failed(
        f"this was written in format {format} by a newer version of Croft; here is format {FORMAT}",
        remedy="Upgrade Croft on this machine. Nothing was changed.",
    )


def _refuse_newer(data: bytes | memoryview, at: int) -> None:
    """The number of the format comes first, after a tag if there is one; it is read before anything else is."""
    try:
        fields: Sequence[Any] = msgspec.msgpack.decode(data, type=list[msgspec.Raw])
        format = msgspec.msgpack.decode(fields[at], type=int)
    except (msgspec.MsgspecError, IndexError):
        return  # not even this can be read: it is damaged, and reading it says so
    if format != FORMAT:
        raise newer(format)
