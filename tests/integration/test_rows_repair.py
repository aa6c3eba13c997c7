"""The row of repair, shown by real daemons: lost shares are made again while their owner is off.

A test's docstring names its row.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import peers
from support.peers import RealPeer, until

REPAIR_S_MAX = 90.0
FILE_BYTES = 3_000_000


@pytest.fixture(scope="module")
def village() -> Iterator[list[RealPeer]]:
    with peers.homes() as base:
        yield peers.community(base, ["ada", "bob", "cyd", "dan", "eve", "fay", "gus", "hal", "ivy", "jon"])


def is_delegate(peer: RealPeer) -> bool:
    """Whether somebody has asked it to look after data."""
    with contextlib.closing(sqlite3.connect(f"file:{peer.files.database}?mode=ro", uri=True)) as database:
        return bool(database.execute("SELECT count(*) FROM watched").fetchone()[0])


@pytest.mark.timeout(300)
def test_lost_shares_are_made_again_while_the_owner_is_off(village: list[RealPeer], tmp_path: Path) -> None:
    """E4: 3-of-6: three holders are killed: it is read; the owner too: delegates rebuild; three more: it is read."""
    ada, others = village[0], village[1:]
    file = tmp_path / "file"
    file.write_bytes(secrets.token_bytes(FILE_BYTES))
    put = ada.json("put", str(file), "--keep", "3of6")["put"]
    first = [peer for peer in others if peer.name in put["holders"]]
    assert len(first) == 6
    until(lambda: sum(map(is_delegate, others)) == 3, "there are delegates")

    for peer in first[:3]:
        peer.kill()
    ada.ok("get", "file", str(tmp_path / "once"))
    assert (tmp_path / "once").read_bytes() == file.read_bytes()
    ada.kill()
    alive = [peer for peer in others if peer.process is not None]
    # Three shares of the file, and three of the list that names it; what lost fewer is waited for.
    until(lambda: sum(map(rebuilt, alive)) >= 6, "all of it is mended", REPAIR_S_MAX)
    for peer in first[3:]:
        peer.kill()
    ada.start()
    left = [peer for peer in others if peer.process is not None]
    until(lambda: {peer.name for peer in left} <= peers.linked(ada), "the owner is back")

    ada.ok("get", "file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def rebuilt(peer: RealPeer) -> int:
    """How many shares of others it has made again."""
    return sum(one.rebuilt for one in peer.api.storage().watched)
