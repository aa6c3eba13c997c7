"""What a member says of itself from time to time."""

from __future__ import annotations

from random import Random

import pytest

from croft.errors import PeerMisbehaved
from croft.model.ids import CommunityId
from croft.overlay.messages import Load, Presence
from croft.overlay.passport import SEQUENCE_MAX
from croft.overlay.presence import (
    COMMUNITY_DIGITS,
    MACHINE_PACE_S_PER_MEMBER,
    PACE_S_MAX,
    PACE_S_MIN,
    PACE_S_PER_MEMBER,
    PRESENCE_KIND,
    RENEW_AFTER_S,
    Pace,
    Present,
    open_presence,
    sign_presence,
)
from croft.wire.envelope import sign
from support.joining import Somebody

ANNA = Somebody("anna")
HERE, ELSEWHERE = CommunityId("a" * 64), CommunityId("b" * 64)


def test_a_presence_says_what_its_device_said() -> None:
    claim = open_presence(HERE, sign_presence(ANNA.device, HERE, Load(3, 0.5, 0.25), 77))

    assert claim.key == claim.origin == ANNA.peer
    assert claim.sequence == 77
    assert claim.value == Present(ANNA.peer, Load(3, 0.5, 0.25))


@pytest.mark.parametrize(
    "said",
    [
        Presence(ELSEWHERE[:COMMUNITY_DIGITS], 1, 0, 0, 0),
        Presence(HERE[:COMMUNITY_DIGITS], -1, 0, 0, 0),
        Presence(HERE[:COMMUNITY_DIGITS], SEQUENCE_MAX + 1, 0, 0, 0),
        Presence(HERE[:COMMUNITY_DIGITS], 1, -1, 0, 0),
        Presence(HERE[:COMMUNITY_DIGITS], 1, 0, float("nan"), 0),
    ],
)
def test_a_presence_that_cannot_be_is_refused(said: Presence) -> None:
    with pytest.raises(PeerMisbehaved):
        open_presence(HERE, sign(ANNA.device.signer, PRESENCE_KIND, said))


def test_only_what_changed_much_is_said_and_at_a_pace_that_falls_with_the_size() -> None:
    pace = Pace(Random(1))
    assert pace.due(Load(0, 0.1, 0.5), 3, 0, 0.0) == Load(0, 0.1, 0.5)

    assert pace.due(Load(0, 0.2, 0.51), 3, 1, 10.0) is None
    assert pace.due(Load(1, 0.1, 0.5), 3, 1, PACE_S_MIN - 0.5) is None
    assert pace.due(Load(1, 0.1, 0.5), 3, 1, PACE_S_MIN) == Load(1, 0.1, 0.5)
    at = PACE_S_MIN + PACE_S_PER_MEMBER * 100
    assert pace.due(Load(2, 0.1, 0.5), 100, 1, at - 1) is None
    assert pace.due(Load(2, 0.1, 0.5), 100, 1, at) == Load(2, 0.1, 0.5)
    assert pace.due(Load(9, 0.1, 0.5), 1_000_000, 1, at + PACE_S_MAX) == Load(9, 0.1, 0.5)


def test_a_machine_that_is_busy_by_itself_is_told_of_more_rarely() -> None:
    pace = Pace(Random(1))
    pace.due(Load(0, 0.1, 0.5), 50, 0, 0.0)
    at = MACHINE_PACE_S_PER_MEMBER * 50

    assert pace.due(Load(0, 0.9, 0.5), 50, 1, at - 1) is None
    assert pace.due(Load(0, 0.9, 0.5), 50, 1, 2 * at) == Load(0, 0.9, 0.5)


def test_peers_that_fall_idle_together_do_not_all_say_so_at_once() -> None:
    members = 50
    paces = [Pace(Random(number)) for number in range(members)]
    for pace in paces:
        pace.due(Load(0, 1.0, 0.5), members, 0, 0.0)

    at, said = int(MACHINE_PACE_S_PER_MEMBER * members), []
    for now in range(at, 2 * at + 1):
        said.append(sum(pace.due(Load(0, 0.0, 0.5), members, 1, float(now)) is not None for pace in paces))

    assert sum(said) == members
    assert max(sum(said[start : start + 30]) for start in range(len(said))) <= members // 2


def test_whoever_says_nothing_new_still_says_so_now_and_then() -> None:
    pace, load = Pace(Random(1)), Load(0, 0, 0)
    pace.due(load, 3, 0, 0.0)

    assert pace.due(load, 3, 1, RENEW_AFTER_S - 1) is None
    assert pace.due(load, 3, 1, RENEW_AFTER_S) == load


def test_a_doubt_is_answered_once_and_not_faster_than_others_take_it() -> None:
    pace, load = Pace(Random(1)), Load(0, 0, 0)
    pace.due(load, 3, 0, 0.0)
    pace.refute(5)

    assert pace.due(load, 3, 5, 1.0) is None
    assert pace.due(load, 3, 5, PACE_S_MIN) == load
    assert pace.due(load, 3, 6, 10.0) is None, "the word of sequence 6 has answered it"


def test_a_clock_that_is_set_back_does_not_silence_a_peer() -> None:
    pace = Pace(Random(1))
    pace.due(Load(0, 0, 0), 3, 0, 10_000.0)

    assert pace.due(Load(1, 0, 0), 3, 1, 100.0) is None
    assert pace.due(Load(1, 0, 0), 3, 1, 100.0 + PACE_S_MIN) == Load(1, 0, 0)
