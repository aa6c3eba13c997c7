"""Whatever the order of events, restarts and jumps of clocks, nothing is sold twice and nobody is forgotten."""

from __future__ import annotations

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from croft.ledger.lease import (
    Asked,
    Effect,
    Ended,
    Erase,
    Grant,
    Leases,
    Left,
    Offered,
    Reclaim,
    Refuse,
    Restored,
    TimePassed,
    Withdrawn,
    Write,
    Written,
)
from croft.model.amounts import Amounts
from croft.model.ids import PeerId, TwinId
from croft.model.lease import Lease, Request, Stage

MOST = {"small": Amounts.of({"cpu": 1, "mem": 4}), "large": Amounts.of({"cpu": 3, "mem": 8, "camera": 1})}
TOTAL = Amounts.of({"cpu": 3, "mem": 8, "camera": 1})
KEYS = [f"key{number}" for number in range(6)]


class Lending(RuleBasedStateMachine):
    """A peer that lends: its core, its disk, and those who ask."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Leases()
        self.now = 0.0
        self.disk: dict[int, Lease] = {}
        self.unwritten: list[Lease] = []
        self.closing: list[Lease] = []
        self.asked: dict[int, Request] = {}
        self.users: dict[int, int] = {}
        self.asks = 0
        self.feed(Offered(MOST, TOTAL, self.now))

    def feed(self, event: object) -> list[Effect]:
        effects = list(self.core.handle(event))  # type: ignore[arg-type]
        for effect in effects:
            match effect:
                case Write(lease):
                    self.unwritten.append(lease)
                case Grant(ask, lease):
                    assert lease.number in self.disk, "a grant that a crash would forget"
                    assert self.asked.pop(ask).key == lease.request.key, "answered once, with the lease asked for"
                    self.users[lease.number] = self.users.get(lease.number, 0) + 1
                case Refuse(ask, _):
                    del self.asked[ask]
                case Reclaim(lease):
                    self.closing.append(lease)
                case Erase(number):
                    self.disk.pop(number, None)
        return effects

    @rule(
        key=st.sampled_from(KEYS),
        offers=st.sampled_from([("small",), ("large",), ("small", "large")]),
        cpu=st.integers(0, 4),
        mem=st.integers(0, 9),
        camera=st.integers(0, 1),
        wait_s=st.sampled_from([0.0, 5.0, 1e9]),
        lasts_s=st.sampled_from([float("inf"), 20.0]),
    )
    def ask(
        self, key: str, offers: tuple[str, ...], cpu: int, mem: int, camera: int, wait_s: float, lasts_s: float
    ) -> None:
        self.asks += 1
        wants = Amounts.of({"cpu": cpu, "mem": mem, "camera": camera})
        request = Request(key, PeerId("p"), TwinId("t"), "command", "", offers, wants, lasts_s)
        self.asked[self.asks] = request
        self.feed(Asked(self.asks, request, wait_s, self.now))

    @rule(is_done=st.booleans())
    def disk_answers(self, is_done: bool) -> None:
        if self.unwritten:
            lease = self.unwritten.pop(0)
            if is_done:
                self.disk[lease.number] = lease
            self.feed(Written(lease.number, is_done, self.now))

    @rule(pick=st.integers(0, 9), stage=st.sampled_from([Stage.WARM, Stage.SILENT, Stage.ENDING]))
    def somebody_leaves(self, pick: int, stage: Stage) -> None:
        held = sorted(number for number, users in self.users.items() if users)
        if held:
            number = held[pick % len(held)]
            self.users[number] -= 1
            lease = self.disk[number]
            was = self.core.stage(number)
            self.feed(Left(number, stage, self.now))
            if stage is Stage.ENDING and was is not Stage.ENDING and self.core.stage(number) is Stage.ENDING:
                self.closing.append(lease)

    @rule(pick=st.integers(0, 9))
    def a_box_is_closed(self, pick: int) -> None:
        ready = [lease for lease in self.closing if not self.users.get(lease.number)]
        if ready:
            lease = ready[pick % len(ready)]
            self.closing.remove(lease)
            self.feed(Ended(lease.number, self.now))

    @rule(pick=st.integers(0, 9))
    def somebody_no_longer_waits(self, pick: int) -> None:
        if self.asked:
            ask = sorted(self.asked)[pick % len(self.asked)]
            del self.asked[ask]
            self.feed(Withdrawn(ask, self.now))

    @rule(by=st.sampled_from([0.5, 10.0, 40.0, 1e6]))
    def time_passes(self, by: float) -> None:
        self.now += by
        self.feed(TimePassed(self.now))

    @rule(is_open=st.booleans())
    def the_owner_changes_the_offers(self, is_open: bool) -> None:
        self.feed(Offered(MOST if is_open else {}, TOTAL if is_open else Amounts(), self.now))

    @rule(now=st.sampled_from([0.0, 1e3, 1e9]))
    def the_peer_is_killed_and_starts_again_on_another_clock(self, now: float) -> None:
        self.core, self.now = Leases(max(self.disk, default=0) + 1), now
        self.unwritten, self.closing, self.users = [], [], {}
        self.asked = {}
        before = dict(self.disk)
        self.feed(Restored(list(self.disk.values()), self.now))
        self.feed(Offered(MOST, TOTAL, self.now))
        assert self.disk == before
        for lease in before.values():
            assert self.core.stage(lease.number) is Stage.SILENT, "kept for its holder"

    @invariant()
    def nothing_is_sold_twice(self) -> None:
        for offer, most in MOST.items():
            assert not most.lacking(self.core.taken(offer))
        assert not TOTAL.lacking(self.core.taken())

    @invariant()
    def a_key_has_one_lease(self) -> None:
        keys = [lease.request.key for lease, _ in self.core.shown()]
        assert len(keys) == len(set(keys))

    @invariant()
    def what_is_on_disk_is_held(self) -> None:
        assert set(self.disk) <= {lease.number for lease, _ in self.core.shown()}

    def teardown(self) -> None:
        """Once everybody has gone and time has passed, all is free again, and all were answered."""
        self.feed(Offered(MOST, TOTAL, self.now))
        for _ in range(500):
            while self.unwritten:
                self.disk_answers(True)
            for number in [number for number, users in self.users.items() for _ in range(users)]:
                self.users[number] -= 1
                was = self.core.stage(number)
                self.feed(Left(number, Stage.ENDING, self.now))
                if was is not Stage.ENDING and self.core.stage(number) is Stage.ENDING:
                    self.closing.append(self.disk[number])
            while self.closing:
                self.a_box_is_closed(0)
            self.time_passes(100.0)
            if not self.core.shown() and not self.asked:
                break
        assert not self.core.shown() and not self.asked and not self.disk


TestLending = Lending.TestCase
TestLending.settings = settings(
    max_examples=2_000 if os.environ.get("CROFT_CAMPAIGN") == "long" else 60, stateful_step_count=40, deadline=None
)
