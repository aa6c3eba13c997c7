"""What is kept for others about who has what."""

from __future__ import annotations

import pytest

from croft.errors import PeerMisbehaved
from croft.model.ids import CommunityId, PeerId
from croft.overlay.lookup_messages import Provision
from croft.overlay.providers import (
    KEY_LENGTH_MAX,
    LIFETIME_S,
    PER_KEY_MAX,
    PER_PEER_MAX,
    PROVISION_KIND,
    Provided,
    Providers,
    open_provision,
    sign_provision,
)
from croft.overlay.records import CLOCK_AHEAD_S_MAX
from croft.wire.envelope import sign
from support.joining import Somebody

NOW = 1_700_000_000.0
HERE, ELSEWHERE = CommunityId("a" * 64), CommunityId("b" * 64)
ANNA = Somebody("anna")


def provided(key: str, peer: str = "anna", sequence: float = NOW) -> Provided:
    return Provided(HERE, key, PeerId(peer), int(sequence * 1000), f"{key}/{peer}/{sequence}".encode())


def test_a_provision_says_what_its_device_said() -> None:
    record = sign_provision(ANNA.device, HERE, "blob:x", int(NOW * 1000))

    assert open_provision(HERE, record, NOW) == Provided(HERE, "blob:x", ANNA.peer, int(NOW * 1000), record)


@pytest.mark.parametrize(
    "said",
    [
        Provision(ELSEWHERE, "k", int(NOW * 1000)),
        Provision(HERE, "", int(NOW * 1000)),
        Provision(HERE, "k" * (KEY_LENGTH_MAX + 1), int(NOW * 1000)),
        Provision(HERE, "\x1b[2J", int(NOW * 1000)),
        Provision(HERE, "k", -1),
        Provision(HERE, "k", int((NOW - LIFETIME_S - 1) * 1000)),
        Provision(HERE, "k", int((NOW + CLOCK_AHEAD_S_MAX + 1) * 1000)),
        Provision(HERE, "k", 1 << 62),
    ],
)
def test_a_provision_that_cannot_be_or_is_not_of_the_present_is_refused(said: Provision) -> None:
    with pytest.raises(PeerMisbehaved):
        open_provision(HERE, sign(ANNA.device.signer, PROVISION_KIND, said), NOW)


def test_the_newest_statement_of_each_peer_is_kept_until_it_expires() -> None:
    kept = Providers()
    kept.keep(provided("x", "anna", NOW))
    kept.keep(provided("x", "anna", NOW - 10))
    kept.keep(provided("x", "bo", NOW + 5))

    assert [p.peer for p in kept.of(HERE, "x", NOW)] == ["bo", "anna"]
    assert kept.of(ELSEWHERE, "x", NOW) == kept.of(HERE, "y", NOW) == []
    assert [p.peer for p in kept.of(HERE, "x", NOW + LIFETIME_S + 1)] == ["bo"]
    kept.expire(NOW + LIFETIME_S + 6)
    assert len(kept) == 0


def test_what_is_kept_is_bounded_per_key_and_per_peer() -> None:
    kept = Providers()

    assert sum(kept.keep(provided("x", f"p{n}")) for n in range(PER_KEY_MAX + 10)) == PER_KEY_MAX
    assert sum(kept.keep(provided(f"k{n}", "mallory")) for n in range(PER_PEER_MAX + 10)) == PER_PEER_MAX
    assert kept.keep(provided("y", "anna")), "one peer's many statements keep out nobody else's"
