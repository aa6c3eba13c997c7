"""Noor's part: an index of everything that was read, in a database beside this file."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

INDEX = Path(__file__).with_name("index.db")


@dataclass
class Page:
    """A page that was read."""

    name: str
    text: str


@dataclass
class Hit:
    """A page in which the words are. `excerpt`: where."""

    name: str
    excerpt: str


def index_page(page: Page) -> Page:
    """Adds a page to the index, in place of what had its name, and hands it on."""
    with closing(_open()) as index, index:
        index.execute("DELETE FROM page WHERE name = ?", (page.name,))
        index.execute("INSERT INTO page VALUES (?, ?)", (page.name, page.text))
    return page


def search(words: str, limit: int = 10) -> list[Hit]:
    """Pages in which all of the words are, the best first."""
    wanted = " ".join(f'"{word}"' for word in words.replace('"', " ").split())
    if not wanted:
        return []
    sql = "SELECT name, snippet(page, 1, '[', ']', ' … ', 12) FROM page WHERE page MATCH ? ORDER BY rank LIMIT ?"
    with closing(_open()) as index:
        return [Hit(*row) for row in index.execute(sql, (wanted, limit))]


def _open() -> sqlite3.Connection:
    index = sqlite3.connect(INDEX, timeout=30)
    index.execute("CREATE VIRTUAL TABLE IF NOT EXISTS page USING fts5 (name UNINDEXED, text)")
    return index
