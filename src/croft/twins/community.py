"""One community's operations and what follows from them: who is a member, in what role, by which rules. Sans-IO.

Operations may come in any order and any number of times. What its author had no right to at all is not taken; what
counts of the rest, `community_reducer` decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from croft.errors import PeerMisbehaved
from croft.model.ids import CommunityId, TwinId, short
from croft.twins.community_graph import NOW, Graph, Placed, is_before, wanted
from croft.twins.community_operation import (
    ADMIN,
    ADMIT,
    CREATE,
    GUEST,
    LEAVE,
    PARENTS_MAX,
    REMOVE,
    ROLE,
    RULE,
    STEP,
    Operation,
    Signed,
)
from croft.twins.community_reducer import COUNTS, Fork, Reduction
from croft.wire.codec import encode

OPERATIONS_MAX: Final = 262_144
BY_ADMIN_MAX: Final = 65_536
BY_MEMBER_MAX: Final = 2_048
"""Of one author; more are taken only where acts of others build on them."""
WAITING_MAX: Final = 1_024
REFUSED_KEPT_MAX: Final = 64
FORKS_TAKEN_MAX: Final = 2
"""Operations under one number, which is the proof; more are taken only where acts of others build on them."""
CREATIONS_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Act:
    """An operation as people read it. `why_not`: why it has no effect; empty if it counts."""

    id: bytes
    author: TwinId
    act: str
    subject: str
    value: str
    at: float
    why_not: str


class Community:
    """See the module. `founder` is whom the first token of every valid grant names."""

    def __init__(self, community: CommunityId, founder: TwinId) -> None:
        self.id = community
        self.founder = founder
        self.refused: deque[Act] = deque(maxlen=REFUSED_KEPT_MAX)
        """What was not taken of late, for people to see."""
        self._graph = Graph()
        self._waiting: dict[bytes, Signed] = {}
        self._awaited: dict[bytes, list[bytes]] = {}
        self._by_author: dict[str, list[Placed]] = {}
        self._numbers: dict[tuple[str, int], Placed | list[Placed]] = {}
        self._forks: dict[str, list[Fork]] = {}
        self._promotions: dict[str, list[Placed]] = {}
        self._admissions: dict[str, list[Placed]] = {}
        self._about: dict[str, list[Placed]] = {}
        self._reduction: Reduction | None = None

    # --- operations --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._graph)

    def __contains__(self, one: bytes) -> bool:
        return one in self._graph

    def take(self, signed: Signed, *, is_needed: bool = False) -> list[Signed]:
        """Takes in an operation; what is new by it, which may be some that waited for it.

        `is_needed`: acts of others build on it. Raises PeerMisbehaved if its author has no right to such an act.
        """
        if signed.id in self._graph or signed.id in self._waiting:
            return []
        if missing := self._graph.missing(signed.operation.parents):
            self._wait(signed, missing[0])
            return []
        self._place(signed, is_needed)
        placed = [signed]
        for known in placed:
            for child in self._awaited.pop(known.id, []):
                waiting = self._waiting.pop(child, None)
                if waiting is None:
                    continue
                if missing := self._graph.missing(waiting.operation.parents):
                    self._wait(waiting, missing[0])
                    continue
                try:
                    self._place(waiting, is_needed)
                except PeerMisbehaved:
                    continue  # told of in `refused`
                placed.append(waiting)
        return placed

    def next_operation(
        self, author: TwinId, act: str, subject: str, value: str, *, at: float, chain: Sequence[bytes]
    ) -> Operation:
        """What `author` would sign to do this, knowing all that is known here."""
        last = max(self._by_author.get(author, []), key=lambda one: one.sequence, default=None)
        heads = self._graph.heads()
        if last is not None:
            # One's own acts follow one another, however many heads there are.
            heads.sort(key=lambda one: one is not last and not is_before(last, one))
        parents = sorted(one.id for one in heads[:PARENTS_MAX])
        sequence = 0 if last is None else last.sequence + 1
        is_known = author == self.founder or bool(self._admissions.get(author) or self._promotions.get(author))
        return Operation(self.id, sequence, parents, act, subject, value, at, [] if is_known else list(chain))

    def heads(self, count_max: int) -> list[bytes]:
        """The newest operations, which stand for all before them."""
        return [one.id for one in self._graph.heads()[:count_max]]

    def sample(self, count_max: int) -> list[bytes]:
        """Ids by which another peer can tell what is known here."""
        return self._graph.sample(count_max)

    def lacking(self, known: Iterable[bytes], wanted: Iterable[bytes], start: int = 0) -> Iterable[Placed]:
        """What somebody lacks who knows these and wants those, parents before children, from an index on."""
        return self._graph.lacking(known, wanted, start)

    # --- what follows from them --------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What its founder called it; empty if nothing says so."""
        return min(((one.id, one.value) for one in self._now().created), default=(b"", ""))[1]

    def members(self) -> list[TwinId]:
        """Everybody whom an operation let in, and the founder, unless they were removed or left."""
        reduction = self._now()
        people = {self.founder, *reduction.admissions}
        return [TwinId(one) for one in sorted(people) if self.role(TwinId(one))]

    def role(self, who: TwinId, path: Sequence[TwinId] = ()) -> str:
        """Somebody's role; empty if they are no member. `path`: who let them in, by their grant."""
        return "" if self.refusal(who, path) else self._now().role_at(who)

    def refusal(self, who: TwinId, path: Sequence[TwinId] = ()) -> str:
        """Why somebody is no member, whatever grant they show; empty if they are."""
        reduction = self._now()
        if gone := reduction.departure(who):
            return "left" if gone.act == LEAVE else f"removed by {short(gone.author)}"
        if who == self.founder or reduction.is_admitted(who):
            return ""
        if len(path) < 2 or path[-1] != who or path[0] != self.founder:
            return "nobody let them in"
        return reduction.why_not_invite(path[-2], NOW, path[:-1])

    def was_removed_by(self, who: TwinId) -> TwinId | None:
        """Who removed somebody; None if nobody did, or they left."""
        gone = self._now().departure(who)
        return gone.author if gone is not None and gone.act == REMOVE else None

    def may_invite(self, who: TwinId, path: Sequence[TwinId] = ()) -> str:
        """Why somebody may not let others in; empty if they may."""
        return self.refusal(who, path) or self._now().why_not_invite(who, NOW, path)

    def is_present(self, who: TwinId) -> bool:
        """Whether operations alone say that they are a member."""
        return not self.refusal(who)

    def is_out(self, who: TwinId) -> bool:
        """Whether they were removed, or left."""
        return self._now().departure(who) is not None

    def is_guest(self, who: TwinId) -> bool:
        """Whether they may use only what is offered to them by name."""
        return self._now().role_at(who) == GUEST

    def guests(self) -> frozenset[TwinId]:
        """Everybody who has that role."""
        reduction = self._now()
        return frozenset(TwinId(who) for who in reduction.roles if reduction.role_at(who) == GUEST)

    def is_admitted(self, who: TwinId) -> bool:
        """Whether an operation says that they were let in, whether it counts or not."""
        return who == self.founder or bool(self._admissions.get(who))

    def name_of(self, who: TwinId) -> str:
        """What somebody called themselves when they were let in."""
        admitted = self._admissions.get(who, [])
        return admitted[-1].value if admitted else ""

    def rules(self) -> dict[str, str]:
        """Every rule, and what it says."""
        return {"invite": self._now().invite_rule(), "text": self._now().text()}

    def would_count(self, author: TwinId, act: str, subject: str, value: str, path: Sequence[TwinId] = ()) -> str:
        """Why an act of somebody would have no effect now; empty if it would count."""
        return self.refusal(author, path) or self._now().why_not(wanted(author, act, subject, value, tuple(path)))[0]

    def log(self) -> list[Act]:
        """All that was done, in an order that is the same everywhere."""
        verdicts = self._now().verdicts
        order = sorted(self._graph.order, key=lambda one: (one.depth, one.id))
        return [Act(one.id, one.author, one.act, one.subject, one.value, one.at, verdicts[one.index]) for one in order]

    def digest(self) -> bytes:
        """Equal where the same counts."""
        verdicts = self._now().verdicts
        counted = sorted(one.id for one in self._graph.order if verdicts[one.index] == COUNTS)
        roles = [(who, self.role(who)) for who in self.members()]
        return blake3(encode((counted, roles, sorted(self.rules().items())))).digest()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _now(self) -> Reduction:
        if self._reduction is None:
            self._reduction = Reduction(self.founder)
            self._reduction.judge_all(self._graph.order, self._forks)
        return self._reduction

    def _wait(self, signed: Signed, missing: bytes) -> None:
        if len(self._waiting) >= WAITING_MAX:
            del self._waiting[next(iter(self._waiting))]
            if len(self._awaited) > 2 * WAITING_MAX:
                self._awaited = {
                    parent: [one for one in children if one in self._waiting]
                    for parent, children in self._awaited.items()
                    if any(one in self._waiting for one in children)
                }
        self._waiting[signed.id] = signed
        self._awaited.setdefault(missing, []).append(signed.id)

    def _place(self, signed: Signed, is_needed: bool) -> None:
        operation = signed.operation
        one = self._graph.make(
            operation.parents,
            id=signed.id,
            author=signed.author,
            sequence=operation.sequence,
            act=operation.act,
            subject=operation.subject,
            value=operation.value,
            at=operation.at,
            path=signed.path,
        )
        if why := self._why_no_right(one, operation.parents) or self._why_too_many(one, is_needed):
            self.refused.append(Act(one.id, one.author, one.act, one.subject, one.value, one.at, why))
            raise PeerMisbehaved(f"`{one.act}` by {short(one.author)}: {why}", step=STEP)
        self._graph.put(one, operation.parents)
        self._by_author.setdefault(one.author, []).append(one)
        if one.act in (ROLE, REMOVE, LEAVE):
            self._about.setdefault(one.subject, []).append(one)
        if one.act == ADMIT:
            self._admissions.setdefault(one.subject, []).append(one)
        elif one.act == ROLE and one.value == ADMIN:
            self._promotions.setdefault(one.subject, []).append(one)
        is_forked = self._count(one)
        if self._reduction is not None:
            if is_forked or not self._changes_nothing_judged(one):
                self._reduction = None
            else:
                self._reduction.judge_next(one)

    def _changes_nothing_judged(self, one: Placed) -> bool:
        """Whether every other operation counts, or does not, whatever this one says."""
        if one.act == ADMIT or self._graph.is_last(one):
            return True
        if one.act == RULE or one.subject in self._forks:
            return False
        involved = (*self._by_author.get(one.subject, []), *self._about.get(one.subject, []))
        return all(other is one or (is_before(other, one) and (other.author != other.subject)) for other in involved)

    def _why_no_right(self, one: Placed, parents: Sequence[bytes]) -> str:
        """What its past alone says: whoever has all of it says the same, whatever else they know."""
        if one.act == CREATE:
            is_fit = str(one.author) == self.id and one.subject == self.founder and not parents
            return "" if is_fit else "only the community's key creates it, for its founder"
        if one.path and one.path[0] != self.founder:
            return "its author's grant is from another founder"
        if one.act == LEAVE and one.subject != one.author:
            return "people leave for themselves only"
        if one.act in (ADMIT, REMOVE) and one.subject == one.author:
            return "not about oneself"
        if not self._follows(one):
            return "it does not follow its author's act before"
        if one.author == self.founder or self._was_made_admin(one):
            return ""
        if one.act not in (ADMIT, LEAVE):
            return "its author was no admin"
        is_known = one.path or any(is_before(back, one) for back in self._admissions.get(one.author, []))
        return "" if is_known else "its author was no member"

    def _follows(self, one: Placed) -> bool:
        """Whether it knows of its author's act before: so whoever signs two apart has to number them alike."""
        if one.sequence == 0:
            return True
        same = self._numbers.get((one.author, one.sequence - 1), [])
        return any(is_before(other, one) for other in (same if isinstance(same, list) else [same]))

    def _was_made_admin(self, one: Placed) -> bool:
        return any(is_before(made, one) for made in self._promotions.get(one.author, []))

    def _why_too_many(self, one: Placed, is_needed: bool) -> str:
        if len(self._graph) >= OPERATIONS_MAX:
            return f"the community has {OPERATIONS_MAX} operations already"
        if is_needed:
            return ""
        if one.act == CREATE:
            return "" if len(self._by_author.get(one.author, [])) < CREATIONS_MAX else "it was created already"
        count = len(self._by_author.get(one.author, []))
        if count >= BY_MEMBER_MAX:
            is_admin = one.author == self.founder or self._was_made_admin(one)
            if count >= BY_ADMIN_MAX or not is_admin:
                return "its author has done too much"
        same = self._numbers.get((one.author, one.sequence))
        if isinstance(same, list) and len(same) >= FORKS_TAKEN_MAX:
            return "its author signed different acts under one number, which is known"
        return ""

    def _count(self, one: Placed) -> bool:
        """Notes its number; whether others had it before."""
        key = (one.author, one.sequence)
        same = self._numbers.get(key)
        if same is None or one.act == CREATE:
            self._numbers[key] = one
            return False
        if isinstance(same, list):
            same.append(one)
        else:
            self._numbers[key] = both = [same, one]
            self._forks.setdefault(one.author, []).append(Fork(one.sequence, both))
        return True
