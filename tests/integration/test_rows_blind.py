"""The rows of what holders and wires may see of stored files, and of files that take two hops, on hosts of their own.

A test's docstring names its row.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from namespaces import Lab, Nat, behind, bridged

from croft.client.stored_files import StoredFiles
from croft.control.schema import FilesWanted
from support import peers
from support.peers import RealPeer, until
from support.searching import in_memory, on_disk
from support.worlds import IS_CAMPAIGN

HOPPING_BYTES = 1 << 30 if IS_CAMPAIGN else 20 << 20
PIECE_BYTES = 1 << 20
LINK_S_MAX = 60.0
NEEDLE_BYTES_MIN = 16
SENTENCE = b"the heron kept its letters under the third stone of the weir"
NAMES = ["winter-of-the-flood", "diary-of-that-winter.txt", "a film nobody else has.mkv", "snapshot-before-the-storm"]
IN_CLEAR = b"this one goes over the wire as it is"
SEND_IN_CLEAR = (
    "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(bytes.fromhex(sys.argv[2]), "
    "(sys.argv[1], 9))"
)


def spelt(word: bytes) -> list[bytes]:
    """A word as it may stand somewhere: as it is, in hex, in base64 at any offset."""
    coded = [base64.b64encode(b"x" * shift + word)[4 : -4 if shift else -5] for shift in range(3)]
    assert len(min(coded, key=len)) >= NEEDLE_BYTES_MIN, "what is shorter is everywhere by chance"
    return [word, word.hex().encode(), *coded]


@pytest.fixture(scope="module")
def lan() -> Iterator[Lab]:
    with bridged(4) as lab:
        yield lab


def test_neither_holders_nor_wires_see_a_word_or_a_name_of_what_is_stored(lan: Lab, tmp_path: Path) -> None:
    """E2: plaintext and names are nowhere: on holders' disks, in their memory, on the wire, where others are found."""
    folder = tmp_path / NAMES[0]
    folder.mkdir()
    (folder / NAMES[1]).write_bytes(SENTENCE)
    (folder / NAMES[2]).write_bytes(SENTENCE * 20_000 + secrets.token_bytes(300_000))
    with peers.homes() as base, lan.capture(lan[0]) as seen, lan.capture(lan[2]) as at_a_holder:
        ada, *holders = peers.community(base, ["ada", "bob", "cyd", "dan"], lan.hosts)
        ada.ok("put", str(folder), "--keep", "2of3")
        (folder / NAMES[1]).write_bytes(SENTENCE + b", and moved them")
        ada.ok("put", str(folder), "--keep", "2of3")
        ada.ok("snapshot", "take", NAMES[3])
        ada.ok("link", "make", NAMES[0], "--to", "bob")
        assert ada.ok("get", f"{NAMES[0]}/{NAMES[1]}@1", "-").encode() == SENTENCE
        ada.ok("get", NAMES[0], str(tmp_path / "again"))
        ada.ok("storage", "--check")
        ada.ok("rm", f"{NAMES[0]}/{NAMES[2]}", "--final")
        lan[0].run("python3", "-c", SEND_IN_CLEAR, lan[2].address, IN_CLEAR.hex())

        words = [spelling for word in (SENTENCE, *map(str.encode, NAMES)) for spelling in spelt(word)]
        for holder in holders:
            assert [word for word in words if on_disk(holder, word) or in_memory(holder, word)] == []
        assert in_memory(ada, NAMES[0].encode()), "the search finds what is there"
        assert any(holder.files.chunks.rglob("*") for holder in holders)

    for wire in (seen, at_a_holder):
        assert IN_CLEAR in wire and wire.frames > 200, "the capture shows what goes in clear"
        assert [word for word in words if word in wire] == []
    assert len(seen.data) > 500_000, "the files went over it"


def made(path: Path, size: int) -> str:
    """A file of chance; its SHA-256."""
    chance, told = Random(size), hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(size // PIECE_BYTES):
            piece = chance.randbytes(PIECE_BYTES)
            file.write(piece)
            told.update(piece)
    return told.hexdigest()


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def relayed(one: RealPeer, other: RealPeer) -> bool:
    """Whether the way between two leads by a third."""
    return any(way.name == other.name and way.link == "relayed" for way in one.api.net().ways)


def passed_on_by(relay: RealPeer) -> int:
    """How many bytes a relay says that it passed on; its process tells the daemon now and then."""
    return sum(one.received_bytes for one in relay.api.net().relayed)


@pytest.mark.timeout(1_200)
def test_a_file_stored_two_hops_away_comes_back_as_it_was(lan: Lab, tmp_path: Path) -> None:
    """E1: a file (1 GB in a campaign) to a holder that is reached by another peer alone comes back, sha256-equal."""
    room = {"lend.disk": "4G"}
    with (
        behind(lan[2], Nat.SYMMETRIC) as left,
        behind(lan[3], Nat.SYMMETRIC) as right,
        peers.homes() as base,
    ):
        cleo = peers.make(base, "cleo", lan[0]).start()
        lines = [cleo.api.invite(is_spoken=False).line for _ in range(2)]
        cleo.ok("offer", "relay", "800Mbit")
        ada = peers.make(base, "ada", left[0], settings=room).start()
        bert = peers.make(base, "bert", right[0], settings=room).start()
        for peer, line in zip((ada, bert), lines, strict=True):
            peer.api.join(line)
        until(lambda: ada.croft("run", "--on", "bert", "--", "true").returncode == 0, "they meet", LINK_S_MAX)
        until(lambda: relayed(ada, bert) and relayed(bert, ada), "by the relay", LINK_S_MAX)
        sum_before = made(tmp_path / "film", HOPPING_BYTES)
        files = StoredFiles(ada.files, ada.api)

        put = files.put(tmp_path / "film", "film", on=["bert"], keep="copies=1")
        files.fetch("film", tmp_path / "back")

        assert set(put.holders) == {"bert"} and ada.api.files(FilesWanted(name="film"))
        assert digest(tmp_path / "back") == sum_before
        until(lambda: passed_on_by(cleo) > 2 * HOPPING_BYTES, "all of it went there and back by the relay", LINK_S_MAX)
