"""Names of subcommands that were left out, and those that were misspelt."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from croft.cli.group import Group
from croft.cli.main import COMMANDS, croft
from croft.errors import Usage


def group_of(alone: str = "", unnamed: str = "", has: str = "") -> Group:
    @click.group(cls=Group, alone=alone, unnamed=unnamed, unnamed_has=has)
    def thing() -> None:
        """A thing."""

    @thing.command(name="list")
    @click.option("--json", "as_json", is_flag=True)
    def list_things(as_json: bool) -> None:
        click.echo(f"list {as_json}")

    @thing.command(name="set")
    @click.argument("what", nargs=-1)
    @click.option("--to", default="all")
    def set_thing(what: tuple[str, ...], to: str) -> None:
        click.echo(f"set {' '.join(what)} to {to}")

    assert isinstance(thing, Group)
    return thing


def said(group: click.Group, *args: str) -> str:
    result = CliRunner().invoke(group, args, catch_exceptions=False)
    return result.output.rstrip()


def test_alone_it_lists() -> None:
    assert said(group_of(alone="list")) == "list False"
    assert said(group_of(alone="list"), "--json") == "list True"


def test_what_names_no_subcommand_goes_to_the_one_without_a_name() -> None:
    both = group_of(alone="list", unnamed="set")
    assert said(both, "x", "--to", "bo") == "set x to bo"
    assert said(both, "--to", "bo") == "set  to bo"
    assert said(both, "--json") == "list True"
    assert said(both, "list") == "list False"


def test_a_misspelt_subcommand_is_named_with_the_nearest_one() -> None:
    with pytest.raises(Usage) as caught:
        said(group_of(alone="list"), "lisst")
    assert caught.value.message == "no command `thing lisst`"
    assert caught.value.remedy == "Did you mean `thing list`?"
    with pytest.raises(Usage) as caught:
        said(group_of(), "zzz")
    assert caught.value.remedy == "See `thing --help`."


def test_what_the_unnamed_one_does_not_take_is_misspelt_too() -> None:
    either = group_of(alone="list", unnamed="set", has="=")
    assert said(either, "x=1") == "set x=1 to all"
    with pytest.raises(Usage, match="no command `thing lst`"):
        said(either, "lst")


def test_help_tells_what_it_is_alone() -> None:
    assert said(group_of(alone="list"), "--help").endswith("`thing` alone is `thing list`.")
    assert "alone" not in said(group_of(), "--help")


def test_every_group_of_croft_answers_a_misspelling() -> None:
    context = click.Context(croft, info_name="croft")
    groups = [one for name in COMMANDS if isinstance(one := croft.get_command(context, name), Group)]
    assert len(groups) >= 15
    for group in groups:
        for name in ("alone", "unnamed"):
            assert (left_out := getattr(group, f"_{name}")) == "" or left_out in group.commands, (group.name, name)
