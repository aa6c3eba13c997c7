"""Sam's part: keeps the pages for his site, and a sealed copy of each at the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import croft

PAGES = Path(__file__).with_name("site")


@dataclass
class Page:
    """A page that was read."""

    name: str
    text: str


def publish(page: Page) -> str:
    """Puts a page on the site; returns where on it."""
    PAGES.mkdir(exist_ok=True)
    name = "".join(letter for letter in page.name if letter.isalnum() or letter in "-_")
    (PAGES / f"{name}.txt").write_text(page.text)
    with croft.connect() as grid:
        grid.storage.put(page.text.encode(), f"archive/{name}.txt")
    return f"/{name}"
