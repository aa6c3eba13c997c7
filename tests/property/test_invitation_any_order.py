"""Invitations under any order of events: at most one is admitted by each, and nobody by one that is over."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from croft.errors import CroftError
from croft.overlay.invitation import (
    GUESSES_MAX,
    Admit,
    Created,
    Effect,
    Forget,
    Invitation,
    Invitations,
    PeerLeft,
    Received,
    Reply,
    Save,
    State,
    TimePassed,
)
from croft.overlay.invitation_code import Line, SpokenCode, parse_code
from croft.overlay.join_messages import PakeAnswer, PakeConfirm, Redeem, ToInviter
from croft.overlay.joining import LineJoiner, SpokenJoiner
from support.joining import ALICE, BOB, CAROL, COMMUNITY, MALLORY, NOW, Somebody, seed

LIFETIME_S = 100.0
JOINERS = (BOB, CAROL, MALLORY)

STEPS = st.one_of(
    st.tuples(st.just("redeem"), st.sampled_from(JOINERS)),
    st.tuples(st.just("start"), st.sampled_from(JOINERS), st.booleans()),
    st.tuples(st.just("confirm"), st.sampled_from(JOINERS)),
    st.tuples(st.just("confirm for another"), st.sampled_from(JOINERS), st.sampled_from(JOINERS)),
    st.tuples(st.just("leave"), st.sampled_from(JOINERS)),
    st.tuples(st.just("withdraw")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("tidy")),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 30.0, 61.0, 100.0])),
)


@dataclass
class World:
    """Alice's invitations with the rows that her disk holds, and what was seen."""

    now: float = NOW
    disk: dict[str, Invitation] = field(default_factory=dict)
    admitted: list[str] = field(default_factory=list)
    answered: int = 0
    begun: dict[str, tuple[SpokenJoiner, bool]] = field(default_factory=dict)
    confirms: dict[str, tuple[PakeConfirm, bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.core = Invitations(ALICE.twin_key, ALICE.peer)
        self.created: Created = self.core.create(
            COMMUNITY, addresses=[], now=self.now, lifetime_s=LIFETIME_S, is_spoken=True, seed=seed("one")
        )
        self.row = self.created.invitation
        self.disk[self.row.id] = self.row

    def step(self, step: tuple[object, ...]) -> None:
        match step:
            case ("redeem", Somebody() as who):
                line = parse_code(self.created.line)
                assert isinstance(line, Line)
                self.send(who, LineJoiner(line, who.twin, who.certificate).start())
            case ("start", Somebody() as who, bool(knows)):
                self.start(who, knows)
            case ("confirm", Somebody() as who) if who.name in self.confirms:
                self.send(who, *self.confirms.pop(who.name))
            case ("confirm for another", Somebody() as who, Somebody() as other) if other.name in self.confirms:
                self.send(who, self.confirms[other.name][0], who == other)
            case ("leave", Somebody() as who):
                self.perform(self.core.handle(PeerLeft(who.peer)))
            case ("withdraw",):
                try:
                    row = self.core.withdraw(self.row.id, self.now)
                    self.disk[row.id] = row
                except CroftError as refused:
                    assert refused.remedy
            case ("restart",):
                self.core = Invitations(ALICE.twin_key, ALICE.peer, self.disk.values())
            case ("tidy",):
                self.perform(self.core.handle(TimePassed(self.now)))
            case ("wait", float(seconds)):
                self.now += seconds

    def start(self, who: Somebody, knows: bool) -> None:
        code = parse_code(self.created.code)
        assert isinstance(code, SpokenCode)
        tried = code if knows else SpokenCode(code.nameplate, "zoo-zone")
        assert knows or tried != code
        joiner = SpokenJoiner(tried, who.peer, ALICE.peer, who.twin, who.certificate, seed((who.name, self.now)))
        for effect in self.send(who, joiner.start()):
            if isinstance(effect, Reply) and isinstance(effect.message, PakeAnswer):
                self.confirms[who.name] = (joiner.answered(effect.message), knows)

    def send(self, who: Somebody, message: ToInviter, may_be_right: bool = True) -> list[Effect]:
        before = self.disk.get(self.row.id)
        effects = self.perform(self.core.handle(Received(who.peer, message, self.now, seed((who.name, "a", self.now)))))
        replies = [e for e in effects if isinstance(e, Reply | Admit)]
        assert len(replies) == 1
        assert replies[0].peer == who.peer
        if isinstance(replies[0], Admit):
            assert may_be_right
            assert isinstance(message, Redeem | PakeConfirm)
            assert before is not None
            assert self.now < before.expires_at
            assert before.state is State.OPEN or (before.state is State.USED and replies[0].is_again)
        return effects

    def perform(self, effects: object) -> list[Effect]:
        performed: list[Effect] = list(effects)  # type: ignore[call-overload] # a sequence of effects
        for effect in performed:
            match effect:
                case Save(row):
                    old = self.disk[row.id]
                    assert old.state is State.OPEN or old.state is row.state
                    assert row.guesses_left <= old.guesses_left
                    self.answered += old.guesses_left - row.guesses_left
                    self.disk[row.id] = row
                case Forget(identifier):
                    del self.disk[identifier]
                case Admit(peer):
                    assert self.disk[self.row.id].state is State.USED
                    assert self.disk[self.row.id].used_by == peer
                    self.admitted.append(peer)
                case Reply():
                    pass
        return performed


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=25))
def test_at_most_one_is_admitted_and_nobody_once_it_is_over(steps: list[tuple[object, ...]]) -> None:
    world = World()

    for step in steps:
        world.step(step)

    assert len(set(world.admitted)) <= 1
    assert world.answered <= GUESSES_MAX
    assert {row.id: row for row in world.core.all()} == world.disk


def test_the_property_is_not_true_of_nothing() -> None:
    for steps in ([("redeem", BOB)], [("start", CAROL, True), ("confirm", CAROL)]):
        world = World()
        for step in steps:
            world.step(step)
        assert len(world.admitted) == 1
    world = World()
    for _ in range(GUESSES_MAX):
        world.step(("start", MALLORY, False))
        world.step(("confirm", MALLORY))
    assert world.disk[world.row.id].state is State.LOCKED
    assert world.answered == GUESSES_MAX
