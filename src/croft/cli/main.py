"""Finds the command, and turns errors into two lines and an exit code. Commands are imported when they are called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from croft.errors import CroftError

SECTIONS = {
    "This machine": {
        "up": "croft.cli.peer:up",
        "down": "croft.cli.peer:down",
        "status": "croft.cli.peer:status",
        "init": "croft.cli.peer:init",
        "config": "croft.cli.settings:config",
        "service": "croft.cli.service:service",
    },
    "Who is here": {
        "invite": "croft.cli.invitation:invite",
        "join": "croft.cli.invitation:join",
        "community": "croft.cli.community:community",
        "peers": "croft.cli.peer:peers",
        "find": "croft.cli.find:find",
        "provide": "croft.cli.find:provide",
        "net": "croft.cli.network:net",
        "limit": "croft.cli.limit:limit",
    },
    "Work": {
        "run": "croft.cli.work:run",
        "map": "croft.cli.map_lines:map_lines",
        "jobs": "croft.cli.job:jobs",
        "job": "croft.cli.job:job",
    },
    "Files": {
        "put": "croft.cli.storage:put",
        "get": "croft.cli.storage:get",
        "ls": "croft.cli.storage:ls",
        "rm": "croft.cli.storage:rm",
        "link": "croft.cli.storage:link",
        "rollback": "croft.cli.storage:rollback",
        "rebalance": "croft.cli.storage:rebalance",
        "snapshot": "croft.cli.storage:snapshot",
        "backup": "croft.cli.backup:backup",
        "storage": "croft.cli.storage:storage",
    },
    "Lending": {
        "offer": "croft.cli.offer:offer",
        "leases": "croft.cli.lending:leases",
        "pause": "croft.cli.lending:pause",
        "resume": "croft.cli.lending:resume",
    },
    "What people can do": {
        "pipeline": "croft.cli.pipeline:pipeline",
        "capabilities": "croft.cli.capability:capabilities",
        "call": "croft.cli.capability:call",
        "calls": "croft.cli.left_call:calls",
        "consent": "croft.cli.consent:consent",
        "audit": "croft.cli.consent:audit",
    },
    "Services": {
        "expose": "croft.cli.tunnel:expose",
        "tunnel": "croft.cli.tunnel:tunnel",
        "ssh": "croft.cli.tunnel:ssh",
    },
    "People and devices": {
        "contacts": "croft.cli.contacts:contacts",
        "message": "croft.cli.message:message",
        "twin": "croft.cli.message:twin",
        "device": "croft.cli.device:device",
        "recovery": "croft.cli.recovery:recovery",
        "recover": "croft.cli.recovery:recover",
    },
    "To try": {
        "demo": "croft.cli.demo:demo",
        "sim": "croft.cli.sim:sim",
        "completion": "croft.cli.completion:completion",
    },
}
COMMANDS = {name: place for section in SECTIONS.values() for name, place in section.items()}
NAME_COLUMNS = max(map(len, COMMANDS))

INTERRUPTED = 130
BRIEF_COLUMNS_MAX = 200


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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What each is for, by what people want to do."""
        room = formatter.width - NAME_COLUMNS - 4
        for title, section in SECTIONS.items():
            rows = []
            for name in section:
                command = self.get_command(ctx, name)
                assert command is not None, "what is listed is there"
                rows.append((name.ljust(NAME_COLUMNS), _brief(command.get_short_help_str(BRIEF_COLUMNS_MAX), room)))
            with formatter.section(title):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggests the nearest command for a misspelt one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from croft.cli.group import no_command

            raise no_command(args[0], COMMANDS, ctx)
        return super().resolve_command(ctx, args)


def _brief(text: str, room: int) -> str:
    """As much of a sentence as fits and makes sense by itself."""
    text = text.removesuffix(".")
    while len(text) > room and (ends := [at for mark in (": ", "; ", ", ", " (") if (at := text.rfind(mark)) > 0]):
        text = text[: max(ends)]
    return text


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
        _show_usage_error(error, sys.argv[1:] if arguments is None else arguments)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone, as with `| head`: nothing to say to anybody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _show_usage_error(error: click.ClickException, arguments: Sequence[str]) -> None:
    from croft.cli.output import show_error

    message = error.format_message()
    context = error.ctx if isinstance(error, click.UsageError) else None
    if "\n" in message:
        error.show()  # a command without arguments: its help
    else:
        named = next((f"croft {word}" for word in arguments[:1] if word in COMMANDS), "croft")
        show_error(message, f"See `{context.command_path if context else named} --help`.")


if __name__ == "__main__":
    main()
