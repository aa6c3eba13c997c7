"""Looks for words where they should not be: on a peer's disk, in its daemon's memory."""

from __future__ import annotations

import re
from pathlib import Path

from support.peers import RealPeer

PAGE_BYTES_MAX = 64 << 20


def on_disk(peer: RealPeer, word: bytes) -> list[Path]:
    """Files of a home that have a word in them or in their name."""
    files = [path for path in peer.home.rglob("*") if path.is_file()]
    return [path for path in files if word in path.read_bytes() or word in str(path).encode()]


def in_memory(peer: RealPeer, word: bytes) -> bool:
    """Whether a word is anywhere in the memory of a daemon."""
    with open(f"/proc/{peer.process}/maps") as maps, open(f"/proc/{peer.process}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if span is None:
                continue
            start, end = int(span[1], 16), int(span[2], 16)
            for at in range(start, end, PAGE_BYTES_MAX):
                try:
                    memory.seek(at)
                    if word in memory.read(min(end - at, PAGE_BYTES_MAX)):
                        return True
                except (OSError, ValueError, OverflowError):
                    break
    return False
