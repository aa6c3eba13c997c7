"""Rows of the feature table about services and people, each shown by real daemons on machines of their own.

The machines are network namespaces with real interfaces between them. A test's docstring names its row.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespaces import Lab, NamespaceHost, behind, bridged

from support import peers, ssh_server
from support.peers import RealPeer, two_lines, until

SERVICE_PORT = 8000
DATAGRAM_PORT = 5300
ECHO_DATAGRAMS = """
import socket, sys
service = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
service.bind(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
    datagram, sender = service.recvfrom(65535)
    service.sendto(datagram.upper(), sender)
"""
ASK_BY_DATAGRAM = """
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(1)
for _ in range(10):
    client.sendto(sys.argv[2].encode(), ("127.0.0.1", int(sys.argv[1])))
    try:
        print(client.recv(65535).decode())
        break
    except TimeoutError:
        continue
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with peers.homes() as base:
        yield base


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Five machines on one wire."""
    with bridged(5) as made:
        yield made


@pytest.fixture(autouse=True)
def quiet(lab: Lab) -> Iterator[None]:
    """What a test starts on a machine ends with it: the next one needs the ports."""
    yield
    for host in lab.hosts:
        for process in host.processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def tunnel(peer: RealPeer, *arguments: str) -> Iterator[int]:
    """`croft tunnel ARGUMENTS` while the block lasts; its local port."""
    process = peer.begin("tunnel", *arguments, "--json")
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield json.loads(line)["port"]
    finally:
        process.terminate()
        process.communicate()


def serve_folder(host: NamespaceHost, folder: Path, port: int) -> subprocess.Popen[str]:
    """A web server on a machine's loopback interface alone."""
    server = host.start(
        sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)
    )
    until(lambda: fetch(host, f"http://127.0.0.1:{port}/") is not None, "the web server answers")
    return server


def fetch(host: NamespaceHost, *arguments: str) -> bytes | None:
    """What curl gets on a machine; None if it gets nothing."""
    command = host.command("curl", "--silent", "--fail", "--max-time", "20", *arguments)
    done = subprocess.run(command, capture_output=True, timeout=30)
    return done.stdout if done.returncode == 0 else None


# --- C5: a service by its name ---------------------------------------------------------------------------------------


def test_a_web_server_behind_a_nat_is_reached_by_name_and_by_those_granted_alone(lab: Lab, folder: Path) -> None:
    """C5: http.server on NAT'd B's 127.0.0.1; `croft tunnel b:8000` on A: curl ok; a peer without grant refused."""
    page = secrets.token_bytes(3 << 20)
    (folder / "www").mkdir()
    (folder / "www" / "page").write_bytes(page)
    ada, cyd = (peers.make(folder, name, host) for name, host in zip(("ada", "cyd"), lab.hosts, strict=False))
    with behind(lab[4]) as inside:
        bob = peers.make(folder, "bob", inside[0])
        for peer in (ada, cyd, bob):
            peer.start()
        for newcomer in (cyd, bob):
            newcomer.api.join(ada.api.invite(is_spoken=False).line)
        peers.await_links([ada, bob])
        serve_folder(inside[0], folder / "www", SERVICE_PORT)

        unknown = ada.croft("tunnel", f"bob:{SERVICE_PORT}")
        bob.ok("expose", str(SERVICE_PORT), "--name", "wiki", "--to", "ada")
        with tunnel(ada, "bob:wiki") as port:
            got = fetch(lab[0], f"http://127.0.0.1:{port}/page")
        with tunnel(ada, "--socks", "1080"):
            proxied = fetch(lab[0], "--socks5-hostname", "127.0.0.1:1080", f"http://bob.croft:{SERVICE_PORT}/page")
            elsewhere = fetch(lab[0], "--socks5", "127.0.0.1:1080", f"http://127.0.0.1:{SERVICE_PORT}/page")
            other_port = fetch(lab[0], "--socks5-hostname", "127.0.0.1:1080", "http://bob.croft:22/")
        bob.stop()
        bob.start()
        peers.await_links([ada, bob])
        with tunnel(ada, f"bob:{SERVICE_PORT}") as port:
            after_restart = fetch(lab[0], f"http://127.0.0.1:{port}/page")
            bob.ok("expose", "remove", "wiki")
            removed = fetch(lab[0], f"http://127.0.0.1:{port}/page")
        bob.stop()

    assert digest(got) == digest(proxied) == digest(after_restart) == digest(page)
    assert elsewhere is None and other_port is None and removed is None
    assert unknown.returncode == 5
    said, remedy = two_lines(unknown)
    assert "bob" in said and str(SERVICE_PORT) in said and f"croft expose {SERVICE_PORT} --to" in remedy


def test_a_peer_without_a_grant_is_refused_and_datagrams_get_through(lab: Lab, folder: Path) -> None:
    """C5: exposed to one peer, refused to another; a UDP service by its name; nothing else of the machine."""
    ada, bob, cyd = peers.community(folder, ["ada", "bob", "cyd"], lab.hosts[:3])
    echo = lab[1].start(sys.executable, "-c", ECHO_DATAGRAMS, str(DATAGRAM_PORT))
    assert echo.stdout is not None and echo.stdout.readline() == "ready\n"
    bob.ok("expose", f"{DATAGRAM_PORT}/udp", "--name", "echo", "--to", "ada", "--for", "1h")

    refused = [cyd.croft("tunnel", f"bob:{service}", "--udp") for service in ("echo", str(DATAGRAM_PORT))]
    with tunnel(ada, "bob:echo", "--udp") as port:
        answer = lab[0].run(sys.executable, "-c", ASK_BY_DATAGRAM, str(port), "hello from ada")
    shown = bob.json("expose", "list")["exposures"]

    assert answer == "HELLO FROM ADA\n"
    assert [ended.returncode for ended in refused] == [5, 5]
    assert all("bob" in two_lines(ended)[0] for ended in refused)
    assert [(one["name"], one["port"], one["protocol"], one["to"]) for one in shown] == [
        ("echo", DATAGRAM_PORT, "udp", ["ada"])
    ]
    assert "refused cyd" in bob.log()


def test_a_shell_on_a_peer_behind_a_nat_by_its_name_for_those_granted_alone(lab: Lab, folder: Path) -> None:
    """C5: sshd on NAT'd B's 127.0.0.1; `croft ssh b`: input, output and exit code pass; without grant refused."""
    ada, cyd = peers.community(folder, ["ada", "cyd"], lab.hosts[:2])
    keys = folder / "keys"
    keys.mkdir()
    ssh_server.make_keys(keys)
    with behind(lab[4]) as inside:
        bob = peers.make(folder, "bob", inside[0]).start()
        bob.api.join(ada.api.invite(is_spoken=False).line)
        peers.await_links([ada, bob])
        inside[0].start(*ssh_server.server_command(keys, SERVICE_PORT))
        bob.ok("expose", str(SERVICE_PORT), "--name", "ssh", "--to", "ada")
        words = ["ssh", "root@bob", *ssh_server.client_options(keys)]
        until(lambda: ada.croft(*words, "true").returncode == 0, "sshd answers")

        shell = ada.croft(*words, "ip -4 -br address; tr a-z A-Z; exit 7", input="hello from ada")
        refused = cyd.croft(*words, "true")
        bob.ok("expose", "remove", "ssh")
        removed = ada.croft(*words, "true")
        bob.stop()

    assert shell.returncode == 7, shell.stderr
    assert inside[0].address in shell.stdout and shell.stdout.endswith("HELLO FROM ADA")
    assert refused.returncode == removed.returncode == 5
    for ended in (refused, removed):
        said, remedy = two_lines(ended)
        assert "bob" in said and "croft expose" in remedy
    assert "croft-" in (keys / "known").read_text(), "the host is known by its peer's id, wherever it is"


# --- A3: petnames, trust and block -----------------------------------------------------------------------------------


def test_a_blocked_person_gets_nothing_until_unblocked_and_names_are_the_owners(lab: Lab, folder: Path) -> None:
    """A3: A blocks B: B's job and tunnel refused with the reason; unblock restores; others unaffected; petnames."""
    ada, bob, cyd, dot = peers.community(folder, ["ada", "bob", "cyd", "dot"], lab.hosts[:4])
    serve_folder(lab[0], folder, SERVICE_PORT)
    ada.ok("contacts", "add", "bob", "my brother")
    ada.ok("contacts", "trust", "dot", "none")
    ada.ok("expose", str(SERVICE_PORT), "--to", "my brother")
    renamed = {peer["name"]: peer["self_name"] for peer in ada.json("peers")["peers"]}
    line = ada.api.invite(is_spoken=False).line
    assert bob.ok("run", "--on", "ada", "--", "echo", "before") == "before\n"
    with tunnel(bob, f"ada:{SERVICE_PORT}") as port:
        assert fetch(lab[1], f"http://127.0.0.1:{port}/")
        long_job = bob.begin("run", "--on", "ada", "--", "sleep", "60")
        until(lambda: not ada.is_idle(), "bob's command runs at ada")

        ada.ok("contacts", "block", "my brother")

        until(ada.is_idle, "bob's command is gone from ada", 5.0)
        assert fetch(lab[1], f"http://127.0.0.1:{port}/") is None
    refused_job, distrusted_job = (peer.begin("run", "--on", "ada", "--", "true") for peer in (bob, dot))
    refused = [bob.croft("tunnel", f"ada:{SERVICE_PORT}"), bob.croft("join", line)]
    others = cyd.ok("run", "--on", "ada", "--", "echo", "cyd at ada")
    from_cyd = cyd.ok("run", "--on", "bob", "--", "echo", "cyd at bob")
    listed = ada.json("contacts")["contacts"]
    (_, why_not), (_, why_not_dot) = refused_job.communicate(), distrusted_job.communicate()
    ada.ok("contacts", "unblock", "my brother")
    peers.until(lambda: "ada" in peers.linked(bob), "bob is linked to ada again", 10.0)
    after = bob.ok("run", "--on", "ada", "--", "echo", "after")
    long_job.communicate()

    assert renamed == {"ada": "ada", "my brother": "bob", "cyd": "cyd", "dot": "dot"}
    assert [(one["petname"], one["trust"], one["is_blocked"]) for one in listed] == [
        ("dot", "none", False),
        ("my brother", "normal", True),
    ]
    assert refused_job.returncode != 0 and "blocked you" in why_not
    assert distrusted_job.returncode != 0 and "trusts you with nothing" in why_not_dot
    assert all(ended.returncode != 0 and "blocked you" in ended.stderr for ended in refused), refused
    assert long_job.returncode != 0
    assert (others, from_cyd, after) == ("cyd at ada\n", "cyd at bob\n", "after\n")


def test_two_peers_of_one_name_are_told_apart(lab: Lab, folder: Path) -> None:
    """A3: two call themselves `twin`; an ambiguous name is an error that lists both; a petname settles it."""
    ada = peers.make(folder, "ada", lab[0]).start()
    others = [
        peers.make(folder, name, host, settings={"name": "twin"})
        for name, host in zip("xy", lab.hosts[1:3], strict=True)
    ]
    for other in others:
        other.start("--join", ada.api.invite(is_spoken=False).line)
    until(lambda: [peer.link for peer in ada.api.peers()] == ["self", "direct", "direct"], "ada is linked to both")
    one, two = (peer for peer in ada.api.peers() if not peer.is_self)
    ambiguous = ada.croft("tunnel", "twin:80")
    ada.ok("contacts", "add", one.name, "uno")
    settled = ada.croft("tunnel", "twin:80")
    names = {peer.name for peer in ada.api.peers()}

    assert one.name != two.name and all(peer.name.startswith("twin~") for peer in (one, two))
    assert ambiguous.returncode == 2
    assert all(peer.name in two_lines(ambiguous)[0] for peer in (one, two))
    assert names == {"ada", "uno", "twin"}
    assert settled.returncode == 5, "it is one peer now, which exposes nothing"


# --- A5: several devices, and a lost one revoked ----------------------------------------------------------------------

REVOKED_S_MAX = 10.0


def test_a_revoked_device_is_refused_everywhere_within_ten_seconds(lab: Lab, folder: Path) -> None:
    """A5: revoke D2 on D1: a third peer refuses the running D2 within ten seconds, and after restarts of both."""
    desk, cyd = peers.community(folder, ["desk", "cyd"], lab.hosts[:2])
    desk.ok("contacts", "add", "cyd", "dear cyd")
    phone = peers.make(folder, "phone", lab[2]).start("--join", desk.json("device", "add")["line"])
    peers.await_links([desk, cyd, phone])
    assert phone.api.status().twin == desk.api.status().twin
    assert not (phone.home / "keys" / "certificate").stat().st_mode & 0o077
    listed = {device["name"]: device["holds_key"] for device in desk.json("device", "list")["devices"]}
    noted = [contact["petname"] for contact in phone.json("contacts")["contacts"]]
    answer = phone.ok("run", "--on", "dear cyd", "--", "echo", "from my phone")
    no_key = [phone.croft("invite"), phone.croft("device", "add"), phone.croft("device", "revoke", "desk")]
    running = phone.begin("run", "--on", "dear cyd", "--", "sleep", "60")
    until(lambda: not cyd.is_idle(), "the phone's command runs at cyd")

    desk.ok("device", "revoke", "phone")

    until(lambda: "phone" not in peers.linked(cyd) and cyd.is_idle(), "cyd has cut the phone", REVOKED_S_MAX)
    cyd.stop()
    phone.stop()
    for peer in (cyd, phone):
        peer.start()
    peers.await_links([desk, cyd])
    until(lambda: "was revoked by its owner" in cyd.log().rpartition("runs in")[2], "cyd refuses the phone again")
    running.communicate()

    assert listed == {"desk": True, "phone": None}
    assert noted == ["dear cyd"]
    assert answer == "from my phone\n"
    for ended in no_key:
        assert ended.returncode == 5 and "does not hold your key" in two_lines(ended)[0]
    assert running.returncode != 0
    assert [device["link"] for device in desk.json("device", "list")["devices"]] == ["self", "revoked"]
    assert {peer["name"] for peer in cyd.json("peers")["peers"]} == {"cyd", "desk"}


# --- C7: rate limits -------------------------------------------------------------------------------------------------

LIMIT_MBIT = 5.0
COUNTED_MBIT_MAX = 5.3
WINDOW_S = 3.0
SINK = """
import socket, sys, threading
service = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
    client, _ = service.accept()
    threading.Thread(target=lambda: [None for _ in iter(lambda: client.recv(65536), b"")], daemon=True).start()
"""
POUR = """
import socket, sys, time
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
began, sent = None, 0
while True:
    sent += client.send(bytes(16384))
    now = time.monotonic()
    if began is None and sent > 1 << 20:  # what the buffers on the way take does not count
        began, sent = now, 0
    if began is not None and now - began > float(sys.argv[2]):
        print(sent * 8 / 1e6 / (now - began))
        break
"""


def sent_bytes(host: NamespaceHost) -> int:
    """What a machine's interface has sent, headers and all."""
    return int(host.run("cat", "/sys/class/net/eth0/statistics/tx_bytes"))


def test_a_limit_holds_on_the_wire_for_all_peers_together_and_own_traffic_goes_first(lab: Lab, folder: Path) -> None:
    """C7: limit 5 Mbit; 3 peers pull: veth counters <= 5.3 Mbit, fairly shared; then own traffic gets nearly all."""
    ada, *others = peers.community(folder, ["ada", "bob", "cyd", "dot"], lab.hosts[:4])
    (folder / "www").mkdir()
    (folder / "www" / "big").write_bytes(secrets.token_bytes(32 << 20))
    serve_folder(lab[0], folder / "www", SERVICE_PORT)
    for other in others:
        ada.ok("expose", str(SERVICE_PORT), "--name", other.name, "--to", other.name)
    sink = lab[1].start(sys.executable, "-c", SINK, "9000")
    assert sink.stdout is not None and sink.stdout.readline() == "ready\n"
    others[0].ok("expose", "9000", "--to", "ada")
    ada.ok("limit", "set", f"{LIMIT_MBIT:g}Mbit", "--up")
    with contextlib.ExitStack() as open_tunnels:
        pulls = []
        for other, host in zip(others, lab.hosts[1:4], strict=True):
            port = open_tunnels.enter_context(tunnel(other, f"ada:{other.name}"))
            pulls.append(
                host.start("curl", "--silent", "-o", str(folder / other.name / "got"), f"127.0.0.1:{port}/big")
            )
        time.sleep(1.0)
        before, began = sent_bytes(lab[0]), time.monotonic()
        time.sleep(WINDOW_S)
        took_s = time.monotonic() - began
        mbit = (sent_bytes(lab[0]) - before) * 8 / 1e6 / took_s
        got = [(folder / other.name / "got").stat().st_size for other in others]
        port = open_tunnels.enter_context(tunnel(ada, "bob:9000"))
        own_mbit = float(lab[0].run(sys.executable, "-c", POUR, str(port), str(WINDOW_S)))
        assert all(pull.poll() is None for pull in pulls), "they are pulling still"
        for pull in pulls:
            pull.kill()
    shown = ada.json("limit", "list")["limits"]
    ada.ok("limit", "remove", str(shown[0]["number"]))

    assert 0.9 * LIMIT_MBIT <= mbit <= COUNTED_MBIT_MAX
    assert min(got) > 0.6 * max(got)
    assert own_mbit > 0.75 * LIMIT_MBIT
    assert [(one["rate"], one["direction"]) for one in shown] == [(LIMIT_MBIT * 1e6 / 8, "up")]
    assert ada.api.limits() == []


# --- B3: found on the local network ----------------------------------------------------------------------------------

FOUND_S_MAX = 5.0


def move(host: NamespaceHost, address: str) -> None:
    """Gives a machine another address in the place of its own."""
    host.run("ip", "address", "flush", "dev", "eth0", "scope", "global")
    host.run("ip", "address", "add", f"{address}/24", "dev", "eth0")


def test_members_find_each_other_on_a_lan_although_both_have_moved_and_a_stranger_reads_nothing(folder: Path) -> None:
    """B3: two netns on one bridge, no default route, no address right: found <= 5 s; a stranger there reads nothing."""
    with bridged(3) as lan:
        ada, bob = peers.community(folder, ["ada-lovelace", "bob-beamon"], lan.hosts[:2])
        eve = peers.make(folder, "eve", lan[2]).start()
        told = [ada.api.status(), bob.api.status()]
        ada.stop()
        bob.stop()
        for number, host in enumerate(lan.hosts[:2], 1):
            move(host, f"10.98.7.{number}")
        with lan.capture(lan[2]) as seen:
            ada.start()
            bob.start()
            began = time.monotonic()
            peers.await_links([ada, bob])
            took_s = time.monotonic() - began
            time.sleep(1.0)
        known_to_eve = eve.api.peers()

    assert took_s < FOUND_S_MAX
    assert "on the local network" in ada.log() + bob.log()
    assert b"_croft" in seen, "what is said to everybody was captured"
    secrets_of_both = [
        word
        for status in told
        for word in (status.name, status.peer, status.twin, status.communities[0].community, status.communities[0].name)
    ]
    assert [word for word in secrets_of_both if word.encode() in seen] == []
    assert [word for word in secrets_of_both if len(word) == 64 and bytes.fromhex(word) in seen] == []
    assert [peer.name for peer in known_to_eve] == ["eve"]


def digest(data: bytes | None) -> str:
    assert data is not None
    return hashlib.sha256(data).hexdigest()
