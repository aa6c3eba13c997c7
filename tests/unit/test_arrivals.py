"""Budgets of connection attempts."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from croft.adapters.arrivals import (
    ADDRESS_BURST,
    ADDRESS_PER_S,
    ADDRESSES_MAX,
    ALL_BURST,
    UNPROVEN_MAX,
    Arrivals,
    Verdict,
    source_of,
)


def welcomed(arrivals: Arrivals, source: str, attempts: int, now: float) -> int:
    verdicts = [arrivals.judge(source, is_proven=True, under_way=0, now=now) for _ in range(attempts)]
    return verdicts.count(Verdict.WELCOME)


def test_one_address_gets_its_burst_and_then_its_share() -> None:
    arrivals = Arrivals(0.0)

    assert welcomed(arrivals, "a", 1000, 0.0) == ADDRESS_BURST
    assert welcomed(arrivals, "a", 1000, 10.0) == 10 * ADDRESS_PER_S


def test_a_flood_from_one_address_takes_nothing_from_another() -> None:
    arrivals = Arrivals(0.0)
    welcomed(arrivals, "flood", 10_000, 0.0)

    assert welcomed(arrivals, "member", 10, 0.0) == 10


def test_a_flood_from_many_addresses_is_bounded_in_all() -> None:
    arrivals = Arrivals(0.0)

    assert sum(welcomed(arrivals, str(number), 10, 0.0) for number in range(1000)) == ALL_BURST


def test_while_many_handshakes_are_under_way_an_address_must_prove_itself() -> None:
    arrivals = Arrivals(0.0)

    assert arrivals.judge("a", is_proven=False, under_way=UNPROVEN_MAX, now=0.0) is Verdict.PROVE
    assert arrivals.judge("a", is_proven=True, under_way=UNPROVEN_MAX, now=0.0) is Verdict.WELCOME
    assert arrivals.judge("a", is_proven=False, under_way=UNPROVEN_MAX - 1, now=0.0) is Verdict.WELCOME


def test_unproven_addresses_take_no_memory_and_no_budget() -> None:
    arrivals = Arrivals(0.0)
    for number in range(1000):
        arrivals.judge(str(number), is_proven=False, under_way=UNPROVEN_MAX, now=0.0)

    assert arrivals.sources == 0
    assert welcomed(arrivals, "member", 1, 0.0) == 1


@given(st.lists(st.tuples(st.integers(0, 9999), st.floats(0, 1e4)), max_size=300))
def test_memory_is_bounded_whatever_comes(attempts: list[tuple[int, float]]) -> None:
    arrivals = Arrivals(0.0)
    for number, now in attempts:
        arrivals.judge(str(number), is_proven=True, under_way=0, now=now)
    for number in range(ADDRESSES_MAX):
        arrivals.judge(f"x{number}", is_proven=True, under_way=0, now=1e4)

    assert arrivals.sources == ADDRESSES_MAX


def test_a_clock_that_goes_back_refills_nothing() -> None:
    arrivals = Arrivals(100.0)
    welcomed(arrivals, "a", ADDRESS_BURST, 100.0)

    assert welcomed(arrivals, "a", 5, 50.0) == 0
    assert welcomed(arrivals, "a", 5, 100.0) == 0


def test_one_subscribers_ipv6_network_counts_as_one_address() -> None:
    assert source_of(ip_address("2001:db8::1")) == source_of(ip_address("2001:db8::ffff:2"))
    assert source_of(ip_address("2001:db8::1")) != source_of(ip_address("2001:db8:0:1::1"))
    assert source_of(ip_address("::ffff:10.0.0.1")) == source_of(ip_address("10.0.0.1")) == "10.0.0.1"
