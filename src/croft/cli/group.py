"""Groups of commands: `croft THING` alone shows what there is, and its commonest command needs no name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from croft.errors import Usage

HELP_OPTIONS = ("-h", "--help")
ONLY_JSON = ["--json"]


class Group(click.Group):
    """A group that fills in the name of a subcommand where it was left out.

    Args:
        alone: The subcommand of `croft THING`, and of `croft THING --json`.
        unnamed: The subcommand that takes arguments that begin with no subcommand's name. Without it, they are a slip
            of the user's, and options are `alone`'s.
        unnamed_has: What is in the first of these arguments; all else is a slip.
    """

    def __init__(self, *args: Any, alone: str = "", unnamed: str = "", unnamed_has: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._alone, self._unnamed, self._unnamed_has = alone, unnamed, unnamed_has

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts the name that was left out before the rest."""
        if not args or args == ONLY_JSON:
            left_out = self._alone
        elif args[0] in self.commands or args[0] in HELP_OPTIONS:
            left_out = ""
        elif args[0].startswith("-") or (self._unnamed and self._unnamed_has in args[0]):
            left_out = self._unnamed or self._alone
        else:
            raise no_command(args[0], self.commands, ctx)
        return super().parse_args(ctx, [left_out, *args] if left_out else args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What the command means without a subcommand."""
        if self._alone:
            formatter.write_paragraph()
            formatter.write_text(f"`{ctx.command_path}` alone is `{ctx.command_path} {self._alone}`.")
        super().format_epilog(ctx, formatter)


def no_command(word: str, commands: Collection[str], context: click.Context) -> Usage:
    """The error of a misspelt command, with the nearest one."""
    import difflib  # takes a millisecond, which only those who misspell shall pay

    near = difflib.get_close_matches(word, commands, n=1)
    path = context.command_path
    remedy = f"Did you mean `{path} {near[0]}`?" if near else f"See `{path} --help`."
    return Usage(f"no command `{path} {word}`", remedy=remedy)
