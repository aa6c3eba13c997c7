"""The store of records under any order of events: nothing of one's own is lost, and views converge."""

from __future__ import annotations

import itertools
from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from croft.model.ids import PeerId
from croft.overlay.record_messages import Push
from croft.overlay.records import (
    Effect,
    Entry,
    Event,
    Limits,
    LinkDown,
    LinkUp,
    MessageReceived,
    Published,
    Received,
    RecordStore,
    Send,
    Tick,
)
from support.members import VILLAGE
from support.records import KIND, entry

NAMES = ["anna", "bo", "cleo", "dora"]
HERE = frozenset([VILLAGE])
LIFETIME_S = 40.0


class AnyOrder(RuleBasedStateMachine):
    """Four peers. Links come and go, messages arrive late or are lost with their link, time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.said = 0
        self.stores = {name: RecordStore(PeerId(name)) for name in NAMES}
        self.own: dict[str, Entry] = {}
        self.entries: dict[bytes, Entry] = {}
        self.links: set[frozenset[str]] = set()
        self.wires: dict[tuple[str, str], deque[Event]] = {}
        for name in NAMES:
            self.stores[name].allow(KIND, Limits(100, 1))
            self.speak(name)

    def feed(self, name: str, event: Event) -> None:
        for effect in self.stores[name].handle(event):
            self.perform(name, effect)

    def perform(self, name: str, effect: Effect) -> None:
        if not isinstance(effect, Send):
            return
        assert frozenset([name, effect.peer]) in self.links, "something is sent without a link"
        sender, message = PeerId(name), effect.message
        if isinstance(message, Push):
            event: Event = Received(sender, [self.entries[record] for _, record in message.records], self.now)
        else:
            event = MessageReceived(sender, message, self.now)
        self.wires.setdefault((name, effect.peer), deque()).append(event)

    def arrive(self, wire: tuple[str, str]) -> None:
        event = self.wires[wire].popleft()
        if isinstance(event, Received):
            event = Received(event.sender, event.entries, self.now)
        elif isinstance(event, MessageReceived):
            event = MessageReceived(event.sender, event.message, self.now)
        self.feed(wire[1], event)

    def connect(self, one: str, other: str) -> None:
        self.links.add(frozenset([one, other]))
        for here, there in ((one, other), (other, one)):
            self.wires[here, there] = deque()
        for here, there in ((one, other), (other, one)):
            self.feed(here, LinkUp(PeerId(there), HERE))

    def disconnect(self, one: str, other: str) -> None:
        self.links.discard(frozenset([one, other]))
        for here, there in ((one, other), (other, one)):
            self.wires.pop((here, there), None)
            self.feed(here, LinkDown(PeerId(there)))

    @rule(name=st.sampled_from(NAMES))
    def speak(self, name: str) -> None:
        """A peer says something new of itself."""
        self.said += 1
        said = entry(name, int(self.now * 1000) + self.said, expires_at=self.now + LIFETIME_S)
        self.own[name] = self.entries[said.record] = said
        self.feed(name, Published(said, self.now))

    @rule(pair=st.lists(st.sampled_from(NAMES), min_size=2, max_size=2, unique=True))
    def a_link_comes_or_goes(self, pair: list[str]) -> None:
        if frozenset(pair) in self.links:
            self.disconnect(*pair)
        else:
            self.connect(*pair)

    @rule(data=st.data())
    def a_message_arrives(self, data: st.DataObject) -> None:
        waiting = sorted(wire for wire, events in self.wires.items() if events)
        if waiting:
            self.arrive(data.draw(st.sampled_from(waiting)))

    @rule(seconds=st.sampled_from([0.5, 3.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for name in NAMES:
            self.feed(name, Tick(self.now))

    @rule()
    def all_meet(self) -> None:
        """Once a chain of fresh links joins all and all has arrived, all hold everybody's last word."""
        self.now += 60.0  # what was asked of a link that ended is asked again, and the pace of news is made up for
        for pair in sorted(self.links, key=sorted):
            self.disconnect(*sorted(pair))
        for name in NAMES:
            self.feed(name, Tick(self.now))
            self.speak(name)
        for one, other in itertools.pairwise(NAMES):
            self.connect(one, other)
        while waiting := [wire for wire, events in self.wires.items() if events]:
            self.arrive(waiting[0])
        for name in NAMES:
            assert {e.claim.key: e for e in self.stores[name].entries(KIND)} == self.own

    @invariant()
    def ones_own_record_is_there_until_it_expires(self) -> None:
        for name, store in self.stores.items():
            if name in self.own and self.own[name].claim.expires_at >= self.now:
                assert store.get(KIND, VILLAGE, name) == self.own[name]

    @invariant()
    def nobody_holds_what_nobody_said(self) -> None:
        for store in self.stores.values():
            assert all(self.entries[held.record] == held for held in store.entries(KIND))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
