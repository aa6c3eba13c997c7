"""Decides under which key the next letter of a feed is sealed, and which letters carry that key. Sans-IO.

A key serves a feed until somebody who may read it joins or goes, and for a day or KEY_LETTERS_MAX letters at most.
Keys are in memory alone: after a restart the next letter brings a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from croft.twins.letters import (
    KEY_BYTES,
    NONCE_BYTES,
    Author,
    Body,
    Box,
    Feed,
    Letter,
    digest_of,
    parts_of,
    seal_body,
    seal_key,
    sign_letter,
    with_content,
)

KEY_LETTERS_MAX: Final = 128
KEY_S_MAX: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Written:
    """A letter, as it is kept and passed on."""

    letter: Letter
    record: bytes
    digest: bytes


@dataclass(slots=True)
class _Key:
    number: int
    secret: bytes
    readers: Mapping[bytes, bytes]
    made_at: float


class Pen:
    """Writes the letters of one device. `token` gives random bytes."""

    def __init__(self, author: Author, token: Callable[[int], bytes]) -> None:
        self._author = author
        self._token = token
        self._keys: dict[Box, _Key] = {}

    def write(
        self, box: Box, body: Body, readers: Mapping[bytes, bytes], *, sequence: int, previous: bytes, now: float
    ) -> list[Written]:
        """The letters that bring `body` to `readers`, the last of which has it; the first gets number `sequence`.

        `readers` are reading keys by device; `previous` is the digest of the feed's last letter.
        """
        key = self._keys.get(box)
        is_good = key is not None and key.readers == readers and now - key.made_at < KEY_S_MAX
        if key is None or not is_good or sequence - key.number >= KEY_LETTERS_MAX:
            key = self._keys[box] = _Key(sequence, self._token(KEY_BYTES), dict(readers), now)
            portions = list(parts_of(readers))
        else:
            portions = [{}]
        written: list[Written] = []
        for at, portion in enumerate(portions):
            letter = Letter(
                self._author.twin,
                self._author.id,
                box.community,
                bytes.fromhex(box.to),
                box.room,
                sequence + at,
                previous,
                now,
                key.number,
                [],
                b"",
            )
            is_last = at == len(portions) - 1
            sealed = seal_body(letter, body, key.secret, self._token(NONCE_BYTES)) if is_last else b""
            letter = with_content(letter, seal_key(letter, key.secret, portion), sealed)
            record = sign_letter(self._author, letter)
            previous = digest_of(record)
            written.append(Written(letter, record, previous))
        return written

    def forget(self, box: Box) -> None:
        """What was written with the present key was not kept: no other letter is sealed under it."""
        self._keys.pop(box, None)

    def feed(self, box: Box) -> Feed:
        """This device's own feed in a box."""
        return Feed(box, self._author.device.public)
