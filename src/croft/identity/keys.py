"""Private keys: made once, kept in files that the owner alone can read.

A twin's key is derived from 32 bytes of root entropy, which twenty-four BIP-39 words can show. A device's key is
random and never leaves its machine; it is the iroh secret key.
"""

from __future__ import annotations

import difflib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from croft.errors import Failed, Refused, Usage

if TYPE_CHECKING:
    from croft.ports import Entropy

SECRET_BYTES = 32
WORDS = 24
TWIN_CONTEXT = "croft twin signing key v1"
COMMUNITY_CONTEXT = "croft community root key v1"


@dataclass(frozen=True, slots=True, repr=False)
class SecretKey:
    """An Ed25519 private key."""

    raw: bytes

    def __post_init__(self) -> None:
        assert len(self.raw) == SECRET_BYTES, "an Ed25519 secret key has 32 bytes"

    @property
    def public(self) -> str:
        """The public key, 64 lower-case hex digits."""
        return self.signer.public_key().public_bytes_raw().hex()

    @property
    def signer(self) -> Ed25519PrivateKey:
        """The key as `cryptography` wants it."""
        return Ed25519PrivateKey.from_private_bytes(self.raw)


def twin_key(root: bytes) -> SecretKey:
    """The twin's signing key, from its root entropy."""
    return SecretKey(blake3(root, derive_key_context=TWIN_CONTEXT).digest())


def community_key(root: bytes, salt: bytes) -> SecretKey:
    """The root key of a community that this twin founds; `salt` tells its communities apart."""
    return SecretKey(blake3(root + salt, derive_key_context=COMMUNITY_CONTEXT).digest())


def recovery_words(root: bytes) -> str:
    """Twenty-four BIP-39 words that stand for the root entropy."""
    from mnemonic import Mnemonic

    words: str = Mnemonic("english").to_mnemonic(root)
    return words


def from_recovery_words(words: str) -> bytes:
    """The root entropy that the words stand for. Raises Usage if a word or the checksum is wrong."""
    from mnemonic import Mnemonic

    book = Mnemonic("english")
    given = words.lower().split()
    for place, word in enumerate(given[:WORDS], start=1):
        if word not in book.wordlist:
            near = difflib.get_close_matches(word, book.wordlist, n=2)
            raise Usage(
                f"word {place}, `{word}`, is no recovery word",
                remedy=f"Did you mean {' or '.join(f'`{one}`' for one in near)}?" if near else "Look at it again.",
            )
    if len(given) != WORDS:
        raise Usage(f"these are {len(given)} words", remedy="Give all twenty-four.")
    try:
        return bytes(book.to_entropy(given))
    except ValueError:
        raise Usage(
            "these words do not belong together",
            remedy="One of them is wrong, or two changed places: compare them with what you wrote down.",
        ) from None


def load_or_create(path: Path, entropy: Entropy) -> tuple[bytes, bool]:
    """The 32 secret bytes in `path`, made if there are none, and whether they are new.

    Raises:
        Refused: others can read the file. Failed: it cannot be read, written, or is damaged.
    """
    try:
        return _load(path), False
    except FileNotFoundError:
        return _create(path, entropy.token(SECRET_BYTES)), True
    except OSError as error:
        raise Failed(f"cannot read the key {path}: {error.strerror}") from None


def load_root(path: Path) -> bytes | None:
    """The twin's root entropy in `path`; None if it is not on this device. Raises Refused, Failed."""
    try:
        return _load(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Failed(f"cannot read the key {path}: {error.strerror}") from None


def keep_root(path: Path, root: bytes) -> bool:
    """Writes a twin's root entropy; whether that is what is there now: a key is never overwritten. Raises Failed."""
    return _create(path, root) == root


def _load(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise Refused(f"other users can read the key {path} (mode {mode:o})", remedy=f"Run: chmod 600 {path}")
        secret = file.read(SECRET_BYTES + 1)
    if len(secret) != SECRET_BYTES:
        raise Failed(
            f"the key {path} is damaged: {len(secret)} bytes, not {SECRET_BYTES}",
            remedy="Put it back from a copy, or remove it to begin as somebody new.",
        )
    return secret


def _create(path: Path, secret: bytes) -> bytes:
    # Written beside and linked into place: a key is there whole or not at all, and never overwrites another.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)
        try:
            _write_private(part, secret)
            os.link(part, path)
        finally:
            part.unlink(missing_ok=True)
        sync_folder(path.parent)
    except FileExistsError:
        return _load(path)
    except OSError as error:
        raise Failed(
            f"cannot write the key {path}: {error.strerror}",
            remedy="Free some space or mend the folder's permissions.",
        ) from None
    return secret


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        written = os.write(descriptor, content)
        assert written == len(content), "a few bytes are written whole or not at all"
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes what was made or renamed in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
