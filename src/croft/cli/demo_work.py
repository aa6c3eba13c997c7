"""The demo's work: functions that run on peers, and the same computation in one process to check them by.

A full-text index is built by map and merge: `index_files` counts the words of some files and deals them out by word
over PARTITIONS; `merge_partition` joins what all the files say of one partition. `render_rows` draws part of a picture.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter, defaultdict

import msgspec

PARTITIONS = 16
WORD = re.compile(rb"[a-z_][a-z0-9_]{2,31}")

WIDTH, HEIGHT = 960, 600
ROWS_PER_TILE = 15
STEPS_MAX = 160
CENTRE = complex(-0.7453, 0.1127)
SPAN = 0.0065

Postings = dict[str, list[tuple[int, int]]]
"""Word → (file number, count) pairs, by file number."""


def index_files(files: list[tuple[int, bytes]]) -> list[bytes]:
    """The words of some files (number, text): one encoded `Postings` per partition."""
    partitions: list[dict[str, list[tuple[int, int]]]] = [{} for _ in range(PARTITIONS)]
    for number, text in files:
        for word, count in Counter(WORD.findall(text.lower())).items():
            partition = partitions[zlib.crc32(word) % PARTITIONS]
            partition.setdefault(word.decode("ascii"), []).append((number, count))
    return [msgspec.msgpack.encode(partition) for partition in partitions]


def merge_partition(parts: list[bytes]) -> bytes:
    """One partition from all its parts: words and files in order, so that equal work gives equal bytes."""
    merged: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for part in parts:
        for word, postings in decode_postings(part).items():
            merged[word].extend(postings)
    return msgspec.msgpack.encode({word: sorted(merged[word]) for word in sorted(merged)})


def decode_postings(encoded: bytes) -> Postings:
    """An encoded partition."""
    return msgspec.msgpack.decode(encoded, type=dict[str, list[tuple[int, int]]])


def search(partitions: list[bytes], words: list[str], most: int = 5) -> list[tuple[int, int]]:
    """The files with all of `words`: (file number, how often they occur together), most first."""
    found: Counter[int] = Counter()
    holding: Counter[int] = Counter()
    for word in words:
        partition = decode_postings(partitions[zlib.crc32(word.encode()) % PARTITIONS])
        for number, count in partition.get(word, []):
            found[number] += count
            holding[number] += 1
    hits = [(number, count) for number, count in found.items() if holding[number] == len(words)]
    return sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:most]


def frequent_words(partitions: list[bytes], most: int) -> list[str]:
    """The words that are in the most files, longer ones only."""
    spread: Counter[str] = Counter()
    for partition in partitions:
        for word, postings in decode_postings(partition).items():
            if len(word) > 5:
                spread[word] = len(postings)
    return [word for word, _ in sorted(spread.items(), key=lambda item: (-item[1], item[0]))[:most]]


def render_rows(first: int) -> bytes:
    """ROWS_PER_TILE rows of the Mandelbrot set from row `first`: one byte per pixel, 0 inside the set."""
    step = SPAN / WIDTH
    tile = bytearray()
    for y in range(first, min(first + ROWS_PER_TILE, HEIGHT)):
        imaginary = CENTRE.imag + (y - HEIGHT / 2) * step
        for x in range(WIDTH):
            c = complex(CENTRE.real + (x - WIDTH / 2) * step, imaginary)
            z = c
            steps = 0
            while steps < STEPS_MAX and z.real * z.real + z.imag * z.imag < 4.0:
                z = z * z + c
                steps += 1
            tile.append(0 if steps == STEPS_MAX else steps + 1)
    return bytes(tile)


def tile_starts() -> range:
    """The first row of every tile."""
    return range(0, HEIGHT, ROWS_PER_TILE)


def palette() -> list[tuple[int, int, int]]:
    """256 colours: black for the set itself, then from deep blue over white and gold to dark."""
    stops = [(0, (0, 7, 60)), (45, (32, 107, 203)), (90, (237, 255, 255)), (130, (255, 170, 0)), (255, (40, 2, 0))]
    colours = [(0, 0, 0)]
    for value in range(1, 256):
        at = next(i for i in range(1, len(stops)) if value <= stops[i][0])
        (low, before), (high, after) = stops[at - 1], stops[at]
        share = (value - low) / (high - low)
        red, green, blue = (round(b + (a - b) * share) for b, a in zip(before, after, strict=True))
        colours.append((red, green, blue))
    return colours


def png(pixels: bytes) -> bytes:
    """The picture as a PNG file with a palette (RFC 2083)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + pixels[at : at + WIDTH] for at in range(0, len(pixels), WIDTH))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 3, 0, 0, 0)
    colours = bytes(value for colour in palette() for value in colour)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"PLTE", colours)
        + chunk(b"IDAT", zlib.compress(rows, 6))
        + chunk(b"IEND", b"")
    )
