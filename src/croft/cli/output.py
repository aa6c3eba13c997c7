"""How the command line speaks: data to stdout, talk to stderr, colour never the only carrier."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from croft.control.schema import SCHEMA

BAR_CELLS = 5


def is_coloured(error: bool = False) -> bool:
    """Whether to colour: only on a terminal, and never with NO_COLOR."""
    stream = sys.stderr if error else sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def style(text: str, *, error: bool = False, **how: Any) -> str:
    """`text` in colour where colour is wanted."""
    return click.style(text, **how) if is_coloured(error) else text


def say(text: str = "") -> None:
    """Talk: progress, advice, what was done."""
    click.echo(text, err=True)


def done(what: str, detail: str = "") -> None:
    """One thing that succeeded."""
    say(f"{style('✓', error=True, fg='green')} {what:<28}{detail}".rstrip())


def show_error(message: str, remedy: str = "") -> None:
    """The two lines of every failure."""
    say(f"{style('error:', error=True, fg='red', bold=True)} {message}")
    if remedy:
        say(f"{style('hint:', error=True, fg='cyan')} {remedy}")


def print_json(name: str, value: object) -> None:
    """`{"schema": 1, NAME: value}`, or the value's own fields beside the schema if `name` is empty."""
    plain = msgspec.to_builtins(value)
    body = {"schema": SCHEMA, **plain} if not name else {"schema": SCHEMA, name: plain}
    click.echo(msgspec.json.format(msgspec.json.encode(body), indent=2 if sys.stdout.isatty() else 0))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, none: str = "") -> None:
    """Columns as wide as their widest cell; without rows it also says `none`: what that means, what to do."""
    widths = [max(len(row[at]) for row in [header, *rows]) for at in range(len(header))]
    click.echo(
        style("  ".join(cell.ljust(width) for cell, width in zip(header, widths, strict=True)).rstrip(), bold=True)
    )
    if rows:
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        click.echo("\n".join(lines))
    if not rows and none:
        say(none)


def counted(number: int, what: str) -> str:
    """`1 task`, `2 tasks`."""
    return f"{number} {what}{'s' * (number != 1)}"


def bar(share: float | None) -> str:
    """`███░░ 61 %`."""
    if share is None:
        return "–"
    filled = min(BAR_CELLS, max(0, round(share * BAR_CELLS)))
    return "█" * filled + "░" * (BAR_CELLS - filled) + f" {share * 100:3.0f} %"


def ago(at: float) -> str:
    """How long ago a time is."""
    from croft.control.quantities import show_duration

    if not at:
        return "never"
    seconds = time.time() - at
    return "now" if seconds < 10 else show_duration(seconds)
