"""Finds the command, and turns errors into two lines and an exit code. Commands are imported when they are called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from croft.errors import CroftError, Usage

COMMANDS = {
    "up": "croft.cli.peer:up",
    "down": "croft.cli.peer:down",
    "status": "croft.cli.peer:status",
    "peers": "croft.cli.peer:peers",
    "init": "croft.cli.peer:init",
    "find": "croft.cli.find:find",
    "provide": "croft.cli.find:provide",
    "net": "croft.cli.network:net",
    "offer": "croft.cli.offer:offer",
    "invite": "croft.cli.invitation:invite",
    "join": "croft.cli.invitation:join",
    "run": "croft.cli.work:run",
    "map": "croft.cli.map_lines:map_lines",
    "put": "croft.cli.storage:put",
    "get": "croft.cli.storage:get",
    "ls": "croft.cli.storage:ls",
    "rm": "croft.cli.storage:rm",
    "link": "croft.cli.storage:link",
    "rollback": "croft.cli.storage:rollback",
    "snapshot": "croft.cli.storage:snapshot",
    "storage": "croft.cli.storage:storage",
    "jobs": "croft.cli.job:jobs",
    "job": "croft.cli.job:job",
    "pause": "croft.cli.lending:pause",
    "resume": "croft.cli.lending:resume",
    "leases": "croft.cli.lending:leases",
    "limit": "croft.cli.limit:limit",
    "device": "croft.cli.device:device",
    "recovery": "croft.cli.recovery:recovery",
    "recover": "croft.cli.recovery:recover",
    "contacts": "croft.cli.contacts:contacts",
    "expose": "croft.cli.tunnel:expose",
    "tunnel": "croft.cli.tunnel:tunnel",
    "ssh": "croft.cli.tunnel:ssh",
    "config": "croft.cli.settings:config",
    "service": "croft.cli.service:service",
    "completion": "croft.cli.completion:completion",
    "demo": "croft.cli.demo:demo",
    "sim": "croft.cli.sim:sim",
}

INTERRUPTED = 130


class LazyGroup(click.Group):
    """Knows its commands by name, and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggests the nearest command for a misspelt one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            raise Usage(
                f"no command `{args[0]}`",
                remedy=f"Did you mean `croft {near[0]}`?" if near else "See `croft --help`.",
            )
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `croft up`; see it work with `croft demo`.",
)
@click.option(
    "--home", type=click.Path(file_okay=False), help="The peer's home (default: CROFT_HOME, else your data folder)."
)
@click.version_option(package_name="croft", prog_name="croft")
def croft(home: str | None) -> None:
    """One computer out of the machines that people already own."""
    if home:
        os.environ["CROFT_HOME"] = str(Path(home).absolute())


def main(arguments: Sequence[str] | None = None) -> None:
    """The `croft` program."""
    try:
        code = croft.main(args=arguments, prog_name="croft", standalone_mode=False)
        sys.stdout.flush()
    except CroftError as error:
        from croft.cli.output import show_error

        show_error(error.message, error.remedy)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        _show_usage_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone, as with `| head`: nothing to say to anybody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _show_usage_error(error: click.ClickException) -> None:
    from croft.cli.output import show_error

    message = error.format_message()
    context = error.ctx if isinstance(error, click.UsageError) else None
    if "\n" in message:
        error.show()  # a command without arguments: its help
    else:
        show_error(message, f"See `{context.command_path if context else 'croft'} --help`.")


if __name__ == "__main__":
    main()
