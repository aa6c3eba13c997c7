"""`croft config`: the owner's settings."""

from __future__ import annotations

import os
import shlex
import subprocess

import click

from croft.cli.group import Group
from croft.cli.output import done, print_json, print_table, say
from croft.control import schema
from croft.control.config import KEYS, load
from croft.control.home import Home
from croft.errors import Failed, Usage


@click.group(cls=Group, alone="show")
def config() -> None:
    """Show and change settings."""


@config.command()
@click.option("--origin", is_flag=True, help="Where each value comes from.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(origin: bool, as_json: bool) -> None:
    """Every setting and its value."""
    loaded = load(Home.find()).items()
    settings = [
        schema.Setting(key=key, value=value.written, origin=value.origin, text=KEYS[key].text)
        for key, value in loaded.items()
    ]
    if as_json:
        print_json("settings", settings)
        return
    rows = [[one.key, one.value or "–", one.origin if origin else one.text] for one in settings]
    print_table(["SETTING", "VALUE", "ORIGIN" if origin else "WHAT IT DOES"], rows)


@config.command()
def edit() -> None:
    """Open the settings file in your editor; what is written is checked before it is kept."""
    home = Home.find()
    path = home.config_file
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(_template(), encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        code = subprocess.run([*shlex.split(editor), str(path)], check=False).returncode
    except FileNotFoundError:
        raise Failed(f"there is no editor `{editor}`", remedy=f"Set EDITOR, or edit {path} yourself.") from None
    if code != 0:
        raise Failed(f"the editor ended with code {code}", remedy="The settings are as they were.")
    try:
        load(home)
    except Usage as error:
        path.with_suffix(".toml.rejected").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
        path.write_text(before, encoding="utf-8")
        raise Usage(
            f"{error.message}; the settings are as they were", remedy=f"Your text is in {path}.rejected."
        ) from None
    done("Settings are valid", str(path))
    say("They take effect at the next start: `croft down && croft up`.")


@config.command()
def path() -> None:
    """Where the settings file is."""
    click.echo(Home.find().config_file)


def _template() -> str:
    lines = ["# Settings of this machine's peer. Remove the # before a line to change it.", ""]
    section = ""
    for name, key in KEYS.items():
        head, _, tail = name.rpartition(".")
        if head != section:
            section = head
            lines += ["", f"[{head}]"]
        lines += [f"# {key.text}", f'# {tail} = "{key.default}"']
    return "\n".join(lines) + "\n"
