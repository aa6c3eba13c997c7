"""Measures the ways between peers, in network namespaces with real NAT: relays, holes, healing. Needs root.

python -m bench.paths [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The labs and the way between two peers are those of the tests; where they are must be known before they are imported.
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "integration")]

from namespaces import Lab, NamespaceHost, Nat, behind, bridged  # noqa: E402
from test_rows_paths import Copy, Net, link, no_packets_between, relay_process, way  # noqa: E402

from bench.figures import report  # noqa: E402
from croft.sim.network import peer_id_of  # noqa: E402
from support import peers  # noqa: E402
from support.peers import until  # noqa: E402
from support.relays import RelayProcess  # noqa: E402

RELAYED_MB = 256
GAPS = 5
KEYS = {"listen": bytes(31) + b"\x01", "dial": bytes(31) + b"\x02"}
PAIRS = (
    (Nat.PORT_RESTRICTED, Nat.PORT_RESTRICTED),
    (Nat.FULL_CONE, Nat.SYMMETRIC),
    (Nat.FULL_CONE, Nat.FULL_CONE),
)
ENDS = """
import asyncio, sys, time
from croft.adapters.iroh_transport import IrohTransport
from croft.ports import RelayAccess
role, key, other, url, size = sys.argv[1], bytes.fromhex(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
async def main():
    transport = await IrohTransport.open(key, [b"croft/bench/1"])
    relay = RelayAccess(url)
    await transport.use_relays([relay])
    while not transport.relays():
        await asyncio.sleep(0.05)
    if role == "listen":
        print("ready", flush=True)
        connection = await transport.accept()
        stream = await connection.accept_stream()
        while await stream.read(1 << 20):
            pass
        await stream.write(b"!")
        await stream.finish()
        await connection.wait_closed()
        return
    connection = await transport.dial(other, [], b"croft/bench/1", 10, [relay])
    stream = await connection.open_stream()
    data = bytes(1 << 20)
    began = time.perf_counter()
    for _ in range(size):
        await stream.write(data)
    await stream.finish()
    assert await stream.read(1) == b"!"
    took_s = time.perf_counter() - began
    print(size * 1.048576 / took_s, connection.route().kind, flush=True)
    await transport.close()
asyncio.run(main())
"""


def processor_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def relayed(lab: Lab) -> dict[str, float]:
    """Two hosts that cannot reach each other but by a relay."""
    left, right, middle = lab.hosts[:3]
    for one, other in ((left, right), (right, left)):
        hook = "type filter hook input priority 0"
        one.rules(f"table ip apart {{\n chain in {{\n{hook}\nip saddr {other.address} drop\n}}\n}}\n")
    relay = RelayProcess(peer_id_of(bytes(31) + b"\x09"), host=middle, address=middle.address)
    try:
        relay.admit(peer_id_of(key) for key in KEYS.values())
        listener = end(right, "listen", relay.url)
        assert listener.stdout is not None and listener.stdout.readline() == "ready\n"
        before = processor_s(relay.process.pid)
        said, _ = end(left, "dial", relay.url).communicate(timeout=120)
        speed, _, kind = said.strip().partition(" ")
        assert kind == "relayed", said
        used_s = processor_s(relay.process.pid) - before
        listener.wait(20)
    finally:
        relay.stop()
        left.no_rules()
        right.no_rules()
    return {"relayed MB/s": float(speed), "relay, CPU-s per GB": used_s / (RELAYED_MB * 1.048576e-3)}


def end(host: NamespaceHost, role: str, url: str) -> subprocess.Popen[str]:
    """One end of the relayed copy."""
    other = peer_id_of(KEYS["listen"])
    return host.start(sys.executable, "-c", ENDS, role, KEYS[role].hex(), other, url, str(RELAYED_MB))


def to_direct(net: Net, rounds: int) -> dict[str, float]:
    """From a daemon that is up again to its direct way through both NATs."""
    figures = {}
    for one, other in PAIRS:
        with behind(net.routers[0], one) as left, behind(net.routers[1], other) as right:
            with net.pair(left[0], right[0]) as (anna, bert):
                until(lambda: link(anna, bert) == link(bert, anna) == "direct", "direct", 30)
                time.sleep(3)
                times = []
                for _ in range(rounds):
                    anna.stop()
                    anna.start()
                    began = time.monotonic()
                    until(lambda: way(anna, bert).link == "direct" and way(anna, bert).address, "direct again", 30)
                    times.append(time.monotonic() - began)
        figures[f"{one.value} to {other.value}: direct after `croft up`, s"] = statistics.median(times)
    return figures


def gaps(net: Net) -> dict[str, float]:
    """How long a copy stands still at most when the direct path dies, and when the relay in use is killed."""
    direct = [gap_without_path(net) for _ in range(GAPS)]
    net.dora.ok("offer", "relay", "800Mbit")
    relayed = [gap_without_relay(net) for _ in range(GAPS)]
    for what, times in (("direct path", direct), ("relay", relayed)):
        print(f"the {what} dies, gaps:", *(f"{gap_s:.2f}" for gap_s in times), flush=True)
    return {
        f"the direct path dies: longest gap of {GAPS}, s": max(direct),
        f"the relay dies: longest gap of {GAPS}, s": max(relayed),
    }


def gap_without_path(net: Net) -> float:
    with behind(net.routers[0]) as left, behind(net.routers[1]) as right, net.pair(left[0], right[0]) as (anna, bert):
        until(lambda: link(anna, bert) == link(bert, anna) == "direct", "direct", 30)
        copy = Copy(anna, bert, parts=80)
        until(lambda: copy.size > 2_000_000, "under way")
        with no_packets_between(net):
            at = copy.size
            until(lambda: copy.size > at + 4_000_000, "going on", 60)
        copy.end()
    return copy.gap_s


def gap_without_relay(net: Net) -> float:
    with (
        behind(net.routers[0], Nat.SYMMETRIC) as left,
        behind(net.routers[1], Nat.SYMMETRIC) as right,
        net.pair(left[0], right[0]) as (anna, bert),
    ):
        until(lambda: len(anna.api.net().relays) == len(bert.api.net().relays) == 2, "two relays")
        until(lambda: link(anna, bert) == "relayed", "relayed", 30)
        copy = Copy(anna, bert, parts=50)
        until(lambda: copy.size > 1_000_000, "under way")
        [used] = [peer for peer in (net.cleo, net.dora) if peer.name == way(anna, bert).relay_by]
        os.kill(relay_process(used), 9)
        copy.end()
    return copy.gap_s


def measure(rounds: int) -> dict[str, float]:
    """Every figure."""
    with bridged(4) as lab, peers.homes() as base:
        figures = relayed(lab)
        cleo, dora = peers.community(base, ["cleo", "dora"], lab.hosts[:2])
        cleo.ok("offer", "relay", "800Mbit")
        until(lambda: dora.api.net().relays, "the offer has spread")
        net = Net(lab, base, cleo, dora)
        return {**figures, **to_direct(net, rounds), **gaps(net)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    figures = measure(options.rounds)
    report(figures, options.json)


if __name__ == "__main__":
    main()
