"""The lab keeps hosts apart, sees what passes and leaves nothing behind; iroh contacts nobody in it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from namespaces import NamespaceHost, alone, bridged, ip

SOURCE = str(Path(__file__).parents[2] / "src")
MARKER = b"a marker that nothing else would send"
LISTEN = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
    listener.bind(("0.0.0.0", 5000))
    print("ready", flush=True)
    print(listener.recv(100).decode(), flush=True)
"""
SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.sendto(sys.argv[2].encode(), (sys.argv[1], 5000))
"""
PEER = """
import asyncio, sys
from croft.adapters.iroh_transport import IrohTransport
async def main():
    transport = await IrohTransport.open(bytes([int(sys.argv[1])]) * 32, [b"croft/test/1"], "0.0.0.0:7117")
    print(transport.peer_id, *transport.addresses(), flush=True)
    if len(sys.argv) == 2:
        connection = await transport.accept()
        stream = await connection.accept_stream()
        await stream.write(b"got: " + await stream.read(1000))
        await stream.finish()
        await connection.wait_closed()
    else:
        connection = await transport.dial(sys.argv[2], sys.argv[3:], b"croft/test/1", 5)
        stream = await connection.open_stream()
        await stream.write(sys.stdin.buffer.readline().strip())
        while part := await stream.read(1000):
            print(part.decode(), flush=True)
    await transport.close()
asyncio.run(main())
"""
ENVIRONMENT = {"PYTHONPATH": SOURCE}


def send(source: NamespaceHost, target: NamespaceHost) -> None:
    source.run(sys.executable, "-c", SEND, target.address, MARKER.decode())


def test_hosts_on_a_bridge_reach_each_other_and_a_capture_sees_it() -> None:
    with bridged(3) as lab:
        listener = lab[1].start(sys.executable, "-c", LISTEN)
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        with lab.capture(lab[1]) as here, lab.capture(lab[2]) as elsewhere:
            send(lab[0], lab[1])
            assert listener.stdout.readline() == MARKER.decode() + "\n"
        assert MARKER in here
        assert MARKER not in elsewhere
        with pytest.raises(RuntimeError, match="nreachable"):
            lab[0].run(sys.executable, "-c", SEND, "192.0.2.1", "out")


def test_rules_drop_what_they_name() -> None:
    with bridged(2) as lab:
        lab[1].rules(
            "table ip lab {\n chain into {\ntype filter hook prerouting priority -300\nudp dport 5000 drop\n}\n}\n"
        )
        listener = lab[1].start(sys.executable, "-c", LISTEN)
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        send(lab[0], lab[1])
        lab[1].no_rules()
        lab[0].run(sys.executable, "-c", SEND, lab[1].address, "second")
        assert listener.stdout.readline() == "second\n"


def test_everything_is_gone_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), bridged(2) as lab:
        process = lab[0].start("sleep", "60")
        raise ZeroDivisionError
    assert process.returncode is not None
    assert f"cr{os.getpid()}" not in ip("netns", "list")


def talk(lab_listener: NamespaceHost, lab_dialler: NamespaceHost, dialler_port: str) -> tuple[str, list[str]]:
    listener = lab_listener.start(sys.executable, "-c", PEER, "1", environment=ENVIRONMENT)
    assert listener.stdout is not None
    peer, *addresses = listener.stdout.readline().split()
    program = PEER.replace("0.0.0.0:7117", f"0.0.0.0:{dialler_port}")
    dialler = lab_dialler.start(sys.executable, "-c", program, "2", peer, *addresses, environment=ENVIRONMENT)
    output, complaint = dialler.communicate(MARKER.decode() + "\n", timeout=20)
    assert dialler.returncode == 0, complaint
    _, complaint = listener.communicate(timeout=10)
    assert listener.returncode == 0, complaint
    return output, addresses


def test_peers_talk_over_the_bridge_and_the_wire_shows_nothing_of_it() -> None:
    with bridged(2) as lab, lab.capture(lab[0]) as capture:
        output, addresses = talk(lab[0], lab[1], "7117")
        assert f"got: {MARKER.decode()}" in output
        assert addresses[0] == f"{lab[0].address}:7117"
        assert addresses[-1] == "127.0.0.1:7117"
    assert capture.frames > 4
    assert MARKER not in capture


def test_peers_find_each_other_on_a_host_with_nothing_but_lo() -> None:
    with alone() as lab, lab.capture(lab[0]) as capture:
        output, addresses = talk(lab[0], lab[0], "7118")
        assert f"got: {MARKER.decode()}" in output
        assert addresses[-1] == "127.0.0.1:7117"
    assert capture.frames > 4
    assert MARKER not in capture
