"""A file of functions that tests offer, and what its owner would publish of them."""

from __future__ import annotations

from pathlib import Path

from support.peers import RealPeer

SOURCE = '''
import os, signal, sys, time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


def ocr(page: Path, language: str = "en", zoom: int = 1) -> str:
    """Reads the text of a page.

    In any language.
    """
    return f"{os.environ['CROFT_HOME'].rpartition('/')[2]} {language}{zoom} {page.name} {page.read_text()}"


def add(a: int, b: int = 2) -> int:
    return a + b


def note(path: str, text: str = "x") -> int:
    """Leaves a trace of each time it ran."""
    with open(path, "a") as file:
        file.write(text)
    return len(text)


def slow_note(path: str, before_s: float) -> str:
    name = os.environ["CROFT_HOME"].rpartition("/")[2]
    with open(path, "a") as file:
        file.write(name + "\\n")
    time.sleep(before_s)
    return name


def count(n: int, path: str = "") -> Iterator[int]:
    try:
        for number in range(n):
            yield number
    finally:
        if path:
            Path(path).write_text("ended")


def shout(lines: Iterator[str], mark: str = "!") -> Iterator[str]:
    for line in lines:
        yield line.upper() + mark


def total(numbers: Iterator[int]) -> int:
    return sum(numbers)


def liar() -> int:
    return "seven"


def raises(x: int) -> int:
    raise LookupError(f"nothing under {x}")


def dies() -> int:
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps(for_s: float) -> int:
    time.sleep(for_s)
    return os.getpid()


def shoot(path: str, for_s: float) -> str:
    """Uses what there is one of; says when two use it at once."""
    with open(path, "a+") as file:
        file.write("begin ")
        file.flush()
        time.sleep(for_s)
        file.write("end ")
    return Path(path).read_text()


def pid() -> int:
    return os.getpid()


@dataclass
class Point:
    x: int
    y: int


def moved(points: list[Point], by: int) -> list[Point]:
    return [Point(point.x + by, point.y + by) for point in points]


def back(data: bytes) -> bytes:
    return data[::-1]


async def later(a: int) -> int:
    return a + 1


def page_file(text: str) -> Path:
    path = Path(__file__).with_name("page.txt")
    path.write_text(text)
    return path
'''


def write(folder: Path) -> Path:
    """The file, in a folder."""
    path = folder / "able.py"
    path.write_text(SOURCE)
    return path


def offer(peer: RealPeer, folder: Path, function: str, *options: str) -> None:
    """`croft offer capability` of one of its functions."""
    peer.ok("offer", "capability", f"{write(folder)}:{function}", *options)
