"""Services of this machine: for those granted, and for nobody else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from croft.errors import Busy, NotFound, Refused, Usage
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.overlay.exposure import (
    CONNECTIONS_PER_CONSUMER_MAX,
    EXPOSURES_MAX,
    Exposure,
    Exposures,
    Grantee,
    GranteeKind,
    TunnelProtocol,
    default_name,
)

TCP, UDP = TunnelProtocol.TCP, TunnelProtocol.UDP
NOW = 1_000.0


@dataclass(frozen=True)
class Guest:
    peer: PeerId
    twin: TwinId
    communities: frozenset[CommunityId] = frozenset()


BOB = Guest(PeerId("bob-laptop"), TwinId("bob"))
BOBS_PHONE = Guest(PeerId("bob-phone"), TwinId("bob"))
CYD = Guest(PeerId("cyd-desk"), TwinId("cyd"), frozenset({CommunityId("choir")}))
TO_BOB = Grantee(GranteeKind.TWIN, "bob")
TO_LAPTOP = Grantee(GranteeKind.PEER, "bob-laptop")
TO_CHOIR = Grantee(GranteeKind.COMMUNITY, "choir")


def wiki(*grantees: Grantee, port: int = 8000, name: str = "wiki", protocol: TunnelProtocol = TCP) -> Exposure:
    return Exposure(name, port, protocol, grantees or (TO_BOB,), NOW)


def exposures(*rows: Exposure) -> Exposures:
    made = Exposures()
    for row in rows:
        made.expose(row)
    return made


def test_a_service_is_reached_by_its_name_and_by_its_port() -> None:
    core = exposures(wiki())

    assert [core.ask(BOB, service, TCP, NOW).port for service in ("wiki", "8000")] == [8000, 8000]


@pytest.mark.parametrize(
    ("grantee", "let_in"),
    [(TO_BOB, {BOB, BOBS_PHONE}), (TO_LAPTOP, {BOB}), (TO_CHOIR, {CYD})],
    ids=lambda it: it.kind if isinstance(it, Grantee) else "",
)
def test_it_is_for_the_person_the_device_or_the_community_that_it_was_granted(
    grantee: Grantee, let_in: set[Guest]
) -> None:
    core = exposures(wiki(grantee))

    for guest in (BOB, BOBS_PHONE, CYD):
        if guest in let_in:
            core.ask(guest, "wiki", TCP, NOW)
        else:
            with pytest.raises(Refused):
                core.ask(guest, "wiki", TCP, NOW)


def test_one_who_is_not_granted_hears_the_same_as_if_there_were_no_such_service() -> None:
    core = exposures(wiki())

    answers = []
    for known in (core, Exposures()):
        with pytest.raises(Refused) as refused:
            known.ask(CYD, "wiki", TCP, NOW)
        answers.append((refused.value.message, refused.value.remedy))

    assert answers[0] == answers[1]


def test_another_port_of_the_machine_is_not_reached_nor_the_same_port_by_another_protocol() -> None:
    core = exposures(wiki())

    for service, protocol in (("22", TCP), ("8000", UDP), ("", TCP), ("127.0.0.1:22", TCP), ("8000", "icmp")):
        with pytest.raises(Refused):
            core.ask(BOB, service, protocol, NOW)


def test_its_time_passes_and_its_connections_end() -> None:
    core = exposures(replace(wiki(), expires_at=NOW + 10))
    number, _ = core.connect(BOB, "wiki", TCP, NOW + 9)

    assert core.expire(NOW + 9) == ([], [])
    with pytest.raises(Refused):
        core.ask(BOB, "wiki", TCP, NOW + 10)
    over, ended = core.expire(NOW + 10)
    assert [row.name for row in over] == ["wiki"] and ended == [number]
    assert core.all() == []


def test_removing_it_ends_its_connections_and_no_others() -> None:
    core = exposures(wiki(), wiki(name="chat", port=9000))
    number, _ = core.connect(BOB, "wiki", TCP, NOW)
    core.connect(BOB, "chat", TCP, NOW)

    assert core.remove("8000")[1] == [number]
    assert [row.name for row in core.all()] == ["chat"]
    with pytest.raises(NotFound):
        core.remove("wiki")


def test_exposing_it_anew_ends_the_connections_of_those_who_lost_it() -> None:
    core = exposures(wiki(TO_BOB, TO_CHOIR))
    core.connect(BOB, "wiki", TCP, NOW)
    number, _ = core.connect(CYD, "wiki", TCP, NOW)

    assert core.expose(wiki(TO_BOB)) == [number]


def test_one_consumer_cannot_take_all_connections() -> None:
    core = exposures(wiki(TO_BOB, TO_CHOIR))
    numbers = [core.connect(BOB, "wiki", TCP, NOW)[0] for _ in range(CONNECTIONS_PER_CONSUMER_MAX)]

    with pytest.raises(Busy):
        core.connect(BOB, "wiki", TCP, NOW)
    core.connect(CYD, "wiki", TCP, NOW)
    core.disconnected(numbers[0])
    core.connect(BOB, "wiki", TCP, NOW)


def test_what_cannot_be_a_service_is_refused() -> None:
    for bad in (
        wiki(name="Wiki"),
        wiki(name="-"),
        wiki(name=""),
        wiki(name="a" * 33),
        wiki(name="80", port=81),
        wiki(port=0),
        wiki(port=65_536),
        replace(wiki(), grantees=()),
        replace(wiki(), grantees=(TO_BOB,) * 33),
    ):
        with pytest.raises(Usage):
            Exposures().expose(bad)
    core = exposures(*(wiki(name=f"s{number}") for number in range(EXPOSURES_MAX)))
    with pytest.raises(Busy):
        core.expose(wiki(name="one-more"))


def test_ssh_is_called_ssh() -> None:
    core = exposures(wiki(name=default_name(22), port=22))

    assert default_name(8000) == "8000"
    assert core.ask(BOB, "ssh", TCP, NOW).port == core.ask(BOB, "22", TCP, NOW).port == 22


def test_the_refusal_tells_the_owner_what_to_type() -> None:
    wanted = {"8000": "8000", "ssh": "22", "wiki": "PORT --name wiki"}
    for service, command in wanted.items():
        with pytest.raises(Refused) as refused:
            Exposures().ask(BOB, service, TCP, NOW)
        assert f"croft expose {command} --to" in refused.value.remedy
