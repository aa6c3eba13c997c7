"""Maria's part: reads scanned pages with tesseract, which only she has installed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Page:
    """A page that was read. `name`: what its scan was called."""

    name: str
    text: str


def read_page(scan: Path, language: str = "eng") -> Page:
    """Reads a scan of printed text."""
    read = subprocess.run(
        ["tesseract", str(scan), "-", "-l", language], capture_output=True, text=True, check=True, timeout=120
    )
    lines = [line.strip() for line in read.stdout.splitlines()]
    return Page(scan.stem, "\n".join(line for line in lines if line))
