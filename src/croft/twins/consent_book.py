"""Keeps the owner's rules of consent, and the calls that wait until the owner has said yes or no: `consent`'s shell."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from croft.errors import Busy, NotFound, Refused, Usage
from croft.model.ids import PeerId, TwinId
from croft.twins.consent import PER_DAY_MAX, RULES_MAX, Asker, Consent, Decision, Rule, Verdict

if TYPE_CHECKING:
    import sqlite3

    from croft.ports import Clock, Database

WAITING_MAX: Final = 256
WAITING_PER_TWIN_MAX: Final = 16
SAVE_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Question:
    """A call that waits for the owner. `arguments`: in words. `expires_at`: when its caller goes away."""

    number: int
    capability: str
    peer: PeerId
    twin: TwinId
    name: str
    arguments: str
    asked_at: float
    expires_at: float


class ConsentBook:
    """Rules and questions."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._core = Consent()
        self._next = 1
        self._numbers = itertools.count(1)
        self._questions: dict[int, tuple[Question, asyncio.Future[bool]]] = {}
        self._unsaved: set[tuple[int, TwinId]] = set()
        self.changed: Callable[[], None] = lambda: None
        """Told of every change of the rules."""

    # --- rules -------------------------------------------------------------------------------------------------------

    def rules(self, capability: str = "") -> list[Rule]:
        """As they are tried."""
        return self._core.in_order(capability)

    async def load(self) -> None:
        """Takes in what the last run left on disk. Raises Failed."""

        def read(
            db: sqlite3.Connection,
        ) -> tuple[list[tuple[int, str, str, str, int, int]], list[tuple[int, str, int, int]]]:
            rules = db.execute(
                "SELECT number, capability, who, verdict, per_day, is_community FROM consent_rule"
            ).fetchall()
            return rules, db.execute("SELECT rule, twin, day, calls FROM consent_use").fetchall()

        rules, used = await self._database.run(read)
        for number, capability, who, verdict, per_day, is_community in rules:
            rule = Rule(number, capability, who, Verdict(verdict), per_day, bool(is_community))
            self._core.rules[number] = rule
            self._next = max(self._next, number + 1)
        self._core.day = max((day for _, _, day, _ in used), default=0)
        self._core.used = {(rule, TwinId(twin)): calls for rule, twin, day, calls in used if day == self._core.day}

    async def set_rule(
        self, capability: str, who: str, verdict: Verdict, per_day: int = 0, *, is_community: bool = False
    ) -> Rule:
        """One more rule, in place of the one about the same; on disk before it counts. Raises Usage, Busy."""
        if not 0 <= per_day <= PER_DAY_MAX:
            raise Usage(f"{per_day} calls a day", remedy=f"Write a number up to {PER_DAY_MAX:,}.")
        if len(self._core.rules) >= RULES_MAX:
            raise Busy(f"there are {RULES_MAX} rules already", remedy="Remove one: `croft consent rm NUMBER`.")
        former = self._core.same_as(capability, who)
        number = former.number if former else self._next
        rule = Rule(number, capability, who, verdict, per_day, is_community)
        row = number, capability, who, verdict.value, per_day, int(is_community)
        await self._database.run(
            lambda db: db.execute("INSERT OR REPLACE INTO consent_rule VALUES (?, ?, ?, ?, ?, ?)", row).rowcount
        )
        self._next = max(self._next, number + 1)
        self._core.rules[number] = rule
        self.changed()
        return rule

    async def remove_rule(self, number: int) -> Rule:
        """Removes a rule. Raises NotFound."""
        rule = self._core.rules.get(number)
        if rule is None:
            raise NotFound(f"there is no rule {number}", remedy="See the rules: `croft consent`.")
        await self._database.run(lambda db: db.execute("DELETE FROM consent_rule WHERE number = ?", (number,)).rowcount)
        del self._core.rules[number]
        self.changed()
        return rule

    # --- calls -------------------------------------------------------------------------------------------------------

    def decide(self, capability: str, default: Verdict, asker: Asker) -> Decision:
        """What becomes of a call."""
        return self._core.decide(capability, default, asker, self._clock.now())

    def counted(self, decision: Decision, twin: TwinId) -> None:
        """A call was let in by this decision."""
        if decision.rule is not None and decision.rule.per_day:
            self._core.counted(decision.rule, twin, self._clock.now())
            self._unsaved.add((decision.rule.number, twin))

    def questions(self) -> list[Question]:
        """Calls that wait for the owner, oldest first."""
        return [question for question, _ in self._questions.values()]

    async def ask(self, capability: str, peer: PeerId, asker: Asker, name: str, arguments: str, wait_s: float) -> None:
        """Waits until the owner lets a call in. Raises Refused if not, or not in time; Busy."""
        of_twin = [one for one, _ in self._questions.values() if one.twin == asker.twin]
        if len(self._questions) >= WAITING_MAX or len(of_twin) >= WAITING_PER_TWIN_MAX:
            raise Busy("too many calls wait for the owner already", remedy="Try again later.")
        if wait_s <= 0:
            raise Refused(
                f"the owner wants to be asked about each call of `{capability}`",
                remedy="Wait for the answer: `croft call --wait 10m`, or `consent_s=600`.",
            )
        now = self._clock.now()
        question = Question(*(next(self._numbers), capability, peer, asker.twin, name, arguments, now, now + wait_s))
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._questions[question.number] = question, answer
        try:
            async with asyncio.timeout(wait_s):
                is_allowed = await answer
        except TimeoutError:
            raise Refused(
                f"the owner has not answered within {wait_s:g} s whether you may call `{capability}`",
                remedy="Wait longer, or ask them to look at `croft consent queue`.",
            ) from None
        finally:
            del self._questions[question.number]
        if not is_allowed:
            raise Refused(f"the owner was asked, and does not let you call `{capability}`", remedy="Ask them why.")

    async def answer(self, number: int, *, is_allowed: bool, always: bool = False) -> Question:
        """The owner's answer; `always` makes it a rule for that person. Raises NotFound."""
        question, answer = self._questions.get(number, (None, None))
        if question is None or answer is None or answer.done():
            raise NotFound(f"no call waits under {number}", remedy="See which do: `croft consent queue`.")
        if always:
            verdict = Verdict.AUTO if is_allowed else Verdict.DENY
            await self.set_rule(question.capability, question.twin, verdict)
        if not answer.done():
            answer.set_result(is_allowed)
        return question

    async def serve(self) -> None:
        """Writes down what was used; until cancelled."""
        try:
            while True:
                await asyncio.sleep(SAVE_EVERY_S)
                await self._save()
        finally:
            await self._save()

    async def _save(self) -> None:
        if not self._unsaved:
            return
        day, used = self._core.day, self._core.used
        rows = [(rule, twin, day, used.get((rule, twin), 0)) for rule, twin in sorted(self._unsaved)]
        self._unsaved.clear()

        def write(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM consent_use WHERE day < ?", (day,))
            db.executemany("INSERT OR REPLACE INTO consent_use VALUES (?, ?, ?, ?)", rows)

        await self._database.run(write)
