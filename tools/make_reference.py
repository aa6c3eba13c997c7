"""Writes docs/reference.md: every command, setting and error, from the program itself."""

from pathlib import Path

import click

from croft.cli.main import COMMANDS, croft
from croft.control.config import KEYS
from croft.errors import CroftError

PLACE = Path(__file__).parents[1] / "docs" / "reference.md"


def command_text(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name, parent=click.Context(croft, info_name="croft"))
    text = f"## `croft {name}`\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            inner = command.get_command(context, sub)
            assert inner is not None
            help_text = inner.get_help(click.Context(inner, info_name=sub, parent=context))
            text += f"\n### `croft {name} {sub}`\n\n```text\n{help_text}\n```\n"
    return text


def errors_text() -> str:
    rows = []
    pending: list[type[CroftError]] = [CroftError]
    while pending:
        kind = pending.pop(0)
        first = (kind.__doc__ or "").split("\n")[0]
        rows.append(f"| `{kind.__name__}` | `{kind.code}` | {kind.exit_code} | {first} |")
        pending.extend(kind.__subclasses__())
    return "| error | code | exit code | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def main() -> None:
    commands = []
    for name in COMMANDS:
        command = croft.get_command(click.Context(croft), name)
        assert command is not None
        commands.append(command_text(name, command))
    settings = "\n".join(f"| `{key}` | `{value.default}` | {value.text} |" for key, value in KEYS.items())
    PLACE.write_text(
        "# Reference\n\nMade by `make docs` from the program itself.\n\n# Commands\n\n"
        + "\n".join(commands)
        + "\n# Settings\n\n"
        "A flag (`croft up --set KEY=VALUE`) comes before an environment variable (`CROFT_LEND_CPUS`), "
        "that before `config.toml`, that before the default. `croft config show --origin` says which holds.\n\n"
        "| setting | default | what it does |\n|---|---|---|\n"
        + settings
        + "\n\n# Errors\n\nIn Python as exceptions of `croft`, in `--json` and on the wire by their code.\n\n"
        + errors_text(),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
