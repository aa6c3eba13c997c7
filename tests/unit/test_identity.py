"""Keys, recovery words, certificates, signed records and names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from croft.errors import Failed, PeerMisbehaved, Refused, Usage
from croft.identity.certificates import certify, open_certificate
from croft.identity.keys import SECRET_BYTES, from_recovery_words, load_or_create, recovery_words, twin_key
from croft.identity.nicknames import FIRST, SECOND, nickname
from croft.model.ids import PeerId
from croft.wire.codec import Message
from croft.wire.envelope import RECORD_BYTES_MAX, open_signed, sign
from support.joining import ALICE, BOB, MALLORY, NOW, seed


class FixedEntropy:
    """Hands out the same secret."""

    def token(self, size_bytes: int) -> bytes:
        return seed("fixed")[:size_bytes]

    def random(self) -> object:
        raise AssertionError("keys are not made of that")


class Note(Message, frozen=True):
    text: str


def test_a_key_is_made_once_and_then_kept(tmp_path: Path) -> None:
    path = tmp_path / "device"

    secret, is_new = load_or_create(path, FixedEntropy())  # type: ignore[arg-type] # only tokens are drawn
    again, is_new_again = load_or_create(path, FixedEntropy())  # type: ignore[arg-type] # only tokens are drawn

    assert (secret, is_new) == (seed("fixed"), True)
    assert (again, is_new_again) == (secret, False)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["device"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602])
def test_a_key_that_others_can_reach_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "device"
    load_or_create(path, FixedEntropy())  # type: ignore[arg-type] # only tokens are drawn
    path.chmod(mode)

    with pytest.raises(Refused) as caught:
        load_or_create(path, FixedEntropy())  # type: ignore[arg-type] # only tokens are drawn
    assert caught.value.remedy == f"Run: chmod 600 {path}"


@pytest.mark.parametrize("content", [b"", b"x" * (SECRET_BYTES - 1), b"x" * (SECRET_BYTES + 1)])
def test_a_damaged_key_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "device"
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(Failed) as caught:
        load_or_create(path, FixedEntropy())  # type: ignore[arg-type] # only tokens are drawn
    assert caught.value.remedy
    assert path.read_bytes() == content


def test_a_home_that_is_not_there_or_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "missing" / "device", tmp_path / "file" / "device"):
        with pytest.raises(Failed, match=str(place)):
            load_or_create(place, FixedEntropy())  # type: ignore[arg-type] # only tokens are drawn


def test_what_a_crash_left_behind_does_not_stop_a_new_key(tmp_path: Path) -> None:
    (tmp_path / f".device.{os.getpid()}.part").write_bytes(b"half")

    secret, is_new = load_or_create(tmp_path / "device", FixedEntropy())  # type: ignore[arg-type] # only tokens are drawn

    assert is_new
    assert secret == seed("fixed")


def test_recovery_words_bring_back_the_twin() -> None:
    root = seed("root entropy")
    words = recovery_words(root)

    assert len(words.split()) == 24
    assert from_recovery_words(f"  {words.upper()}\n") == root
    assert twin_key(from_recovery_words(words)).public == twin_key(root).public
    assert twin_key(root).raw != root


def test_a_wrong_recovery_word_is_told() -> None:
    words = recovery_words(seed("root entropy")).split()
    for wrong in ([*words[:-1], "zebra"], words[:12], [*words[1:], words[0]], ["nonsense", *words[1:]]):
        with pytest.raises(Usage) as caught:
            from_recovery_words(" ".join(wrong))
        assert caught.value.remedy


def test_every_flipped_bit_of_a_signed_record_is_refused() -> None:
    record = sign(ALICE.twin_key.signer, "note", Note("hello"))
    assert open_signed(record, "note", Note, step="test") == (ALICE.twin, Note("hello"))

    for bit in range(len(record) * 8):
        changed = bytearray(record)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PeerMisbehaved):
            open_signed(bytes(changed), "note", Note, step="test")


def test_a_record_of_another_kind_or_too_large_is_refused() -> None:
    record = sign(ALICE.twin_key.signer, "note", Note("hello"))
    large = sign(ALICE.twin_key.signer, "note", Note("x" * RECORD_BYTES_MAX))

    with pytest.raises(PeerMisbehaved, match="where 'letter' belongs"):
        open_signed(record, "letter", Note, step="test")
    with pytest.raises(PeerMisbehaved, match="limit is"):
        open_signed(large, "note", Note, step="test")
    with pytest.raises(PeerMisbehaved):
        open_signed(record[:-1], "note", Note, step="test")


def test_a_certificate_names_device_and_twin() -> None:
    certified = open_certificate(certify(ALICE.twin_key, ALICE.peer, "kitchen \x1b[31m", NOW, serial=3), step="test")

    assert (certified.peer, certified.twin, certified.serial) == (ALICE.peer, ALICE.twin, 3)
    assert certified.name.startswith("kitchen")
    assert certified.name.isprintable()
    with pytest.raises(PeerMisbehaved):
        open_certificate(certify(MALLORY.twin_key, PeerId("nonsense"), "x", NOW), step="test")


def test_names_are_stable_and_differ() -> None:
    assert nickname(ALICE.peer) == nickname(ALICE.peer)
    assert nickname(ALICE.peer) != nickname(BOB.peer)
    assert len({nickname(PeerId(seed(n).hex())) for n in range(1000)}) > 950
    for words in (FIRST, SECOND):
        assert len(set(words)) == len(words) >= 64
        assert all(word.isascii() and word.isalpha() and word.islower() for word in words)


def test_what_is_wrong_with_recovery_words_is_named() -> None:
    words = recovery_words(seed("root entropy")).split()

    with pytest.raises(Usage, match="word 3, `abandn`") as caught:
        from_recovery_words(" ".join([*words[:2], "abandn", *words[3:]]))
    assert "`abandon`" in caught.value.remedy
    with pytest.raises(Usage, match="12 words"):
        from_recovery_words(" ".join(words[:12]))
    with pytest.raises(Usage, match="do not belong together"):
        from_recovery_words(" ".join([words[1], words[0], *words[2:]]))
