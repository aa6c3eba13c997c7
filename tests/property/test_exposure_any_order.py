"""Services exposed, removed, expired and used in any order: nobody holds a connection without a grant for it."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from croft.errors import CroftError
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.overlay.exposure import (
    CONNECTIONS_PER_CONSUMER_MAX,
    Exposure,
    Exposures,
    Grantee,
    GranteeKind,
    TunnelProtocol,
)


@dataclass(frozen=True)
class Guest:
    peer: PeerId
    twin: TwinId
    communities: frozenset[CommunityId]


GUESTS = [Guest(PeerId(name), TwinId(name[0]), frozenset({CommunityId(name[-1])})) for name in ("ax", "ay", "bx")]
GRANTEES = st.sampled_from(
    [
        *(Grantee(GranteeKind.PEER, guest.peer) for guest in GUESTS),
        *(Grantee(GranteeKind.TWIN, twin) for twin in "ab"),
        *(Grantee(GranteeKind.COMMUNITY, community) for community in "xy"),
    ]
)
NAMES = st.sampled_from(["wiki", "chat"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("expose"), NAMES, st.lists(GRANTEES, min_size=1, max_size=3), st.none() | st.integers(1, 20)),
        st.tuples(st.just("connect"), NAMES, st.sampled_from(GUESTS)),
        st.tuples(st.just("remove"), NAMES),
        st.tuples(st.just("wait"), st.integers(1, 10)),
    ),
    max_size=30,
)


def is_granted(exposure: Exposure, guest: Guest) -> bool:
    kinds = {GranteeKind.PEER: {guest.peer}, GranteeKind.TWIN: {guest.twin}, GranteeKind.COMMUNITY: guest.communities}
    return any(grantee.id in kinds[grantee.kind] for grantee in exposure.grantees)


@given(STEPS)
def test_a_connection_lives_only_while_it_is_granted(steps: list[tuple[object, ...]]) -> None:
    core, now = Exposures(), 0.0
    alive: dict[int, tuple[str, Guest]] = {}

    def end(numbers: list[int]) -> None:
        for number in numbers:
            alive.pop(number)
            core.disconnected(number)

    for step in steps:
        match step:
            case ("expose", str(name), list(grantees), lifetime):
                ends_at = now + lifetime if isinstance(lifetime, int) else None
                end(core.expose(Exposure(name, 8000, TunnelProtocol.TCP, tuple(grantees), now, ends_at)))
            case ("connect", str(name), Guest() as guest):
                row = core.rows.get(name)
                try:
                    number, _ = core.connect(guest, name, "tcp", now)
                except CroftError:
                    assert row is None or row.is_over(now) or not is_granted(row, guest)
                else:
                    assert row is not None and is_granted(row, guest)
                    alive[number] = (name, guest)
            case ("remove", str(name)):
                try:
                    end(core.remove(name)[1])
                except CroftError:
                    assert name not in core.rows
            case ("wait", int(seconds)):
                now += seconds
                end(core.expire(now)[1])
        for name, guest in alive.values():
            assert name in core.rows and is_granted(core.rows[name], guest)
        assert sum(core.connections(name) for name in core.rows) == len(alive) <= 3 * CONNECTIONS_PER_CONSUMER_MAX
