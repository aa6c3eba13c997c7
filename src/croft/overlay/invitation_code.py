"""The two forms of an invitation that people pass on: the line, and the spoken code.

The line is `croft:`, or `croft-device:` for a device of the inviter's own, and base64url text of a `LineContent` with a
checksum, so that a copy that lost a letter is told from one that is refused. The spoken code is a number and two BIP-39
words, such as `7-ocean-marble`.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from blake3 import blake3

from croft.errors import PeerMisbehaved, Usage
from croft.model.ids import PeerId
from croft.overlay.relay_pass import PASS_CHARS_MAX
from croft.wire.codec import Message, decode, encode

PREFIX: Final = "croft:"
DEVICE_PREFIX: Final = "croft-device:"
"""Whoever redeems such a line hands his machine over to the inviter's twin; so it looks otherwise."""
LINE_CHARS_MAX: Final = 4_000
CHECKSUM_BYTES: Final = 4
CHECKSUM_CONTEXT: Final = "croft invitation line checksum v1"
PEER_BYTES: Final = 32
ADDRESSES_MAX: Final = 8
ADDRESS_CHARS_MAX: Final = 64
RELAYS_MAX: Final = 2
URL_CHARS_MAX: Final = 128
NAMEPLATE_MAX: Final = 99
WORD_BITS: Final = 11
SECRET_BYTES: Final = 4
ASK_AGAIN: Final = "Ask for a new one: `croft invite` on a member's machine."
_SPOKEN: Final = re.compile(r"(\d{1,4})[-\s_.,]+([a-z]+)[-\s_.,]+([a-z]+)")


class LineContent(Message, frozen=True):
    """What a line carries. Part of the format: only add fields, with defaults.

    `relays`: URL and pass of relays by which the peer can be reached, if it may not be reached directly.
    """

    token: bytes
    peer: bytes
    addresses: list[str]
    relays: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """A line taken apart: the inviter's device, where it may be reached, and the token to show it.

    `is_for_device`: whoever redeems it becomes a device of the inviter's twin.
    """

    token: bytes
    inviter: PeerId
    addresses: tuple[str, ...]
    relays: tuple[tuple[str, str], ...] = ()
    is_for_device: bool = False


@dataclass(frozen=True, slots=True)
class SpokenCode:
    """A spoken code taken apart. `secret` is its words; the number only finds the inviter on the LAN."""

    nameplate: int
    secret: str

    def __str__(self) -> str:
        return f"{self.nameplate}-{self.secret}"


def line_text(line: Line) -> str:
    """The line to pass on."""
    peer, addresses = bytes.fromhex(line.inviter), list(line.addresses[:ADDRESSES_MAX])
    content = encode(LineContent(line.token, peer, addresses, list(line.relays[:RELAYS_MAX])))
    prefix = DEVICE_PREFIX if line.is_for_device else PREFIX
    return prefix + base64.urlsafe_b64encode(content + _checksum(content)).decode().rstrip("=")


def new_secret(seed: bytes) -> str:
    """Two words, chosen by at least SECRET_BYTES unpredictable bytes."""
    assert len(seed) >= SECRET_BYTES, "two words take 22 bits"
    words = _words()
    number = int.from_bytes(seed[:SECRET_BYTES], "big")
    return f"{words[number % len(words)]}-{words[(number >> WORD_BITS) % len(words)]}"


def parse_code(text: str) -> Line | SpokenCode:
    """What a user typed or pasted. Raises Usage, saying what is wrong with it."""
    code = text.strip().strip("'\"`").strip()
    if not code:
        raise Usage("the code is empty", remedy=ASK_AGAIN)
    if len(code) > LINE_CHARS_MAX:
        raise Usage("this is too long for an invitation", remedy=ASK_AGAIN)
    for prefix in (PREFIX, DEVICE_PREFIX):
        if code[: len(prefix)].lower() == prefix:
            return _parse_line("".join(code[len(prefix) :].split()), is_for_device=prefix == DEVICE_PREFIX)
    spoken = _SPOKEN.fullmatch(code.lower())
    if spoken is not None:
        return _spoken(int(spoken[1]), spoken[2], spoken[3])
    raise Usage(
        "this is no invitation",
        remedy="A line begins with `croft:`; a spoken code is a number and two words, such as `7-ocean-marble`.",
    )


def _parse_line(body: str, *, is_for_device: bool) -> Line:
    mangled = Usage(
        "the invitation line is damaged: letters are missing or changed",
        remedy="Copy the whole line again, from `croft:` to its end.",
    )
    mangled.code = "invitation_mangled"
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise mangled from None
    content, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if len(checksum) != CHECKSUM_BYTES or checksum != _checksum(content):
        raise mangled
    try:
        line = decode(content, LineContent, step="invitation line")
    except PeerMisbehaved:
        raise Usage("the invitation line is of a version not known here", remedy="Upgrade Croft.") from None
    if (
        len(line.peer) != PEER_BYTES
        or len(line.addresses) > ADDRESSES_MAX
        or any(len(address) > ADDRESS_CHARS_MAX for address in line.addresses)
        or len(line.relays) > RELAYS_MAX
        or any(len(url) > URL_CHARS_MAX or len(shown) > PASS_CHARS_MAX for url, shown in line.relays)
    ):
        raise Usage("the invitation line names no peer", remedy=ASK_AGAIN)
    relays = tuple(line.relays)
    return Line(line.token, PeerId(line.peer.hex()), tuple(line.addresses), relays, is_for_device)


def _spoken(nameplate: int, first: str, second: str) -> SpokenCode:
    if not 1 <= nameplate <= NAMEPLATE_MAX:
        raise Usage(f"the number of a spoken code is between 1 and {NAMEPLATE_MAX}", remedy="Check the number.")
    for word in (first, second):
        if word not in _word_set():
            near = difflib.get_close_matches(word, _words(), n=2)
            meant = f" Did you hear {' or '.join(f'`{each}`' for each in near)}?" if near else ""
            raise Usage(f"`{word}` is not a word of the spoken codes", remedy=f"Check the spelling.{meant}")
    return SpokenCode(nameplate, f"{first}-{second}")


def _checksum(content: bytes) -> bytes:
    return blake3(content, derive_key_context=CHECKSUM_CONTEXT).digest(length=CHECKSUM_BYTES)


@cache
def _words() -> tuple[str, ...]:
    from mnemonic import Mnemonic

    words = tuple(Mnemonic("english").wordlist)
    assert len(words) == 1 << WORD_BITS, "BIP-39 has 2,048 words"
    return words


@cache
def _word_set() -> frozenset[str]:
    return frozenset(_words())
