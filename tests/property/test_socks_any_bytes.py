"""SOCKS clients that send anything, in any pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from croft.overlay.socks import Connect, Effect, Hang, Send, SocksServer

HANDSHAKES = st.builds(
    lambda methods, name, port: (
        bytes([5, len(methods)]) + methods + bytes([5, 1, 0, 3, len(name)]) + name + port.to_bytes(2, "big")
    ),
    st.binary(max_size=5).map(lambda methods: methods + bytes([0])),
    st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=40).map(str.encode),
    st.integers(1, 65_535),
)


def fed(pieces: list[bytes]) -> list[Effect]:
    server = SocksServer()
    return [effect for piece in pieces for effect in server.feed(piece)]


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_no_bytes_break_it_and_a_peer_is_asked_for_at_most_once(pieces: list[bytes]) -> None:
    effects = fed(pieces)

    assert sum(isinstance(effect, Connect | Hang) for effect in effects) <= 1
    assert not any(isinstance(effect, Send) for effect in effects[3:])


@given(HANDSHAKES, st.data())
def test_it_does_not_matter_in_which_pieces_a_handshake_comes(handshake: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(handshake)), max_size=6)))
    pieces = [handshake[start:end] for start, end in zip([0, *cuts], [*cuts, len(handshake)], strict=True)]

    assert fed(pieces) == fed([handshake])
    assert isinstance(fed([handshake])[-1], Connect)
