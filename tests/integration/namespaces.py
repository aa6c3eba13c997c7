"""Labs of network namespaces: hosts of their own on one bridge, or one host that has nothing but `lo`.

Needs root and `ip`; rules need `nft`. Whatever was made is removed at the end, also after a failure. Names
carry the process id and a number, and each lab has its own wire, so that labs can run side by side.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

CLONE_NEWNET = 0x4000_0000
ETH_P_ALL = 0x0003
PACKET_OUTGOING = 4
SO_RCVBUFFORCE = 33
SOL_PACKET = 263
PACKET_STATISTICS = 6
FRAME_BYTES_MAX = 65_536
CAPTURE_BYTES_MAX = 512 << 20
CAPTURE_BUFFER_BYTES = 32 << 20
COMMAND_S_MAX = 30.0
STOP_S_MAX = 5.0
SUBNETS = 250
ADDRESS_FORMAT = "10.99.{subnet}.{number}"
ADDRESS_FORMAT_BEHIND = "192.168.77.{number}"

_numbers = itertools.count(1)


def check_can_make_namespaces() -> None:
    """Fails with what is missing, if this process may not make network namespaces."""
    assert os.geteuid() == 0, "network namespaces need root: run the tests as root, or in a container that is"
    for program, package in (("ip", "iproute2"), ("nft", "nftables")):
        assert shutil.which(program), f"network namespaces need `{program}`: install {package}"


def ip(*arguments: str) -> str:
    """Runs `ip` and returns what it prints; its complaint is part of the error."""
    return _checked(["ip", *arguments])


def _checked(command: Sequence[str], text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=COMMAND_S_MAX)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class NamespaceHost:
    """A host of a lab. `address` is its IPv4 address on the bridge, or 127.0.0.1 if it has none."""

    name: str
    namespace: str
    address: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs `arguments` on this host."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def run(
        self, *arguments: str, environment: Mapping[str, str] | None = None, timeout_s: float = COMMAND_S_MAX
    ) -> str:
        """Runs a command on this host to its end and returns what it prints. Raises if it fails."""
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, **(environment or {})},
        )
        if done.returncode:
            raise RuntimeError(f"{arguments[0]} on {self.name} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Starts a command on this host; the lab kills it at its end if it is still there."""
        process = subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.processes.append(process)
        return process

    def rules(self, script: str) -> None:
        """Loads an nft script on this host, for instance a table with a chain that drops."""
        _checked(self.command("nft", "-f", "-"), script)

    def no_rules(self) -> None:
        """Forgets all nft rules of this host."""
        _checked(self.command("nft", "flush", "ruleset"))


class Capture:
    """All frames that one interface sees, in both directions, as raw bytes one after the other.

    Raises at the end if the buffer overflowed or the kernel dropped frames: then absence would prove nothing.
    """

    def __init__(self, namespace: str, interface: str) -> None:
        self._socket = _socket_in(namespace)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, CAPTURE_BUFFER_BYTES)
        self._socket.bind((interface, ETH_P_ALL))
        self._socket.settimeout(0.1)
        self._is_over = threading.Event()
        self._is_full = False
        self._thread = threading.Thread(target=self._collect, name=f"capture {interface}", daemon=True)
        self.data = bytearray()
        self.ends: list[int] = []

    @property
    def frames(self) -> int:
        """How many frames were seen."""
        return len(self.ends)

    def each_frame(self) -> Iterator[bytes]:
        """Every frame that was seen, from its Ethernet header on."""
        for start, end in itertools.pairwise([0, *self.ends]):
            yield bytes(self.data[start:end])

    def __enter__(self) -> Capture:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join(STOP_S_MAX)
        dropped = self._dropped()
        self._socket.close()
        if kind is None and (self._is_full or dropped):
            raise RuntimeError(f"the capture is incomplete: {dropped} frames dropped, full: {self._is_full}")

    def __contains__(self, marker: bytes) -> bool:
        return marker in self.data

    def save(self, path: str) -> None:
        """Writes the frames, one after the other, to a file."""
        with open(path, "wb") as file:
            file.write(self.data)

    def _collect(self) -> None:
        # After the end, what the kernel still holds is read too.
        while True:
            try:
                frame, address = self._socket.recvfrom(FRAME_BYTES_MAX)
            except TimeoutError:
                if self._is_over.is_set():
                    return
                continue
            except OSError:
                return
            if address[0] == "lo" and address[2] == PACKET_OUTGOING:
                continue  # the loopback interface shows every frame twice
            if len(self.data) + len(frame) > CAPTURE_BYTES_MAX:
                self._is_full = True
                return
            self.data += frame
            self.ends.append(len(self.data))

    def _dropped(self) -> int:
        counters = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        return int.from_bytes(counters[4:8], "little")


def _socket_in(namespace: str) -> socket.socket:
    """An AF_PACKET socket that lives in `namespace`, made by a thread that enters it and then ends."""
    made: list[socket.socket] = []
    failures: list[OSError] = []

    def enter() -> None:
        library = ctypes.CDLL(None, use_errno=True)
        try:
            with open(f"/run/netns/{namespace}") as file:
                if library.setns(file.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
                made.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return made[0]


class Lab:
    """Hosts, and the bridge that joins them."""

    def __init__(self, hosts: Sequence[NamespaceHost], interface: str) -> None:
        self.hosts = hosts
        self._interface = interface

    def __getitem__(self, number: int) -> NamespaceHost:
        return self.hosts[number]

    def capture(self, host: NamespaceHost, interface: str | None = None) -> Capture:
        """What goes in and out of a host; a context manager."""
        return Capture(host.namespace, interface or self._interface)


@contextlib.contextmanager
def bridged(count: int) -> Iterator[Lab]:
    """`count` hosts on one bridge with a subnet of their own, `lo` up, no way out."""
    assert 1 <= count <= 200
    check_can_make_namespaces()
    prefix = f"cr{os.getpid()}x{next(_numbers)}"
    with contextlib.ExitStack() as cleanup:
        switch = f"{prefix}sw"
        _make(switch, cleanup)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        subnet = (os.getpid() + next(_numbers)) % SUBNETS + 1  # the labs share no wire: a clash does no harm
        hosts = []
        for number in range(1, count + 1):
            namespace = f"{prefix}h{number}"
            _make(namespace, cleanup)
            port = f"p{number}"
            ip("-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
            ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            address = ADDRESS_FORMAT.format(subnet=subnet, number=number)
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", namespace, "link", "set", "eth0", "up")
            hosts.append(_host(f"host{number}", namespace, address, cleanup))
        yield Lab(hosts, "eth0")


@contextlib.contextmanager
def alone() -> Iterator[Lab]:
    """One host that has nothing but `lo`."""
    check_can_make_namespaces()
    with contextlib.ExitStack() as cleanup:
        namespace = f"cr{os.getpid()}x{next(_numbers)}"
        _make(namespace, cleanup)
        yield Lab([_host("alone", namespace, "127.0.0.1", cleanup)], "lo")


class Nat(enum.Enum):
    """What a router does to the ports of those behind it, and whom it lets in."""

    FULL_CONE = "full cone"
    """One outside port for all; whoever sends to it gets in."""
    PORT_RESTRICTED = "port-restricted"
    """One outside port for all; only what was sent to gets in."""
    SYMMETRIC = "symmetric"
    """Another outside port for each that is sent to."""


@contextlib.contextmanager
def behind(router: NamespaceHost, nat: Nat = Nat.PORT_RESTRICTED, count: int = 1) -> Iterator[Lab]:
    """Hosts on one wire whose packets `router` passes on under its own address.

    Behind a full cone only the first host can be dialled, at the router's address and its own port.
    """
    check_can_make_namespaces()
    with contextlib.ExitStack() as cleanup:
        prefix = f"cr{os.getpid()}x{next(_numbers)}"
        inside = f"in{next(_numbers)}"
        ip("-n", router.namespace, "link", "add", inside, "type", "bridge")
        cleanup.callback(ip, "-n", router.namespace, "link", "del", inside)
        outer = ADDRESS_FORMAT_BEHIND.format(number=1)
        ip("-n", router.namespace, "address", "add", f"{outer}/24", "dev", inside)
        ip("-n", router.namespace, "link", "set", inside, "up")
        hosts = []
        for number in range(count):
            # A name of its own: the kernel takes its time to remove the port of a former one.
            namespace, port = f"{prefix}n{number}", f"i{next(_numbers)}"
            _make(namespace, cleanup)
            there = ("type", "veth", "peer", "name", port, "netns", router.namespace)
            ip("-n", namespace, "link", "add", "eth0", *there)
            ip("-n", router.namespace, "link", "set", port, "master", inside, "up")
            inner = ADDRESS_FORMAT_BEHIND.format(number=2 + number)
            ip("-n", namespace, "address", "add", f"{inner}/24", "dev", "eth0")
            ip("-n", namespace, "link", "set", "eth0", "up")
            ip("-n", namespace, "route", "add", "default", "via", outer)
            hosts.append(_host(f"inside{number}", namespace, inner, cleanup))
        router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        router.rules(_nat_rules(nat, hosts[0].address))
        cleanup.callback(router.no_rules)
        yield Lab(hosts, "eth0")


def _nat_rules(nat: Nat, first: str) -> str:
    how = "masquerade random,fully-random" if nat is Nat.SYMMETRIC else "masquerade"
    let_in = f'iifname "eth0" udp dport 1024-65535 dnat to {first}\n' if nat is Nat.FULL_CONE else ""
    return (
        "table ip nat {\n"
        f" chain in {{\ntype nat hook prerouting priority -100\n{let_in}}}\n"
        f' chain out {{\ntype nat hook postrouting priority 100\noifname "eth0" {how}\n}}\n}}\n'
        # The router itself is silent: an answer to an unknown packet would make a punched hole look taken.
        "table ip guard {\n"
        " chain through {\ntype filter hook forward priority 0\nct status dnat accept\n"
        'iifname "eth0" ct state new drop\n}\n'
        ' chain own {\ntype filter hook input priority 0\niifname "eth0" ct state new drop\n}\n}\n'
    )


def _make(namespace: str, cleanup: contextlib.ExitStack) -> None:
    ip("netns", "add", namespace)
    cleanup.callback(ip, "netns", "del", namespace)
    ip("-n", namespace, "link", "set", "lo", "up")


def _host(name: str, namespace: str, address: str, cleanup: contextlib.ExitStack) -> NamespaceHost:
    host = NamespaceHost(name, namespace, address)
    cleanup.callback(_stop, host)
    return host


def _stop(host: NamespaceHost) -> None:
    for process in host.processes:
        if process.poll() is None:
            process.kill()
        process.wait(STOP_S_MAX)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
