"""The membership core under any order of events: nothing of one's own is lost, and views converge."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from croft.model.ids import PeerId
from croft.overlay.membership import (
    Dial,
    DialFailed,
    DigestReceived,
    Effect,
    Event,
    LinkDown,
    LinkUp,
    Member,
    Membership,
    OwnChanged,
    RecordsReceived,
    SendDigest,
    SendRecords,
    Tick,
)
from support.members import VILLAGE, member

NAMES = ["anna", "bo", "cleo", "dora"]
HERE = frozenset([VILLAGE])
LIFETIME_S = 40.0


class AnyOrder(RuleBasedStateMachine):
    """Four peers. Links come and go, messages arrive late or are lost with their link, time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.cores = {name: Membership(PeerId(name), name.encode()) for name in NAMES}
        self.own: dict[str, Member] = {}
        self.records: dict[bytes, Member] = {}
        self.links: set[frozenset[str]] = set()
        self.wires: dict[tuple[str, str], deque[Event]] = {}
        self.dials: list[tuple[str, str]] = []
        for name in NAMES:
            self.speak(name)
            # Everybody was let in by the first.
            self.feed(name, RecordsReceived(None, [self.own[NAMES[0]]], self.now))

    def feed(self, name: str, event: Event) -> None:
        for effect in self.cores[name].handle(event):
            self.perform(name, effect)

    def perform(self, name: str, effect: Effect) -> None:
        match effect:
            case SendDigest(peer, community, entries):
                self.send(name, peer, DigestReceived(PeerId(name), community, entries))
            case SendRecords(peer, _, records):
                members = [self.records[record] for record in records]
                self.send(name, peer, RecordsReceived(PeerId(name), members, self.now))
            case Dial(peer, _):
                assert frozenset([name, peer]) not in self.links, "a linked peer is dialled"
                assert (name, peer) not in self.dials, "a peer is dialled twice at once"
                self.dials.append((name, peer))
            case _:
                pass

    def send(self, source: str, target: str, event: Event) -> None:
        assert frozenset([source, target]) in self.links, "something is sent without a link"
        self.wires.setdefault((source, target), deque()).append(event)

    def arrive(self, wire: tuple[str, str]) -> None:
        event = self.wires[wire].popleft()
        if isinstance(event, RecordsReceived):
            event = RecordsReceived(event.sender, event.members, self.now)
        self.feed(wire[1], event)

    def connect(self, one: str, other: str) -> None:
        self.links.add(frozenset([one, other]))
        for here, there in ((one, other), (other, one)):
            self.wires[here, there] = deque()
        for here, there in ((one, other), (other, one)):
            if (here, there) in self.dials:
                self.dials.remove((here, there))
            self.feed(here, LinkUp(PeerId(there), HERE))

    @rule(name=st.sampled_from(NAMES))
    def speak(self, name: str) -> None:
        """A peer says something new of itself."""
        sequence = int(self.now * 1000) + len(self.records)
        said = member(name, sequence, expires_at=self.now + LIFETIME_S, instance=name.encode())
        self.own[name] = self.records[said.record] = said
        self.feed(name, OwnChanged(said))

    @rule(pair=st.lists(st.sampled_from(NAMES), min_size=2, max_size=2, unique=True))
    def a_link_comes_or_goes(self, pair: list[str]) -> None:
        one, other = pair
        if frozenset(pair) not in self.links:
            self.connect(one, other)
            return
        self.links.discard(frozenset(pair))
        for here, there in ((one, other), (other, one)):
            self.wires.pop((here, there), None)
        for here, there in ((one, other), (other, one)):
            self.feed(here, LinkDown(PeerId(there), self.now))

    @rule(data=st.data())
    def a_message_arrives(self, data: st.DataObject) -> None:
        waiting = sorted(wire for wire, events in self.wires.items() if events)
        if waiting:
            self.arrive(data.draw(st.sampled_from(waiting)))

    @rule(data=st.data())
    def a_dial_ends(self, data: st.DataObject) -> None:
        if not self.dials:
            return
        name, peer = data.draw(st.sampled_from(self.dials))
        self.dials.remove((name, peer))
        if data.draw(st.booleans()) and frozenset([name, peer]) not in self.links:
            self.connect(name, peer)
        else:
            self.feed(name, DialFailed(PeerId(peer), self.now))

    @rule(seconds=st.sampled_from([0.5, 3.0, 15.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for name in NAMES:
            self.feed(name, Tick(self.now))

    @rule()
    def all_meet(self) -> None:
        """Once all are linked and all has arrived, all who are not expired are known to all, by their last word."""
        for name in NAMES:
            self.speak(name)
        for number, one in enumerate(NAMES):
            for other in NAMES[:number]:
                if frozenset([one, other]) not in self.links:
                    self.connect(one, other)
        while waiting := [wire for wire, events in self.wires.items() if events]:
            self.arrive(waiting[0])
        for name in NAMES:
            view = {one.name: one for one in self.cores[name].members(VILLAGE)}
            assert view == self.own

    @invariant()
    def ones_own_record_is_there(self) -> None:
        for name, core in self.cores.items():
            if name in self.own:
                assert core.find(PeerId(name)) == self.own[name]

    @invariant()
    def nobody_knows_what_nobody_said(self) -> None:
        for core in self.cores.values():
            assert all(self.records[one.record] == one for one in core.members())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
