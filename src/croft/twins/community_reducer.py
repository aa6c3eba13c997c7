"""Decides which operations of a community count: the same for the same set of them, however they came in. Sans-IO.

Three rules (docs/specs/community.md): an act counts if its author had the right to it in all that the author knew; a
removal or demotion also voids what its subject does without knowing of it (*strong remove*, as in Keyhive and p2panda);
and only seniors can take an admin's rights away. The last one gives all acts of admins an order in which each is judged
after those that could void it, as power levels do in Matrix's state resolution.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from croft.model.ids import TwinId
from croft.twins.community_graph import NOW, Placed, is_before
from croft.twins.community_operation import ADMIN, ADMIT, CREATE, FOUNDER, GUEST, LEAVE, MEMBER, REMOVE, ROLE, RULE

INVITE: Final = "invite"
TEXT: Final = "text"
WHO_INVITES: Final = ("founders", "admins", "members")
"""Values of the rule `invite`, the tightest first."""
RULES: Final = {INVITE: "members", TEXT: ""}
"""Every rule, and what it says where nobody set it."""

Rank = tuple[int, bytes]
FOUNDERS_RANK: Final[Rank] = (0, b"")
"""Lower is senior. An admin's is the depth and id of the operation that made an admin of them."""

COUNTS: Final = ""
UNKNOWN: Final = "this version does not know such an act"
NO_ROLE: Final = "only the founder and admins may"
NO_MEMBER: Final = "only members may"
GUESTS_INVITE_NOBODY: Final = "guests invite nobody"
RULE_FORBIDS: Final = "the rule `invite` forbids it"
TWO_TONGUES: Final = "different acts were signed under one number"
UNSEATED: Final = "the right to it was taken away before, or by somebody who did not know of it"
SENIOR: Final = "it is about an admin who became one earlier"
THE_FOUNDER: Final = "the founder stays the founder"
STAYS_OUT: Final = "somebody who was removed is let in again by admins only"
NO_VALUE: Final = "the rule does not know this value"


@dataclass(frozen=True, slots=True)
class Fork:
    """Operations that one author signed under the same number: proof that the author speaks with two tongues."""

    sequence: int
    operations: list[Placed]


class Reduction:
    """What counts. `verdicts` has, for each operation by its index, COUNTS or why it does not."""

    def __init__(self, founder: TwinId) -> None:
        self.founder = founder
        self.verdicts: list[str] = []
        self.created: list[Placed] = []
        self.admissions: dict[str, list[Placed]] = {}
        """Those that count, by whom they let in; the others likewise by whom they are about."""
        self.departures: dict[str, list[Placed]] = {}
        self.roles: dict[str, list[Placed]] = {}
        self.rules: dict[str, list[Placed]] = {}
        self._grants: dict[str, list[tuple[Rank, Placed]]] = {}
        self._revoked: dict[str, list[tuple[Rank, Placed]]] = {}
        self._forks: dict[str, list[Fork]] = {}
        self._rules_known = 0
        self._rules_now: list[Placed] = []

    # --- judging -----------------------------------------------------------------------------------------------------

    def judge_all(self, order: Sequence[Placed], forks: dict[str, list[Fork]]) -> None:
        """Judges every operation, given those in whatever order has parents before children."""
        self._forks = forks
        self.verdicts = [NO_ROLE] * len(order)
        acts: dict[str, list[Placed]] = {}
        for one in order:
            if one.act in (ROLE, REMOVE, RULE):
                acts.setdefault(one.author, []).append(one)
                self._step_down(one)
            elif one.act == LEAVE:
                self._depart(one)
            elif one.act == CREATE:
                self.created.append(one)
                self.verdicts[one.index] = COUNTS
            elif one.act != ADMIT:
                self.verdicts[one.index] = UNKNOWN
        self._judge_admins(acts)
        for one in order:
            if one.act == ADMIT:
                self._judge_admission(one)

    def judge_next(self, one: Placed) -> None:
        """Judges one operation more, which is no reason to judge another one anew."""
        self.verdicts.append(UNKNOWN)
        match one.act:
            case "admit":
                self._judge_admission(one)
            case "leave":
                self._depart(one)
            case "create":
                self.created.append(one)
                self.verdicts[one.index] = COUNTS
            case "role" | "remove" | "rule":
                self._step_down(one)
                why, rank = self.why_not(one)
                self.verdicts[one.index] = why
                if why == COUNTS:
                    self._enact(one, rank)

    def why_not(self, one: Placed) -> tuple[str, Rank]:
        """Why an act that knows all others would not count, or COUNTS; and by what rank."""
        if one.act == ADMIT:
            why = self.why_not_invite(one.author, one, one.path)
            return why or (STAYS_OUT if self._stays_out(one) else COUNTS), FOUNDERS_RANK
        if one.act == LEAVE or one.author == self.founder:
            return (COUNTS if one.act == LEAVE else self._why_no_effect(one, FOUNDERS_RANK)), FOUNDERS_RANK
        why = NO_ROLE
        for rank, grant in sorted(self._grants.get(one.author, []), key=lambda known: known[0]):
            why = self._unseated(grant, rank, one) or self._why_no_effect(one, rank)
            if why == COUNTS:
                return why, rank
        return why, FOUNDERS_RANK

    def _judge_admins(self, acts: dict[str, list[Placed]]) -> None:
        for one in acts.get(self.founder, []):
            if self._is_forked(one):
                self.verdicts[one.index] = TWO_TONGUES
                continue
            self.verdicts[one.index] = self._why_no_effect(one, FOUNDERS_RANK)
            if self.verdicts[one.index] == COUNTS:
                self._enact(one, FOUNDERS_RANK)
        waiting = [(rank, one.index, one) for granted in self._grants.values() for rank, one in granted]
        heapq.heapify(waiting)
        while waiting:
            # Whatever can void what is done by this right was done by a senior one, and has been judged.
            rank, _, grant = heapq.heappop(waiting)
            for one in acts.get(grant.subject, []):
                if self.verdicts[one.index] != COUNTS and self._try(one, rank, grant) and _makes_admin(one):
                    heapq.heappush(waiting, (_rank(one), one.index, one))

    def _try(self, one: Placed, rank: Rank, grant: Placed) -> bool:
        """Whether the act counts by the right that `grant` gave its author."""
        if not is_before(grant, one):
            return False
        why = self._unseated(grant, rank, one) or self._why_no_effect(one, rank)
        self.verdicts[one.index] = why
        if why == COUNTS:
            self._enact(one, rank)
        return why == COUNTS

    def _why_no_effect(self, one: Placed, rank: Rank) -> str:
        """Why the act of an admin of this rank has no effect, or COUNTS."""
        if one.act == RULE:
            if one.subject not in RULES:
                return UNKNOWN
            return NO_VALUE if one.subject == INVITE and one.value not in WHO_INVITES else COUNTS
        if one.subject == self.founder:
            return THE_FOUNDER
        if not _makes_admin(one) and one.subject != one.author and self._is_senior(one.subject, one, rank):
            return SENIOR
        return COUNTS

    def _enact(self, one: Placed, rank: Rank) -> None:
        if one.act == RULE:
            self.rules.setdefault(one.subject, []).append(one)
        elif _makes_admin(one):
            self._grants.setdefault(one.subject, []).append((_rank(one), one))
            self.roles.setdefault(one.subject, []).append(one)
        else:
            if one.subject != one.author:
                self._revoked.setdefault(one.subject, []).append((rank, one))
            (self.departures if one.act == REMOVE else self.roles).setdefault(one.subject, []).append(one)
        self.verdicts[one.index] = COUNTS

    def _step_down(self, one: Placed) -> None:
        """Whoever gives up a role does so by any right, and whatever else becomes of the act."""
        if one.act == ROLE and one.subject == one.author and one.value != ADMIN:
            self._revoked.setdefault(one.author, []).append((FOUNDERS_RANK, one))

    def _depart(self, one: Placed) -> None:
        self._revoked.setdefault(one.author, []).append((FOUNDERS_RANK, one))
        self.departures.setdefault(one.author, []).append(one)
        self.verdicts[one.index] = COUNTS

    def _is_senior(self, subject: str, one: Placed, rank: Rank) -> bool:
        """Whether somebody was an admin, and before the author of `one` was, as far as that author could know."""
        for senior, grant in self._grants.get(subject, []):
            if senior < rank and not is_before(one, grant) and not self._unseated(grant, senior, one, subject):
                return True
        return False

    def _unseated(self, grant: Placed, rank: Rank, one: Placed, who: str = "") -> str:
        """Why the right that `grant` gave does not hold for `one`; empty if it does."""
        who = who or one.author
        revoked = [gone for senior, gone in self._revoked.get(who, []) if senior < rank]
        return self._why_void(who, grant, one if who == one.author else NOW, one, revoked)

    def _why_void(self, who: str, basis: Placed | None, own: Placed, at: Placed, gone: Sequence[Placed]) -> str:
        """Why somebody's right from `basis` (None: from a grant alone) does not hold at an act; empty if it does.

        `gone`: what took rights from them. `own`: the act if it is theirs, else NOW. Acts that others knew of when they
        took rights are settled: else somebody could undo years of acts by one more signature, under an old number or as
        if they had left before.
        """
        others = [one for one in gone if one.author != who]
        if any(_voids(one, basis, at) for one in others):
            return UNSEATED
        if any(is_before(at, one) for one in others):
            return ""
        for fork in self._forks.get(who, []):
            if own.sequence >= fork.sequence and _known(fork, basis) < 2:
                return TWO_TONGUES
        return UNSEATED if any(_voids(one, basis, at) for one in gone if one.author == who) else ""

    def _is_forked(self, one: Placed) -> bool:
        return any(fork.sequence == one.sequence for fork in self._forks.get(one.author, []))

    def _judge_admission(self, one: Placed) -> None:
        why = self.why_not_invite(one.author, one, one.path)
        if not why and self._stays_out(one):
            why = STAYS_OUT
        self.verdicts[one.index] = why
        if not why:
            self.admissions.setdefault(one.subject, []).append(one)

    def _stays_out(self, one: Placed) -> bool:
        """Whether its subject was removed, as its author knew, and its author is no admin."""
        back = self.admissions.get(one.subject, [])
        out = [
            gone
            for gone in self.departures.get(one.subject, [])
            if gone.act == REMOVE and is_before(gone, one) and not any(is_before(gone, again) for again in back)
        ]
        return bool(out) and self.role_at(one.author, one) not in (FOUNDER, ADMIN)

    # --- questions, about the past of an operation or about now ------------------------------------------------------

    def why_not_invite(self, who: str, at: Placed = NOW, path: Sequence[TwinId] = ()) -> str:
        """Why somebody may not let others in; empty if they may. `path`: who let them in, by their grant."""
        if who == self.founder:
            return TWO_TONGUES if at is not NOW and self._is_forked(at) else ""
        if why := self._why_no_member(who, at, path):
            return why
        role = self.role_at(who, at)
        if role == GUEST:
            return GUESTS_INVITE_NOBODY
        allowed = self.invite_rule(at)
        return "" if allowed == "members" or (allowed == "admins" and role == ADMIN) else RULE_FORBIDS

    def _why_no_member(self, who: str, at: Placed, path: Sequence[TwinId]) -> str:
        gone = self.departures.get(who, [])
        own = at if who == at.author else NOW
        bases = [admitted for admitted in self.admissions.get(who, []) if is_before(admitted, at)]
        why = NO_MEMBER
        for admitted in bases:
            why = self._why_void(who, admitted, own, at, gone)
            if not why:
                return ""
        if bases or not path or path[-1] != who or path[0] != self.founder:
            return why
        # Nothing admits them but a grant, of which nobody can tell when it was given: it must hold as if given last.
        if why := self._why_void(who, None, own, at, gone):
            return why
        return self.why_not_invite(path[-2], at, path[:-1]) if len(path) > 1 else ""

    def role_at(self, who: str, at: Placed = NOW) -> str:
        """Somebody's role, if they are a member."""
        if who == self.founder:
            return FOUNDER
        for rank, grant in self._grants.get(who, []):
            if is_before(grant, at) and not self._unseated(grant, rank, at, who):
                return ADMIN
        return GUEST if any(one.value == GUEST for one in _newest(self.roles.get(who, []), at)) else MEMBER

    def invite_rule(self, at: Placed = NOW) -> str:
        """Who may invite: of rules that were set apart, the tightest."""
        rules = self.rules.get(INVITE, [])
        if len(rules) != self._rules_known:
            self._rules_known, self._rules_now = len(rules), list(_newest(rules, NOW))
        all_known = all(is_before(one, at) for one in self._rules_now)
        values = [one.value for one in (self._rules_now if all_known else _newest(rules, at))]
        return min(values, key=WHO_INVITES.index) if values else RULES[INVITE]

    def text(self) -> str:
        """The rules in words, as an admin wrote them last."""
        newest = max(_newest(self.rules.get(TEXT, []), NOW), key=_rank, default=None)
        return newest.value if newest is not None else RULES[TEXT]

    def departure(self, who: str) -> Placed | None:
        """By what somebody is a member no more; None if nothing says so, or they were let in again since."""
        if self.is_admitted(who):
            return None
        gone = self.departures.get(who, [])
        return min(gone, key=lambda one: (one.act != REMOVE, one.depth, one.id), default=None)

    def is_admitted(self, who: str) -> bool:
        """Whether an operation that counts let them in, and nothing undid it."""
        gone = self.departures.get(who, [])
        return any(all(is_before(one, back) for one in gone) for back in self.admissions.get(who, []))


def _rank(grant: Placed) -> Rank:
    return grant.depth, grant.id


def _makes_admin(one: Placed) -> bool:
    return one.act == ROLE and one.value == ADMIN


def _voids(gone: Placed, basis: Placed | None, at: Placed) -> bool:
    """Whether a removal or demotion ends a right for an act: unless it was known when the right was given, or the act
    was known when it was written."""
    is_forgiven = basis is not None and is_before(gone, basis)
    return gone is not at and not is_forgiven and not is_before(at, gone)


def _known(fork: Fork, basis: Placed | None) -> int:
    """How many operations under the forked number were known when a right was given."""
    return 0 if basis is None else sum(is_before(one, basis) for one in fork.operations)


def _newest(operations: Sequence[Placed], at: Placed) -> Iterator[Placed]:
    """Those that bind an act, whether its author knew of them or not, and that no other one of them takes the place
    of."""
    binding = [one for one in operations if not is_before(at, one) and one is not at]
    return (one for one in binding if not any(is_before(one, other) for other in binding))
