"""Who holds how much of what is offered."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from croft.ledger.lease import (
    ENDING_S_MAX,
    GRACE_S,
    WARM_S,
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


def amounts(**pairs: int) -> Amounts:
    return Amounts.of(pairs)


def request(key: str, lasts_s: float = inf, offers: tuple[str, ...] = ("all",), **wants: int) -> Request:
    return Request(key, PeerId("p" * 64), TwinId("t" * 64), "command", "job", offers, Amounts.of(wants), lasts_s)


class Lender:
    """A core whose disk writes at once."""

    def __init__(self, **offered: int) -> None:
        self.core = Leases()
        self.core.handle(Offered({"all": amounts(**offered)}, amounts(**offered), 0.0))
        self._asks = 0

    def handle(self, event: object) -> list[Effect]:
        effects: list[Effect] = []
        for effect in self.core.handle(event):  # type: ignore[arg-type]
            effects.append(effect)
            if isinstance(effect, Write):
                effects += self.handle(Written(effect.lease.number, True, 0.0))
        return effects

    def ask(self, key: str, now: float = 0.0, wait_s: float = 0.0, lasts_s: float = inf, **wants: int) -> list[Effect]:
        self._asks += 1
        return self.handle(Asked(self._asks, request(key, lasts_s, **wants), wait_s, now))

    def hold(self, key: str, **wants: int) -> Lease:
        (lease,) = [effect.lease for effect in self.ask(key, **wants) if isinstance(effect, Grant)]
        return lease


def test_a_grant_is_told_only_once_it_is_on_disk() -> None:
    core = Leases()
    core.handle(Offered({"all": amounts(cpu=2)}, amounts(cpu=2), 0.0))

    (write,) = core.handle(Asked(1, request("a", cpu=1), 0.0, 0.0))
    assert isinstance(write, Write) and core.taken()["cpu"] == 1
    (grant,) = core.handle(Written(write.lease.number, True, 0.0))

    assert grant == Grant(1, write.lease)


def test_what_cannot_be_written_is_not_granted_and_holds_nothing() -> None:
    core = Leases()
    core.handle(Offered({"all": amounts(cpu=2)}, amounts(cpu=2), 0.0))
    (write,) = core.handle(Asked(1, request("a", cpu=2), 0.0, 0.0))
    assert isinstance(write, Write)

    assert core.handle(Written(write.lease.number, False, 0.0)) == [Refuse(1, ())]
    assert core.taken() == Amounts()


def test_the_last_processors_go_to_one_of_ten() -> None:
    lender = Lender(cpu=2)

    answers = [effect for number in range(10) for effect in lender.ask(f"peer{number}", cpu=2)]

    assert sum(isinstance(effect, Grant) for effect in answers) == 1
    refusals = [effect for effect in answers if isinstance(effect, Refuse)]
    assert len(refusals) == 9
    assert [(lack.name, lack.wanted, lack.free, lack.offered) for lack in refusals[0].lacks] == [("cpu", 2, 0, 2)]


def test_a_refusal_says_when_what_is_taken_comes_free() -> None:
    lender = Lender(cpu=2)
    lender.ask("short", lasts_s=100.0, cpu=1)
    lender.ask("long", lasts_s=500.0, cpu=1)

    (refuse,) = lender.ask("third", 40.0, cpu=1)

    assert isinstance(refuse, Refuse) and refuse.lacks[0].free_in_s == 60.0


def test_the_same_key_is_the_same_lease_however_often_it_is_asked_for() -> None:
    lender = Lender(cpu=1)
    lease = lender.hold("a", cpu=1)

    assert lender.hold("a", cpu=1) == lease
    lender.handle(Left(lease.number, Stage.WARM, 0.0))
    assert lender.core.stage(lease.number) is Stage.HELD, "one user is left"


def test_a_warm_lease_is_given_up_to_whoever_needs_what_it_holds() -> None:
    lender = Lender(cpu=2, mem=100)
    warm = lender.hold("a", mem=80)
    lender.handle(Left(warm.number, Stage.WARM, 0.0))

    assert lender.ask("b", 1.0, mem=50) == [Reclaim(warm)]
    effects = lender.handle(Ended(warm.number, 1.1))

    assert effects[0] == Erase(warm.number) and any(isinstance(effect, Grant) for effect in effects)


def test_a_warm_lease_is_used_again_by_its_holder_and_ends_by_itself() -> None:
    lender = Lender(mem=100)
    lease = lender.hold("a", mem=80)
    lender.handle(Left(lease.number, Stage.WARM, 0.0))
    assert lender.hold("a", mem=80) == lease
    lender.handle(Left(lease.number, Stage.WARM, 10.0))

    assert lender.handle(TimePassed(10.0 + WARM_S - 1)) == []
    assert lender.handle(TimePassed(10.0 + WARM_S)) == [Reclaim(lease)]


def test_a_silent_lease_is_nobody_elses_until_its_grace_is_over() -> None:
    lender = Lender(cpu=2)
    lease = lender.hold("a", cpu=2)
    lender.handle(Left(lease.number, Stage.SILENT, 0.0))

    (refuse,) = lender.ask("b", 1.0, cpu=2)
    assert isinstance(refuse, Refuse) and refuse.lacks[0].free_in_s == GRACE_S - 1
    assert lender.hold("a", cpu=2) == lease
    lender.handle(Left(lease.number, Stage.SILENT, 5.0))

    assert lender.handle(TimePassed(5.0 + GRACE_S)) == [Reclaim(lease)]


def test_after_a_restart_a_lease_waits_for_its_holder_and_for_nobody_else() -> None:
    lender = Lender(cpu=2)
    lease = Lease(7, request("a", cpu=2), (("cpu", "all"),))
    lender.handle(Restored([lease], 0.0))

    assert isinstance(lender.ask("b", 1.0, cpu=1)[0], Refuse)
    assert lender.hold("a", cpu=2) == lease
    assert isinstance(lender.ask("b", 100.0, cpu=1)[0], Refuse), "the holder is back: no grace runs out"


def test_who_waits_in_line_is_served_in_order_when_there_is_room() -> None:
    lender = Lender(cpu=2)
    first, second = lender.hold("a", cpu=1), lender.hold("b", cpu=1)
    assert lender.ask("wide", wait_s=60.0, cpu=2) == []
    assert lender.ask("narrow", wait_s=60.0, cpu=1) == []

    lender.handle(Left(first.number, Stage.ENDING, 1.0))
    assert lender.handle(Ended(first.number, 1.0)) == [Erase(first.number)], "the narrow one does not overtake"
    lender.handle(Left(second.number, Stage.ENDING, 2.0))
    granted = [effect for effect in lender.handle(Ended(second.number, 2.0)) if isinstance(effect, Grant)]

    assert [grant.lease.request.key for grant in granted] == ["wide"]


def test_who_waits_too_long_or_goes_away_is_forgotten() -> None:
    lender = Lender(cpu=1)
    lender.hold("a", cpu=1)
    lender.ask("b", wait_s=10.0, cpu=1)
    lender.ask("c", wait_s=99.0, cpu=1)

    assert isinstance(lender.handle(TimePassed(10.0))[0], Refuse)
    lender.handle(Withdrawn(3, 11.0))
    assert lender.handle(TimePassed(200.0)) == []


def test_more_than_is_offered_is_refused_at_once_however_long_one_would_wait() -> None:
    (refuse,) = Lender(cpu=2).ask("a", wait_s=inf, cpu=3)

    assert isinstance(refuse, Refuse) and refuse.lacks[0].wanted > refuse.lacks[0].offered


def test_a_lease_with_an_end_is_over_then() -> None:
    lender = Lender(cpu=2)
    (_, grant) = lender.ask("a", lasts_s=30.0, cpu=2)
    assert isinstance(grant, Grant)

    assert lender.handle(TimePassed(30.0)) == [Reclaim(grant.lease)]
    lender.handle(Left(grant.lease.number, Stage.ENDING, 30.1))
    assert lender.handle(Ended(grant.lease.number, 30.2)) == [Erase(grant.lease.number)]


def test_whose_box_is_being_closed_gets_a_new_lease_after_that() -> None:
    lender = Lender(cpu=1)
    old = lender.hold("a", cpu=1)
    lender.handle(Left(old.number, Stage.ENDING, 0.0))
    assert lender.ask("a", 0.1, cpu=1) == [], "it waits though it would not wait in line"

    granted = [effect for effect in lender.handle(Ended(old.number, 0.2)) if isinstance(effect, Grant)]
    assert granted and granted[0].lease.number != old.number
    assert ENDING_S_MAX > 1


def test_each_offer_has_its_own_limit_and_all_of_them_one_together() -> None:
    lender = Lender(cpu=3)
    lender.handle(Offered({"few": amounts(cpu=1), "many": amounts(cpu=3)}, amounts(cpu=3), 0.0))

    def ask(key: str, *offers: str, **wants: int) -> list[Effect]:
        return lender.handle(Asked(hash(key) % 1000 + 100, request(key, inf, offers, **wants), 0.0, 0.0))

    assert any(isinstance(effect, Grant) for effect in ask("a", "few", cpu=1))
    assert isinstance(ask("b", "few", cpu=1)[0], Refuse)
    assert any(isinstance(effect, Grant) for effect in ask("c", "few", "many", cpu=1))
    assert isinstance(ask("d", "many", cpu=2)[0], Refuse), "three are lent in all"
    assert any(isinstance(effect, Grant) for effect in ask("e", "many", cpu=1))


def test_lending_less_takes_nothing_back_and_grants_nothing_more() -> None:
    lender = Lender(cpu=4)
    lease = lender.hold("a", cpu=3)
    lender.handle(Offered({"all": amounts(cpu=2)}, amounts(cpu=2), 0.0))

    assert lender.core.stage(lease.number) is Stage.HELD
    assert isinstance(lender.ask("b", cpu=1)[0], Refuse)


def test_in_line_a_twins_own_requests_go_by_priority_and_pass_nobody_else() -> None:
    lender = Lender(cpu=1)
    held = lender.hold("running", cpu=1)
    for number, (twin, priority) in enumerate([("t", 0), ("other", 0), ("t", 5), ("t", -1)], start=10):
        wanted = replace(request(str(number), cpu=1), twin=TwinId(twin * 64), priority=priority)
        assert lender.handle(Asked(number, wanted, 60.0, 0.0)) == []

    order = []
    for _ in range(4):
        lender.handle(Left(held.number, Stage.ENDING, 1.0))
        (grant,) = [effect for effect in lender.handle(Ended(held.number, 1.0)) if isinstance(effect, Grant)]
        held = grant.lease
        order.append(held.request.key)
    assert order == ["12", "11", "10", "13"]
