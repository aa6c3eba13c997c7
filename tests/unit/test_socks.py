"""SOCKS5 byte by byte, as RFC 1928 has it."""

from __future__ import annotations

import pytest

from croft.overlay.socks import HANDSHAKE_BYTES_MAX, Connect, Hang, Reply, Send, SocksServer, reply

GREETING = bytes([5, 1, 0])
WELCOME = Send(bytes([5, 0]))


def request(command: int = 1, kind: int = 3, name: bytes = b"bob.croft", port: int = 8000) -> bytes:
    return bytes([5, command, 0, kind, len(name)]) + name + port.to_bytes(2, "big")


def test_a_client_gets_to_a_peer_by_its_name() -> None:
    server = SocksServer()

    assert server.feed(GREETING) == [WELCOME]
    assert server.feed(request()) == [Connect("bob", 8000)]
    assert reply(Reply.SUCCEEDED) == bytes([5, 0, 0, 1, 0, 0, 0, 0, 0, 0])


def test_the_suffix_may_be_left_out_and_early_bytes_are_kept() -> None:
    assert SocksServer().feed(GREETING + request(name=b"old badger") + b"GET /") == [
        WELCOME,
        Connect("old badger", 8000, b"GET /"),
    ]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (request(command=2), Reply.COMMAND_NOT_SUPPORTED),
        (request(command=3), Reply.COMMAND_NOT_SUPPORTED),
        (bytes([5, 1, 0, 1, 10, 0, 0, 1, 0, 80]), Reply.NOT_ALLOWED),
        (bytes([5, 1, 0, 4]) + bytes(16) + bytes([0, 80]), Reply.NOT_ALLOWED),
        (request(kind=9), Reply.ADDRESS_NOT_SUPPORTED),
        (request(name=b""), Reply.ADDRESS_NOT_SUPPORTED),
        (request(name=b"\xff\xfe"), Reply.ADDRESS_NOT_SUPPORTED),
    ],
    ids=["bind", "udp associate", "ipv4", "ipv6", "unknown kind", "no name", "no text"],
)
def test_all_else_is_refused_by_the_code_of_the_rfc(sent: bytes, code: Reply) -> None:
    server = SocksServer()
    server.feed(GREETING)

    answer, hang = server.feed(sent)

    assert answer == Send(reply(code))
    assert isinstance(hang, Hang)
    assert server.feed(request()) == []


def test_a_client_that_wants_a_password_is_turned_away() -> None:
    answer, hang = SocksServer().feed(bytes([5, 2, 1, 2]))

    assert answer == Send(bytes([5, 255]))
    assert isinstance(hang, Hang)


def test_what_is_not_socks5_gets_no_answer() -> None:
    for sent in (b"GET / HTTP/1.1\r\n", bytes([4, 1, 0, 80])):
        [hang] = SocksServer().feed(sent)
        assert isinstance(hang, Hang)


def test_a_handshake_without_an_end_is_cut() -> None:
    server = SocksServer()
    server.feed(GREETING)

    [hang] = server.feed(bytes([5, 1, 0, 3, 255]) + bytes(HANDSHAKE_BYTES_MAX))[-1:]

    assert isinstance(hang, Hang)
