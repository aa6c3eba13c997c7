"""The relay's core: who is let in, where frames go, what is counted, and how fast."""

from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from croft.errors import PeerMisbehaved
from croft.identity.keys import SecretKey
from croft.overlay import relay as core
from croft.overlay.relay import Admit, Close, Connected, Effect, Hold, Left, Received, Relay, Tick, Transmit
from croft.overlay.relay_pass import make_pass, open_pass
from croft.overlay.relay_rates import BURST_BYTES, WAIT_S_MAX, Rates, Schedule, wire_bytes

WALL = 1_750_000_000.0
OWN = bytes(31) + b"\x09"
KEYS = {name: SecretKey(bytes([number]) * 32) for number, name in enumerate(("anna", "bert", "cleo", "mallory"), 1)}
CHALLENGE = bytes(range(16))


def key(name: str) -> bytes:
    return bytes.fromhex(KEYS[name].public)


def proof(name: str, challenge: bytes = CHALLENGE) -> bytes:
    message = blake3(challenge, derive_key_context=core.CHALLENGE_CONTEXT).digest()
    return b"\x01" + key(name) + b"\x40" + KEYS[name].signer.sign(message)


def datagram(to: str, payload: bytes = b"packet") -> bytes:
    return b"\x04" + key(to) + b"\x00" + payload


class House:
    """A relay with clients that are numbered as they come."""

    def __init__(self, *members: str, rates: Rates = Rates()) -> None:  # noqa: B008 - immutable
        self.relay = Relay(OWN, rates, 0.0, WALL)
        self.relay.handle(Admit(frozenset(key(name) for name in members)))
        self.count = 0

    def knock(self, bearer: str = "", address: str = "1.2.3.4") -> tuple[int, list[Effect]]:
        self.count += 1
        return self.count, list(self.relay.handle(Connected(self.count, address, bearer, CHALLENGE, 0.0)))

    def enter(self, name: str, bearer: str = "") -> tuple[int, list[Effect]]:
        client, _ = self.knock(bearer)
        return client, self.send(client, proof(name))

    def send(self, client: int, frame: bytes, now: float = 0.0) -> list[Effect]:
        return list(self.relay.handle(Received(client, frame, now)))


def test_a_member_proves_its_key_and_is_confirmed() -> None:
    house = House("anna")

    client, asked = house.knock()

    assert asked == [Transmit(client, b"\x00" + CHALLENGE)]
    assert house.send(client, proof("anna")) == [Transmit(client, b"\x02")]
    assert house.relay.connected == 1


def test_a_stranger_is_denied_with_a_reason() -> None:
    house = House("anna")

    client, effects = house.enter("mallory")

    assert effects == [Transmit(client, b"\x03\x11not a member here"), Close(client, "not a member here")]
    assert house.relay.connected == 0


def test_nobody_gets_in_with_the_key_of_a_member_and_a_signature_of_its_own() -> None:
    house = House("anna")
    client, _ = house.knock()
    forged = b"\x01" + key("anna") + proof("mallory")[33:]

    effects = house.send(client, forged)

    assert effects[-1] == Close(client, "wrong signature")


def test_a_proof_is_good_for_its_own_challenge_only() -> None:
    house = House("anna")
    client, _ = house.knock()

    assert house.send(client, proof("anna", bytes(16)))[-1] == Close(client, "wrong signature")


def test_strangers_that_prove_nothing_are_bounded_by_address_and_in_all_and_by_time() -> None:
    house = House("anna")
    of_one = [house.knock()[1] for _ in range(core.UNPROVEN_PER_ADDRESS_MAX + 1)]
    for number in range(core.UNPROVEN_MAX):
        _, effects = house.knock(address=f"host{number}")

    assert isinstance(of_one[-2][0], Transmit) and isinstance(of_one[-1][0], Close)
    assert isinstance(effects[0], Close)
    closed = house.relay.handle(Tick(core.PROOF_S_MAX + 1, WALL))
    assert len(closed) == core.UNPROVEN_MAX
    assert isinstance(house.knock()[1][0], Transmit)


def test_a_datagram_goes_to_its_receiver_under_the_sender_s_name_and_is_counted() -> None:
    house = House("anna", "bert")
    anna, _ = house.enter("anna")
    bert, _ = house.enter("bert")

    assert house.send(anna, datagram("bert")) == [Transmit(bert, b"\x06" + key("anna") + b"\x00packet")]
    batch = b"\x05" + key("anna") + b"\x00\x04\xb0" + b"x" * 3000
    assert house.send(bert, batch) == [Transmit(anna, b"\x07" + key("bert") + b"\x00\x04\xb0" + b"x" * 3000)]
    usage = house.relay.usage()
    assert (usage[key("anna")].received_bytes, usage[key("anna")].sent_bytes) == (6, 3002)
    assert (usage[key("bert")].received_bytes, usage[key("bert")].sent_bytes) == (3002, 6)


def test_a_datagram_for_somebody_who_is_not_here_is_dropped_and_counted_as_that() -> None:
    house = House("anna", "bert")
    anna, _ = house.enter("anna")

    assert house.send(anna, datagram("bert")) == []
    assert house.relay.usage()[key("anna")].dropped_frames == 1
    assert house.relay.usage()[key("anna")].received_bytes == 0


def test_who_was_sent_to_is_told_when_a_sender_leaves() -> None:
    house = House("anna", "bert")
    anna, _ = house.enter("anna")
    bert, _ = house.enter("bert")
    house.send(anna, datagram("bert"))

    assert house.relay.handle(Left(anna)) == [Transmit(bert, b"\x08" + key("anna"))]


def test_the_same_key_again_takes_the_place_of_the_first() -> None:
    house = House("anna", "bert")
    first, _ = house.enter("anna")
    second, effects = house.enter("anna")
    bert, _ = house.enter("bert")

    assert Transmit(first, core.STATUS_SAME_KEY_ELSEWHERE) in effects
    assert isinstance(effects[-1], Close) and effects[-1].client == first
    assert house.send(bert, datagram("anna"))[0].client == second


def test_a_member_that_is_taken_off_the_list_is_cut_at_once() -> None:
    house = House("anna", "bert")
    anna, _ = house.enter("anna")
    house.enter("bert")

    assert house.relay.handle(Admit(frozenset([key("bert")]))) == [Close(anna, "no longer a member here")]
    assert house.send(anna, datagram("bert")) == []


def test_a_ping_is_answered_and_a_silent_client_is_dropped() -> None:
    house = House("anna")
    anna, _ = house.enter("anna")

    assert house.send(anna, b"\x0912345678", now=40.0) == [Transmit(anna, b"\x0a12345678")]
    pinged = house.relay.handle(Tick(50.0, WALL))
    assert isinstance(pinged[0], Transmit) and pinged[0].frame[0] == core.PING
    assert house.relay.handle(Tick(40.0 + core.SILENCE_S_MAX + 1, WALL)) == [Close(anna, "nothing heard for too long")]


@pytest.mark.parametrize(
    "frame", [b"", b"\x04", b"\x04" + bytes(33), b"\x63nonsense", b"\x04" + bytes(core.FRAME_BYTES_MAX)]
)
def test_a_frame_that_is_none_ends_the_connection(frame: bytes) -> None:
    house = House("anna")
    anna, _ = house.enter("anna")

    assert isinstance(house.send(anna, frame)[-1], Close)


# --- guests ----------------------------------------------------------------------------------------------------------


def test_a_pass_of_a_member_lets_its_bearer_talk_to_that_member_alone() -> None:
    house = House("anna", "bert")
    bearer = make_pass(KEYS["anna"], OWN, "invitation", WALL + 600)
    anna, _ = house.enter("anna")
    bert, _ = house.enter("bert")
    cleo, effects = house.enter("cleo", bearer)

    assert effects == [Transmit(cleo, b"\x02")]
    assert house.send(cleo, datagram("anna"))[0].client == anna
    assert house.send(anna, datagram("cleo"))[0].client == cleo
    assert house.send(cleo, datagram("bert")) == []
    assert house.send(bert, datagram("cleo")) == []
    # What a guest uses is on its host's account.
    assert key("cleo") not in house.relay.usage()
    assert house.relay.usage()[key("anna")].received_bytes == 12


def test_a_pass_is_good_for_the_first_key_that_shows_it_for_its_relay_and_for_its_time() -> None:
    house = House("anna")
    bearer = make_pass(KEYS["anna"], OWN, "invitation", WALL + 600)
    cleo, _ = house.enter("cleo", bearer)

    assert isinstance(house.enter("mallory", bearer)[1][-1], Close)
    assert house.enter("cleo", bearer)[1][0] == Transmit(cleo + 2, b"\x02")
    for worthless in (
        make_pass(KEYS["anna"], bytes(32), "elsewhere", WALL + 600),
        make_pass(KEYS["mallory"], OWN, "of a stranger", WALL + 600),
        make_pass(KEYS["anna"], OWN, "expired", WALL - 1),
        bearer[:-4] + "AAAA",
        "nonsense",
    ):
        assert isinstance(house.enter("bert", worthless)[1][-1], Close)
    assert Close(cleo + 2, "no longer a member here") in house.relay.handle(Tick(1.0, WALL + 601))


def test_a_guest_that_becomes_a_member_stays_and_may_talk_to_all() -> None:
    house = House("anna", "bert")
    house.enter("anna")
    bert, _ = house.enter("bert")
    cleo, _ = house.enter("cleo", make_pass(KEYS["anna"], OWN, "invitation", WALL + 600))

    assert house.relay.handle(Admit(frozenset(map(key, ("anna", "bert", "cleo"))))) == []
    assert house.send(cleo, datagram("bert"))[0].client == bert


def test_a_pass_that_lasts_for_ever_is_none() -> None:
    with pytest.raises(PeerMisbehaved):
        open_pass(make_pass(KEYS["anna"], OWN, "", WALL + 1e9), WALL)


# --- rates -----------------------------------------------------------------------------------------------------------


def passed_bytes(rates: Rates, clients: int, seconds: float, payload: int = 12_000) -> float:
    """What goes out within some time when every client always has something to send."""
    schedule = Schedule(rates, 0.0)
    out = 0.0
    for step in range(int(seconds * 1000)):
        now = step / 1000
        for client in range(clients):
            verdict = schedule.take(bytes([client]), payload, now)
            if not verdict.is_dropped and verdict.at < seconds:
                out += wire_bytes(payload)
    return out


@pytest.mark.parametrize("clients", [1, 3])
def test_the_total_rate_is_kept_and_used_to_the_full(clients: int) -> None:
    passed = passed_bytes(Rates(total=250_000), clients, 10.0)

    assert 2_450_000 < passed < 2_500_000 + BURST_BYTES + 3 * wire_bytes(12_000)


def test_no_client_gets_more_than_its_share() -> None:
    passed = passed_bytes(Rates(total=1_000_000, per_client=100_000), 1, 10.0)

    assert 980_000 < passed < 1_000_000 + BURST_BYTES + 3 * wire_bytes(12_000)


def test_a_client_that_sends_too_fast_is_not_read_from_for_a_while() -> None:
    house = House("anna", "bert", rates=Rates(total=10_000))
    anna, _ = house.enter("anna")
    house.enter("bert")
    effects = [house.send(anna, datagram("bert", bytes(10_000)))[0] for _ in range(20)]

    delays = [effect.at for effect in effects if isinstance(effect, Transmit)]
    held = [effect for effect in effects if isinstance(effect, Hold)]
    assert delays == sorted(delays) and max(delays) <= WAIT_S_MAX
    assert held and all(hold.until > 0 for hold in held)


# --- anything at all -------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 4), st.binary(max_size=120)), max_size=40))
def test_no_bytes_of_strangers_or_members_break_it_or_reach_a_stranger(story: list[tuple[int, bytes]]) -> None:
    house = House("anna", "bert")
    house.enter("anna")
    house.enter("bert")
    stranger, _ = house.knock()
    for client, frame in story:
        for effect in house.send(client, frame):
            # To one who is nobody, nothing but its denial is sent.
            assert effect.client != stranger or isinstance(effect, Close) or effect.frame[0] == core.SERVER_DENIES
