"""`croft calls`: what came of calls that were left for somebody who was away."""

from __future__ import annotations

import click

from croft.cli.capability import opened_output, show_value
from croft.cli.output import ago, print_json, print_table, say
from croft.client.grid import connect
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import duration_s, show_size
from croft.errors import by_code


@click.command()
@click.argument("call", required=False, default="")
@click.option("--wait", default="", metavar="TIME", help="Wait so long for the answer.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write the result to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def calls(call: str, wait: str, output: str | None, as_json: bool) -> None:
    """Calls that you left for others; with CALL, the result of that one."""
    api = LocalApi(Home.find().control_socket)
    if not call:
        _list(api.left_calls(), as_json)
        return
    with connect() as grid:
        left = grid.left_call(call)
        if not wait and (status := left.status()).state != "done":
            if as_json:
                print_json("", status)
            elif status.state == "failed":
                raise by_code(status.code, f"`{status.name}` of {status.by}: {status.message}", status.remedy)
            else:
                say(f"{status.by} has not answered yet; wait for it: --wait 10m.")
            return
        value = left.result(duration_s(wait) if wait else None)
    with opened_output(output) as file:
        show_value(value, file, as_json, is_many=False)


def _list(found: list[schema.LeftCall], as_json: bool) -> None:
    if as_json:
        print_json("calls", found)
        return
    rows = [[one.call[:8], one.name, one.by, one.state, _brief(one), ago(one.left_at)] for one in found]
    none = "None yet. Leave one: `croft call NAME FIELD=VALUE --later`."
    print_table(["ID", "NAME", "OF", "STATE", "RESULT", "LEFT"], rows, none=none)


def _brief(one: schema.LeftCall) -> str:
    return show_size(one.size) if one.state == "done" else one.message.partition("\n")[0] or "–"
