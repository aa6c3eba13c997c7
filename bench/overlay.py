"""Measures what a community of real peers costs: idle traffic, joining, how fast a death and a record get around.

python -m bench.overlay [--json FILE] [--rounds N] [--peers N]

All peers run on this machine, in a network namespace of their own if this process may make one (root), so that
nobody else's packets are counted. `rounds` is taken for uniformity: one round takes minutes, and is one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.daemon import processor_s, resident_mb
from bench.figures import report
from croft.client.local_api import LocalApi
from croft.control.home import Home
from croft.node.launch import running_process, start_in_background, stop

PEERS = 50
AT_ONCE = 4
IDLE_S = 30.0
REST_S = 60.0
WAIT_S_MAX = 120.0
POLL_S = 0.1


def until(condition: Callable[[], bool], what: str) -> float:
    """Waits, and returns for how long."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > WAIT_S_MAX:
            raise TimeoutError(what)
        time.sleep(POLL_S)
    return time.monotonic() - began


def sent_bytes() -> int:
    """What this namespace's loopback interface has carried; sysfs would show that of another namespace."""
    [line] = [line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")]
    return int(line.partition(":")[2].split()[8])


def alive(home: Home) -> int:
    """How many members a peer takes to be alive, itself among them."""
    return sum(peer.link != "offline" for peer in LocalApi(home.control_socket).peers())


def measure(count: int) -> dict[str, float]:
    """Every figure."""
    base = Path(tempfile.mkdtemp(prefix="croft-bench-"))
    homes = [Home.find(base / f"p{number:02}") for number in range(count)]
    flags = {"bind": "127.0.0.1", "lend.cpus": "1"}
    figures: dict[str, float] = {"peers": count}
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda home: start_in_background(home, flags), homes))
            founder = LocalApi(homes[0].control_socket)
            lines = [founder.invite(is_spoken=False).line for _ in homes[1:]]
            list(pool.map(lambda at: LocalApi(homes[at + 1].control_socket).join(lines[at]), range(count - 2)))
            everybody_s = until(lambda: alive(homes[1]) == count - 1, "the members know each other")
        figures["all know all after the last join s"] = everybody_s
        began = time.monotonic()
        LocalApi(homes[-1].control_socket).join(lines[-1])
        until(lambda: alive(homes[-1]) == count, "the last one sees all")
        figures["a joiner sees everybody s"] = time.monotonic() - began
        time.sleep(REST_S)
        processes = [running_process(home) or 0 for home in homes]
        cpu = [processor_s(process) for process in processes]
        before = sent_bytes()
        time.sleep(IDLE_S)
        sent = sent_bytes() - before
        figures["idle, bytes/s sent by each peer"] = sent / IDLE_S / count
        busy = [processor_s(process) - at for process, at in zip(processes, cpu, strict=True)]
        figures["idle, share of a core"] = statistics.median(busy) / IDLE_S
        figures["idle, resident MB"] = statistics.median(resident_mb(process) for process in processes)
        links = [sum(p.link == "direct" for p in LocalApi(home.control_socket).peers()) for home in homes]
        figures["links, mean"] = statistics.mean(links)
        figures["links, most"] = max(links)
        LocalApi(homes[3].control_socket).provide("blob:bench")
        figures["a key is found s"] = LocalApi(homes[-1].control_socket).find_key("blob:bench").took_s
        os.kill(processes[5], signal.SIGKILL)
        others = [home for number, home in enumerate(homes) if number != 5]
        took = until(lambda: all(alive(home) == count - 1 for home in others), "a death is known")
        figures["a death is known to all s"] = took
    finally:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(stop, homes))
        shutil.rmtree(base, ignore_errors=True)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--peers", type=int, default=PEERS)
    parser.add_argument("--inside", action="store_true", help="this is the namespace")
    options = parser.parse_args(arguments)
    if not options.inside and os.geteuid() == 0:
        words = [*sys.argv[1:], "--inside"] if arguments is None else [*arguments, "--inside"]
        script = 'ip link set lo up && exec "$@"'
        command = ["unshare", "-n", "sh", "-c", script, "sh", sys.executable, "-m", "bench.overlay", *words]
        sys.exit(subprocess.run(command, check=False).returncode)
    figures = measure(options.peers)
    report(figures, options.json)


if __name__ == "__main__":
    main()
