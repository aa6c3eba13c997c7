"""`croft consent` and `croft audit`: who may call what here, and who did what."""

from __future__ import annotations

import sys
import time

import click

from croft.cli.group import Group
from croft.cli.output import ago, counted, done, print_json, print_table, say
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import duration_s, show_duration
from croft.errors import Failed, Usage


@click.group(cls=Group, alone="list", unnamed="set")
def consent() -> None:
    """Decide who may call what you offer: rules, and calls that wait for your answer.

    \b
    croft consent                                        the rules, as they are tried
    croft consent ocr --who bo --rule auto --per-day 20
    croft consent ocr --who role:guest --rule ask
    croft consent --who mallory --rule deny              all that you offer
    croft consent queue; croft consent allow 3 --always
    """


@consent.command("set")
@click.argument("name", required=False, default="")
@click.option("--who", default="members", show_default=True, help="A person, role:NAME, a community, friends, members.")
@click.option("--rule", type=click.Choice(["auto", "ask", "deny"]), help="What becomes of their calls.")
@click.option("--per-day", type=click.IntRange(0), default=0, help="So many of each person; more are denied.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def set_rule(name: str, who: str, rule: str | None, per_day: int, as_json: bool) -> None:
    """Set a rule for one capability, or, without NAME, for all; the word `set` may be left out.

    The most specific rule decides: of the capability before of all, a person before a role, a role before a community,
    that before friends, those before members. Without a rule it is as the capability was offered (`--consent`). Calls
    under way go on under the rules by which they came; streams that are now denied end.
    """
    if rule is None:
        raise Usage("a rule without a verdict", remedy="Write it like `croft consent ocr --who bo --rule auto`.")
    wanted = schema.ConsentWanted(capability=name, who=who, verdict=rule, per_day=per_day)
    made = LocalApi(Home.find().control_socket).set_consent(wanted)
    if as_json:
        print_json("", made)
    else:
        done(f"Rule {made.number}", f"{made.who} · {made.capability or 'all'} · {_verdict(made)}")


@consent.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_rules(as_json: bool) -> None:
    """The rules, in the order in which they are tried; then what each capability was offered with."""
    api = LocalApi(Home.find().control_socket)
    rules, own = api.consent_rules(), [one for one in api.capabilities() if one.is_own]
    if as_json:
        print_json("rules", rules)
        return
    rows = [[str(one.number), one.capability or "all", one.who, _verdict(one)] for one in rules]
    rows += [["–", one.name, ", ".join(one.to), one.consent] for one in own]
    none = "Nothing is offered here, so nobody can call. See: `croft offer capability --help`."
    print_table(["RULE", "CAPABILITY", "WHO", "VERDICT"], rows, none=none)
    if waiting := api.consent_queue():
        say(f"{counted(len(waiting), 'call')} for you to allow or refuse: `croft consent queue`")


@consent.command("rm")
@click.argument("number", type=int)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def remove(number: int, as_json: bool) -> None:
    """Remove a rule."""
    removed = LocalApi(Home.find().control_socket).remove_consent(number)
    if as_json:
        print_json("", removed)
    else:
        done("Removed", f"rule {removed.number}: {removed.who} · {removed.capability or 'all'} · {_verdict(removed)}")


@consent.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def queue(as_json: bool) -> None:
    """Calls that wait for your answer."""
    waiting = LocalApi(Home.find().control_socket).consent_queue()
    if as_json:
        print_json("queue", waiting)
    elif not waiting:
        say("No call waits for you.")
    else:
        print_table(["ID", "CAPABILITY", "BY", "SINCE", "WAITS", "ARGUMENTS"], list(map(_row, waiting)))
        say("Answer: `croft consent allow ID`, `croft consent refuse ID`; `--always` makes it a rule for that person.")


@consent.command()
@click.argument("number", metavar="ID", type=int)
@click.option("--always", is_flag=True, help="From now on, whenever this person calls it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def allow(number: int, always: bool, as_json: bool) -> None:
    """Let a waiting call run."""
    _answer(number, always, as_json, is_allowed=True)


@consent.command()
@click.argument("number", metavar="ID", type=int)
@click.option("--always", is_flag=True, help="From now on, whenever this person calls it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def refuse(number: int, always: bool, as_json: bool) -> None:
    """Refuse a waiting call."""
    _answer(number, always, as_json, is_allowed=False)


@click.command()
@click.option("--who", default="", help="Only of this peer or person.")
@click.option("--since", default="", metavar="TIME", help="Only of the last `2h`, `3d` and so on.")
@click.option(
    "-n", "--number", "count", type=click.IntRange(1), default=100, show_default=True, help="The newest so many."
)
@click.option("--verify", is_flag=True, help="Check instead that nobody has changed the log since it was written.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit(who: str, since: str, count: int, verify: bool, as_json: bool) -> None:
    """What others did on this machine: calls, jobs, commands, leases of storage, tunnels; also what was refused.

    Each line is chained to the one before, and this device signs the chain, so that nobody changes it unnoticed.
    """
    api = LocalApi(Home.find().control_socket)
    if verify:
        _verify(api.verify_audit(), as_json)
        return
    since_at = time.time() - duration_s(since) if since else 0.0
    acts = api.acts(schema.AuditWanted(who=who, since=since_at, count_max=count))
    if as_json:
        print_json("acts", acts)
        return
    rows = [[str(one.number), _when(one.at), one.who, one.act, one.on, one.outcome, one.why] for one in acts]
    print_table(["LINE", "WHEN", "WHO", "ACT", "ON", "OUTCOME", "WHY"], rows)


def _verify(state: schema.AuditState, as_json: bool) -> None:
    if as_json:
        print_json("", state)
        sys.exit(1 if state.findings else 0)
    if state.findings:
        for finding in state.findings[:-1]:
            say(finding)
        raise Failed(
            f"the audit log is not as this peer left it: {state.findings[-1]}",
            remedy="Whoever did that can write to this machine's disk.",
        )
    done("Nobody changed it", f"{state.lines} lines, each signed")


def _answer(number: int, always: bool, as_json: bool, *, is_allowed: bool) -> None:
    api = LocalApi(Home.find().control_socket)
    answered = api.answer_question(number, is_allowed=is_allowed, always=always)
    if as_json:
        print_json("", answered)
    else:
        done("Allowed" if is_allowed else "Refused", f"{answered.capability} for {answered.by}")


def _row(one: schema.ConsentQuestion) -> list[str]:
    left = show_duration(max(0.0, one.expires_at - time.time()))
    return [str(one.number), one.capability, one.by, ago(one.asked_at), f"{left} more", one.arguments]


def _verdict(rule: schema.ConsentRule) -> str:
    return f"{rule.verdict}, {rule.per_day} a day" if rule.per_day else rule.verdict


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
