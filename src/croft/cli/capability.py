"""`croft capabilities` and `croft call`: what others let you do, and doing it."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

import click
import msgspec

from croft.cli.output import done, print_json, print_table, say
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import duration_s
from croft.errors import Usage
from croft.twins.capability_source import Source

if TYPE_CHECKING:
    from croft.client.capability import Known

DESCRIBE_S_MAX = 120.0


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def capabilities(name: str | None, as_json: bool) -> None:
    """What others let you call, and what you let them; with NAME, all about those of that name.

    Where several offer one name, they are listed in the order in which they are asked: the more you trust somebody, and
    the nearer and less busy the peer, the earlier.
    """
    found = LocalApi(Home.find().control_socket).capabilities()
    if name is not None:
        from croft.client.capability import choose

        choose(found, name)
        found = [one for one in found if one.name == name]
    if as_json:
        print_json("capabilities", found)
    elif name is not None:
        click.echo("\n\n".join(map(_page, found)))
    elif not found:
        say("Nobody offers anything to call yet. Offer a function: `croft offer capability FILE.py:FUNCTION`")
    else:
        rows = [[one.name, _by(one), one.shown, _line(one.text)] for one in found]
        print_table(["NAME", "BY", "SIGNATURE", "TEXT"], rows)


@click.command()
@click.argument("name")
@click.argument("arguments", nargs=-1, metavar="[FIELD=VALUE|FIELD=@FILE]…")
@click.option("--of", default="", metavar="WHO", help="Who is to run it. Default: the first listed.")
@click.option("--timeout", default="", metavar="TIME", help="How long it may take. Default: as its owner says.")
@click.option("--wait", default="60s", show_default=True, metavar="TIME", help="For its owner, if the owner is asked.")
@click.option("--later", is_flag=True, help="Leave it for its owner, who may be away: see `croft calls`.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write the result to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; of a stream, a line for each item.")
def call(
    name: str,
    arguments: tuple[str, ...],
    of: str,
    timeout: str,
    wait: str,
    later: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Call a capability of somebody by its name.

    \b
    croft call transcribe page=@scan.png language=de
    croft call resize image=@in.png width=200 -o out.png
    """
    from croft.client.capability import Known, bound_text, choose
    from croft.client.grid import connect

    with connect() as grid:
        provider = grid.api.find_provider(of) if of else ""
        found = grid.capabilities()
        offered = choose(found, name, provider)
        time_s = duration_s(timeout) if timeout else 0.0
        asked: list[str] = []
        known = Known(offered, provider, time_s, duration_s(wait), _say_waits, asked.append)
        texts = fields(arguments, offered.shown)
        stream = texts.pop(known.signature.stream_in, "-") if known.signature.stream_in else None
        bound = bound_text(known, texts)
        if later:
            _show_left(grid.leave(name, of=of)(**bound).status(), as_json)
            return
        if stream is not None:
            bound[known.signature.stream_in] = _items(known, stream)
        result = grid.function(known)(**bound)
        with opened_output(output) as file:
            for value in result if known.signature.streams else [result]:
                show_value(value, file, as_json, is_many=known.signature.streams)
        if sum(one.name == offered.name for one in found) > 1:
            # Where several bear the name, it is said whose word this is.
            say(f"Answered by {asked[-1]}")


def fields(arguments: Sequence[str], shown: str) -> dict[str, str]:
    """What people wrote as FIELD=VALUE, for a capability that is `shown` so. Raises Usage."""
    texts: dict[str, str] = {}
    for one in arguments:
        field, equals, text = one.partition("=")
        if not equals:
            raise Usage(f"`{one}` is no argument", remedy=f"Write it like FIELD=VALUE; it is {shown}")
        texts[field] = text
    return texts


def _show_left(left: schema.LeftCall, as_json: bool) -> None:
    if as_json:
        print_json("", left)
        return
    done("Left", f"`{left.name}` for {left.by} · {left.call[:8]}")
    say(f"It runs when they are back. See what came of it: `croft calls {left.call[:8]} --wait 10m`.")


def _say_waits(provider: str) -> None:
    say(f"Waiting for the owner of {provider} to allow it …")


def source_of(what: str, command: str, http: str, data: str, parameters: tuple[str, ...], returns: str) -> Source:
    """What is to be offered. Raises Usage."""
    if bool(what) + bool(command) + bool(http) + bool(data) != 1:
        raise Usage("one thing is offered at a time", remedy="Name a function, or use --command, --http or --data.")
    if data:
        return Source(python=sys.executable, data=str(Path(data).absolute()))
    if http:
        return Source(python=sys.executable, http=http, parameters=parameters, returns=returns)
    if command:
        try:
            words = tuple(shlex.split(command))
        except ValueError as error:
            raise Usage(f"`{command}` is no command: {error}", remedy="Close its quotes.") from None
        return Source(python=sys.executable, command=words, folder=str(Path.cwd()), returns=returns)
    file, colon, function = what.rpartition(":")
    if not colon or not function.isidentifier():
        raise Usage(f"`{what}` names no function", remedy="Write it like `ocr.py:read_page`.")
    return Source(python=sys.executable, file=str(Path(file).absolute()), function=function)


def offered(
    source: Source,
    timeout: str,
    *,
    name: str | None,
    text: str | None,
    to: tuple[str, ...],
    consent: str,
    needs: str,
    example: tuple[str, ...],
    price: float,
    idempotent: bool,
    slots: int,
) -> schema.CapabilityWanted:
    """What `croft offer capability` asks for. Raises Usage."""
    described = _describe(source)
    default = source.function or Path(source.data or (source.command or [urlsplit(source.http).path])[0]).name
    return schema.CapabilityWanted(
        name=name or default,
        source=source,
        signature=described["signature"],
        text=described["text"] if text is None else text,
        examples=list(example),
        needs=[one.strip() for one in needs.split(",") if one.strip()],
        price=price,
        is_idempotent=idempotent,
        time_s_max=duration_s(timeout),
        to=list(to),
        consent=consent,
        slots=slots,
    )


def _describe(source: Source) -> dict[str, str]:
    """What the function says of itself: found out in a process of its own, for the file is run."""
    encoded = msgspec.json.encode(source).decode()
    command = [sys.executable, "-m", "croft.twins.capability_worker", "--describe", encoded]
    try:
        ended = subprocess.run(command, stdout=subprocess.PIPE, timeout=DESCRIBE_S_MAX, check=True)
        answer: dict[str, str] = msgspec.json.decode(ended.stdout, type=dict[str, str])
    except subprocess.TimeoutExpired:
        raise Usage(
            f"{source.shown} is not imported within {DESCRIBE_S_MAX:g} s", remedy="Load less at import."
        ) from None
    except (subprocess.CalledProcessError, msgspec.MsgspecError):
        raise Usage(f"{source.shown} cannot be imported", remedy="See what it said above.") from None
    if "error" in answer:
        raise Usage(answer["error"], remedy=answer.get("remedy", ""))
    return answer


def _items(known: Known, stream: str) -> Any:
    """Lines of a file, or of standard input, as the items of a stream."""
    from croft.client.capability import read_item

    with click.open_file(stream.removeprefix("@") or "-", encoding="utf-8") as source:
        for line in source:
            yield read_item(known, line.rstrip("\n"))


@contextlib.contextmanager
def opened_output(path: str | None) -> Iterator[BinaryIO | None]:
    """The file that a result is written to, if it is to be."""
    if path is None:
        yield None
        return
    with Path(path).open("wb") as file:
        yield file


def show_value(value: Any, file: BinaryIO | None, as_json: bool, *, is_many: bool) -> None:
    """Prints a result, or writes it to a file: bytes and files as they are, text as text, the rest as JSON."""
    if file is not None and isinstance(value, bytes | Path):
        file.write(value if isinstance(value, bytes) else value.read_bytes())
        return
    if as_json and not is_many and file is None:
        print_json("result", msgspec.to_builtins(value, enc_hook=str))
        return
    if isinstance(value, bytes) and not as_json:
        if sys.stdout.isatty():
            raise Usage(f"the result is {len(value)} bytes", remedy="Write them to a file: `-o FILE`.")
        sys.stdout.buffer.write(value)
        return
    is_text = isinstance(value, str | Path) and not as_json
    text = str(value) if is_text else bytes(msgspec.json.encode(value, enc_hook=str)).decode()
    if file is not None:
        file.write(f"{text}\n".encode())
    else:
        click.echo(text)


def _by(one: schema.Capability) -> str:
    return one.by + (" (this peer)" if one.is_own else "" if one.is_alive else " (offline)")


def _line(text: str) -> str:
    return _printable(text.strip().partition("\n")[0])


def _page(one: schema.Capability) -> str:
    notes = [f"by {_by(one)}"]
    notes += [f"needs {', '.join(one.needs)}"] if one.needs else []
    notes += [f"{one.price:g} favours a call"] if one.price else []
    notes += ["may be called again where a peer is lost"] if one.is_idempotent else []
    text = "\n".join(map(_printable, one.text.splitlines()))
    examples = "\n".join(f"  {_printable(example)}" for example in one.examples)
    return "\n".join(part for part in (one.shown, "; ".join(notes), text, examples) if part)


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())
