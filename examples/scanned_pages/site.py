"""Sam's site: shows the pages, and asks Noor's index for words. `python site.py PORT`; on this machine only."""

from __future__ import annotations

import html
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import croft

PAGES = Path(__file__).with_name("site")
GRID = croft.connect()


class Site(BaseHTTPRequestHandler):
    """Two kinds of page: what was written, and where words are in it."""

    def do_GET(self) -> None:
        """Answers one request."""
        asked = urlsplit(self.path)
        words = parse_qs(asked.query).get("q", [""])[0]
        pages = {path.stem: path for path in sorted(PAGES.glob("*.txt"))}
        name = asked.path.strip("/")
        if name in pages:
            self._show(f"<h1>{html.escape(name)}</h1><pre>{html.escape(pages[name].read_text())}</pre>")
        elif name:
            self.send_error(404)
        elif words:
            hits = GRID.capability("search")(words)
            shown = "".join(_entry(hit["name"], hit["excerpt"]) for hit in hits)
            self._show(f"<h1>{html.escape(words)}</h1><ul>{shown or '<li>nowhere</li>'}</ul>")
        else:
            self._show("<h1>Pages</h1><ul>" + "".join(_entry(one, "") for one in pages) + "</ul>")

    def _show(self, content: str) -> None:
        form = '<form action="/"><input name="q" placeholder="words"><button>Search</button></form>'
        body = f"<!doctype html><meta charset=utf-8><title>Old pages</title>{form}{content}".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing of requests."""


def _entry(name: str, excerpt: str) -> str:
    return f'<li><a href="/{html.escape(name)}">{html.escape(name)}</a> {html.escape(excerpt)}</li>'


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Site).serve_forever()
