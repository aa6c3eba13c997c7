"""Reads what anybody on the wire can read of a QUIC handshake: the hellos, whose keys are no secret (RFC 9001, 5.2).

Only as much of RFC 9000, 9001 and 8446 as a test needs: version 1, AES-128-GCM in Initial packets.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

INITIAL_SALT = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")
VERSION_1 = b"\x00\x00\x00\x01"
UDP = 17
INITIAL, ZERO_RTT, RETRY = 0, 1, 3
CLIENT_HELLO, SERVER_HELLO = 1, 2
SUPPORTED_VERSIONS, KEY_SHARE = 43, 51
TLS_1_3 = b"\x03\x04"


@dataclass
class Hello:
    """A ClientHello or ServerHello: its random value, and its extensions by number."""

    kind: int
    random: bytes
    extensions: dict[int, bytes]

    @property
    def key_shares(self) -> list[bytes]:
        """The public keys offered or chosen."""
        body = self.extensions.get(KEY_SHARE, b"")
        if self.kind == CLIENT_HELLO:
            body = body[2:]
        shares = []
        while body:
            size = int.from_bytes(body[2:4], "big")
            shares.append(body[4 : 4 + size])
            body = body[4 + size :]
        return shares


@dataclass
class Handshake:
    """The two hellos of one connection, as far as they were seen."""

    client: Hello | None = None
    server: Hello | None = None
    pieces: dict[tuple[str, int], bytes] = field(default_factory=dict)


def datagrams(frames: Iterable[bytes]) -> Iterable[tuple[bytes, bytes, bytes]]:
    """Source, destination (IPv4 address and port as bytes) and payload of each UDP datagram in Ethernet frames."""
    for frame in frames:
        if frame[12:14] != b"\x08\x00" or frame[23] != UDP:
            continue
        ip = frame[14:]
        at = (ip[0] & 15) * 4
        size = int.from_bytes(ip[at + 4 : at + 6], "big")
        yield ip[12:16] + ip[at : at + 2], ip[16:20] + ip[at + 2 : at + 4], ip[at + 8 : at + size]


def is_early_data(payload: bytes) -> bool:
    """Whether a 0-RTT packet is among the packets of a datagram."""
    while len(payload) > 7 and payload[0] & 0xC0 == 0xC0 and payload[1:5] == VERSION_1:
        kind = payload[0] >> 4 & 3
        if kind == ZERO_RTT:
            return True
        at = 6 + payload[5]
        at += 1 + payload[at]
        if kind == RETRY:
            break
        if kind == INITIAL:
            token, at = _number(payload, at)
            at += token
        length, at = _number(payload, at)
        payload = payload[at + length :]
    return False


def handshakes(frames: Iterable[bytes]) -> list[Handshake]:
    """Every handshake whose beginning is among these frames, with both its hellos."""
    found: dict[bytes, Handshake] = {}
    firsts: dict[tuple[bytes, bytes], bytes] = {}
    for source, target, payload in datagrams(frames):
        while len(payload) > 7 and payload[0] & 0xF0 == 0xC0 and payload[1:5] == VERSION_1:
            plain, rest, side = None, b"", "client"
            # A server answers with the keys of the connection that was begun last; a client may begin another one.
            for first, side in ((firsts.get((target, source)), "server"), (firsts.get((source, target)), "client")):
                if first is not None and plain is None:
                    plain, rest = _open_initial(payload, first, side)
                    if plain is not None:
                        _take(found[first], side, plain)
                        break
            if plain is None:
                first = payload[6 : 6 + payload[5]]
                plain, rest = _open_initial(payload, first, "client")
                if plain is not None:
                    firsts[source, target] = first
                    _take(found.setdefault(first, Handshake()), "client", plain)
            payload = rest
    return [each for each in found.values() if each.client and each.server]


def _expand(secret: bytes, label: str, size: int) -> bytes:
    name = b"tls13 " + label.encode()
    info = size.to_bytes(2, "big") + bytes([len(name)]) + name + b"\0"
    return hmac.new(secret, info + b"\x01", hashlib.sha256).digest()[:size]


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer (RFC 9000, 16), and where it ends."""
    size = 1 << (data[at] >> 6)
    return int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1), at + size


def _open_initial(packet: bytes, first: bytes, side: str) -> tuple[bytes | None, bytes]:
    """What an Initial packet says, or None if these are not its keys; and what follows it in the datagram."""
    initial = hmac.new(INITIAL_SALT, first, hashlib.sha256).digest()
    secret = _expand(initial, "client in" if side == "client" else "server in", 32)
    key, iv, mask_key = _expand(secret, "quic key", 16), _expand(secret, "quic iv", 12), _expand(secret, "quic hp", 16)
    at = 6 + packet[5]
    at += 1 + packet[at]
    token, at = _number(packet, at)
    length, at = _number(packet, at + token)
    rest = packet[at + length :]
    sample = packet[at + 4 : at + 20]
    if len(sample) < 16:
        return None, b""
    mask = Cipher(AES(mask_key), ECB()).encryptor().update(sample)
    head = bytearray(packet[: at + 4])
    head[0] ^= mask[0] & 0x0F
    size = (head[0] & 3) + 1
    for index in range(size):
        head[at + index] ^= mask[1 + index]
    number = bytes(head[at : at + size])
    nonce = bytes(a ^ b for a, b in zip(iv, number.rjust(12, b"\0"), strict=True))
    try:
        plain = AESGCM(key).decrypt(nonce, packet[at + size : at + length], bytes(head[: at + size]))
    except InvalidTag:
        return None, rest
    return plain, rest


def _take(handshake: Handshake, side: str, plain: bytes) -> None:
    """Collects CRYPTO frames until a whole hello is there."""
    at = 0
    while at < len(plain):
        kind = plain[at]
        at += 1
        if kind in (0, 1):  # PADDING, PING
            continue
        if kind in (2, 3):  # ACK, with counts of congestion marks if 3
            for _ in range(2):
                _, at = _number(plain, at)
            ranges, at = _number(plain, at)
            for _ in range(1 + 2 * ranges + (3 if kind == 3 else 0)):
                _, at = _number(plain, at)
            continue
        if kind != 6:  # CRYPTO
            break
        offset, at = _number(plain, at)
        size, at = _number(plain, at)
        handshake.pieces[side, offset] = plain[at : at + size]
        at += size
    data = b""
    while (piece := handshake.pieces.get((side, len(data)))) is not None and piece:
        data += piece
    if len(data) < 4 or len(data) < 4 + int.from_bytes(data[1:4], "big"):
        return
    if side == "client":
        handshake.client = _hello(data)
    else:
        handshake.server = _hello(data)


def _hello(data: bytes) -> Hello:
    kind, random = data[0], data[6:38]
    at = 38
    at += 1 + data[at]
    if kind == CLIENT_HELLO:
        at += 2 + int.from_bytes(data[at : at + 2], "big")
        at += 1 + data[at]
    else:
        at += 3
    end = at + 2 + int.from_bytes(data[at : at + 2], "big")
    at += 2
    extensions = {}
    while at < end:
        number, size = int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 4], "big")
        extensions[number] = data[at + 4 : at + 4 + size]
        at += 4 + size
    return Hello(kind, random, extensions)
