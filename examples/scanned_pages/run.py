"""Plays the example with four peers on this machine, and shows what each of them types.

python examples/scanned_pages/run.py [--stay]     needs tesseract: apt install tesseract-ocr
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

HERE = Path(__file__).parent
PARTS = {"you": [], "maria": ["reader.py"], "noor": ["search.py"], "sam": ["archive.py", "site.py"]}
WAIT_S_MAX = 60.0
SETTINGS = 'bind = "127.0.0.1"\nlend.disk = "256M"\nname = "{name}"\n'


class Person:
    """One of the four: a folder of their own, and a peer that runs there."""

    def __init__(self, base: Path, name: str) -> None:
        self.name = name
        self.folder = base / name
        self.home = self.folder / ".croft"
        self.home.mkdir(parents=True, mode=0o700)
        (self.home / "config.toml").write_text(SETTINGS.format(name=name))
        for part in PARTS[name]:
            shutil.copy(HERE / part, self.folder)
        self.environment = {**os.environ, "CROFT_HOME": str(self.home)}

    def types(self, *arguments: str, is_shown: bool = True) -> str:
        """What a command of theirs prints."""
        if is_shown:
            shown = " ".join(f"'{one}'" if " " in one else one for one in arguments)
            print(f"\n{self.name}$ croft {shown}", flush=True)
        command = [sys.executable, "-m", "croft.cli.main", *arguments]
        ended = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        if ended.returncode:
            sys.exit(ended.stdout + ended.stderr)
        if is_shown:
            print(ended.stdout + ended.stderr, end="", flush=True)
        return ended.stdout

    @contextlib.contextmanager
    def runs(self, *command: str) -> Iterator[None]:
        """Something of theirs that goes on meanwhile."""
        print(f"\n{self.name}$ {' '.join(Path(one).name for one in command)} &", flush=True)
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    """The whole story."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stay", action="store_true", help="leave the site up until Enter is pressed")
    stay = parser.parse_args().stay
    if shutil.which("tesseract") is None:
        sys.exit("error: there is no tesseract on this machine\nhint: apt install tesseract-ocr")
    base = Path(tempfile.mkdtemp(prefix="croft-pages-"))
    people = [Person(base, name) for name in PARTS]
    try:
        play(*people, stay=stay)
    finally:
        for person in people:
            person.types("down", is_shown=False)
        shutil.rmtree(base)


def play(you: Person, maria: Person, noor: Person, sam: Person, *, stay: bool) -> None:
    """What they do."""
    you.types("up", is_shown=False)
    for person in (maria, noor, sam):
        line = you.types("invite", is_shown=False).split()[-1]
        person.types("up", "--join", line, is_shown=False)
    shutil.copytree(HERE / "pages", you.folder / "pages")

    maria.types("offer", "capability", "reader.py:read_page")
    noor.types("offer", "capability", "search.py:index_page")
    noor.types("offer", "capability", "search.py:search")
    sam.types("offer", "capability", "archive.py:publish")
    until(lambda: all(word in you.types("capabilities", is_shown=False) for word in ("read_page", "search", "publish")))
    until(lambda: "search" in sam.types("capabilities", is_shown=False))
    you.types("capabilities")
    you.types("pipeline", "run", "pages/*.png | read_page | index_page | publish")
    sam.types("ls", "archive")

    there, here = free_port(), free_port()
    with sam.runs(sys.executable, "site.py", str(there)):
        sam.types("expose", str(there), "--to", "you")
        with you.runs(sys.executable, "-m", "croft.cli.main", "tunnel", f"sam:{there}", str(here)):
            site = f"http://127.0.0.1:{here}/?q=pear"
            print(f"\nyou$ curl '{site}'", flush=True)
            print(until(lambda: fetch(site)))
            if stay:
                input(f"The site is at http://127.0.0.1:{here}/ until you press Enter. ")


def fetch(address: str) -> str:
    """What a site answers; nothing while it is not there."""
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def until(condition: Callable[[], T]) -> T:
    """Waits for something to be true, and returns it."""
    deadline = time.monotonic() + WAIT_S_MAX
    while not (found := condition()):
        if time.monotonic() > deadline:
            sys.exit("error: this took too long")
        time.sleep(0.2)
    return found


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
