"""Runs every benchmark in one go and writes docs/benchmarks.md.

python -m bench [--rounds N]
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PLACE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

MAKESPAN_RUNS = "20"
YEAR = ["sim", "storage", "--peers", "500", "--days", "365", "--seed", "7"]
YEAR_PLOT = PLACE.with_name("storage-year.svg")
TO_REACH = {
    "start to first result s": "≤ 0.5 s with running peers",
    "no-op tasks/s, submit": "≥ 25 × Ray, ≥ 3 × ProcessPoolExecutor",
    "10 ms tasks, efficiency": "≥ 0.95 of ideal",
    "one task, p50 ms": "≤ 2 ms",
    "idle, its processes MB": "≤ 160 MB",
    "1 ms tasks, 2 workers, efficiency": "≥ 0.8",
    "10 ms tasks, 2 workers, efficiency": "≥ 0.95",
    "10 ms tasks, 16 workers, efficiency": "≥ 0.93",
    "array of 100 MB as argument s": "≤ 0.8 s",
    "array of 100 MB as result s": "≤ 0.8 s",
    "array of 100 MB to ten tasks s": "≤ 1.1 × one",
    "a worker killed midway, extra time": "≤ 0.1",
    "wheels in the cache: built, s": "≤ 0.3 s",
    "`croft up` to ready s": "≤ 1.5 s",
    "`croft status` s": "≤ 0.2 s",
    "join to first result s": "≤ 10 s",
    "idle peer, share of a core": "≤ 0.01",
    "idle peer, resident MB": "≤ 90 MB",
    "a joiner sees everybody s": "≤ 3 s",
    "idle, bytes/s sent by each peer": "≤ 2,000",
    "idle, share of a core": "≤ 0.01",
    "idle, resident MB": "≤ 90 MB",
    "a key is found s": "≤ 2 s",
    "a death is known to all s": "≤ 15 s",
    "relayed MB/s": "≥ 40 MB/s",
    "the direct path dies: longest gap of 5, s": "≤ 6 s",
    "put, of dd": "≥ 0.6",
    "round trip, median ms": "≤ 3 ms",
    "calls/s, 32 at once": "≥ 800",
    "of the slowest stage": "≤ 1.3",
    "submitter's traffic MB": "≤ 2 MB",
    "operations judged at once/s": "≥ 20,000",
    "opened s": "≤ 2 s",
    "opened, MB more": "≤ 60 MB",
    "1,000,000 shares: start s": "≤ 3 s",
    "1,000,000 shares: resident MB": "≤ 120 MB",
    "a peer that holds them: start s": "≤ 3 s",
    "a peer that holds them: resident MB": "≤ 120 MB",
    "put, of bulk · k/n": "≥ 0.7",
    "put, owner's CPU s/GiB": "≤ 10 s",
    "get, of bulk": "≥ 0.8",
    "get, owner's CPU s/GiB": "≤ 5 s",
    "first bytes, ms": "≤ 50 ms",
    "first run, of restic's speed": "≥ 0.5",
    "first run, of borg's speed": "≥ 0.5",
    "unchanged run, of restic's speed": "≥ 1",
    "unchanged run, of borg's speed": "≥ 1",
    "1 % changed, sent of the first run": "< 0.05",
    "listed by Python, s": "≤ 1 s",
    "one more added, ms": "≤ 50 ms",
    "small files put/s": "≥ 2,000",
    "small files got/s": "≥ 2,000",
    "get, two holders gone, of get": "≥ 0.7",
    "the relay dies: longest gap of 5, s": "≤ 3 s",
    "port-restricted to port-restricted: direct after `croft up`, s": "≤ 1 s",
    "full cone to symmetric: direct after `croft up`, s": "≤ 1 s",
    "full cone to full cone: direct after `croft up`, s": "≤ 1 s",
}


def run(module: str, *arguments: str) -> Any:
    """The figures of one benchmark, which runs in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        print(f"--- {module}", flush=True)
        subprocess.run([sys.executable, "-m", module, "--json", str(path), *arguments], check=True)
        return json.loads(path.read_text(encoding="utf-8"))


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def shown(value: float) -> str:
    if math.isnan(value):
        return "—"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def tasks_text(figures: dict[str, dict[str, float]]) -> str:
    engines = list(figures)
    names = list(figures["Croft"])
    rows = [[name, *(shown(figures[engine][name]) for engine in engines), TO_REACH.get(name, "")] for name in names]
    own = figures["Croft"]["no-op tasks/s, submit"]
    ratios = ", ".join(
        f"{own / figures[engine]['no-op tasks/s, submit']:.1f} × {engine}" for engine in engines if engine != "Croft"
    )
    return table(["", *engines, "to reach"], rows) + f"\nNo-op tasks, submitted one by one: Croft does {ratios}.\n"


def sizes_text(figures: dict[str, dict[str, float]]) -> str:
    engines, names = list(figures), list(figures["Croft"])
    rows = [
        [name, *(shown(figures[engine].get(name, math.nan)) for engine in engines), TO_REACH.get(name, "")]
        for name in names
    ]
    return table(["", *engines, "to reach"], rows)


def rivals_text(figures: dict[str, dict[str, float]]) -> str:
    own = figures["Croft"]
    others = [engine for engine in figures if engine != "Croft"]
    rows = [
        [
            name,
            *(shown(figures[engine][name]) for engine in figures),
            *(shown(own[name] / figures[engine][name]) for engine in others),
        ]
        for name in own
    ]
    return table(["", *figures, *(f"of {engine}" for engine in others)], rows)


def makespan() -> list[dict[str, Any]]:
    """What `croft sim jobs` reports."""
    command = [sys.executable, "-m", "croft.cli.main", "sim", "jobs", "--runs", MAKESPAN_RUNS, "--json"]
    print("--- croft sim jobs", flush=True)
    policies: list[dict[str, Any]] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)[
        "policies"
    ]
    return policies


def makespan_text(rows: list[dict[str, Any]]) -> str:
    return table(
        ["lost a minute", "policy", "median / bound", "95 % / bound", "work in vain"],
        [
            [
                f"{row['lost_per_minute']:.0%}",
                row["policy"],
                f"{row['ratio_median']:.3f}",
                f"{row['ratio_p95']:.3f}",
                f"{row['wasted']:.1%}",
            ]
            for row in rows
        ],
    )


def storage_year() -> dict[str, Any]:
    """What `croft sim storage` reports, and draws."""
    command = [sys.executable, "-m", "croft.cli.main", *YEAR, "--json", "--plot", str(YEAR_PLOT)]
    print("--- croft sim storage", flush=True)
    report: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return report


def storage_year_text(report: dict[str, Any]) -> str:
    stripes, layout = report["stripes"], report["layout"]
    fared = [
        [f"stripes of {layout} lost", f"{report['lost']} of {stripes}", f"{report['lost_untended']} of {stripes}"],
        *(
            [name, f"{report[tended]:.1e}", f"{report[untended]:.1e}" if untended else ""]
            for name, tended, untended in (
                ("cannot be read, of the time", "unreadable", "unreadable_untended"),
                ("the same, while the owner is up", "unreadable_to_owner", ""),
            )
        ),
        ["repair, GB a day per stored GB, in the first quarter", f"{report['traffic_per_gb_day_first']:.3f}", "0"],
        ["the same, afterwards", f"{report['traffic_per_gb_day']:.3f}", "0"],
        ["room at the end, GB per stored GB", f"{report['room_per_gb']:.1f}", f"{report['room_per_gb_of_layout']:.1f}"],
    ]
    chances = [
        [one["layout"], f"{one['uptime']:.0%}", f"{one['expected']:.1e}", f"{one['found']:.1e}"]
        for one in report["chances"]
    ]
    return (
        table(["", "looked after", "not"], fared)
        + "\n"
        + table(["layout", "each up", "cannot be read: the formula", "found"], chances)
    )


def transport_text(report: dict[str, Any]) -> str:
    rows = report["rows"]
    columns = list(rows[0])
    return table(columns, [[shown(v) if isinstance(v, float | int) else str(v) for v in row.values()] for row in rows])


def daemon_text(figures: dict[str, float]) -> str:
    return table(["", "Croft", "to reach"], [[n, shown(v), TO_REACH.get(n, "")] for n, v in figures.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = str(parser.parse_args().rounds)
    daemon = run("bench.daemon", "--rounds", rounds)
    tasks = run("bench.tasks", "--rounds", rounds)
    sizes = run("bench.sizes")
    transport = run("bench.transport", "--rounds", rounds)
    tunnel = run("bench.tunnel", "--rounds", rounds)
    overlay = run("bench.overlay")
    splits = makespan()
    environments = run("bench.environments", "--rounds", rounds)
    paths = run("bench.paths", "--rounds", rounds)
    cluster = run("bench.dask_cluster")
    calls = run("bench.calls", "--rounds", rounds)
    pipelines = run("bench.pipelines")
    values = run("bench.values")
    communities = run("bench.communities")
    chunks = run("bench.chunks", "--rounds", rounds)
    stored = run("bench.storage")
    rivals = run("bench.rivals")
    folder = run("bench.folder")
    year = storage_year()
    backups = run("bench.backup")
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    machine = f"{os.cpu_count()} processors, {system}"
    PLACE.write_text(
        f"""# Benchmarks

Written by `make bench` ({datetime.datetime.now(datetime.UTC):%Y-%m-%d}): everything in one run, on one machine with
{machine}. Trust the ratios more than the absolute figures: rivals ran on the same
work, one after the other. All are medians of {rounds} rounds.

## Tasks

`python -m bench.tasks`. Croft runs as two peers: program → consumer's daemon → iroh → lender's daemon → sandboxed
worker and back. Its start to the first result includes starting two daemons and joining them. The others run two local
workers without a sandbox.

{tasks_text(tasks)}
## Tasks of other sizes

`python -m bench.sizes`: the same engines and peers. An array of 100 MB goes to one task, comes from one, and goes to
ten tasks at once; "—" where an engine lost the work. Of the memory, what the program itself takes is left out.

{sizes_text(sizes)}
## Splitting a bag of tasks

`croft sim jobs --runs 20`, simulated: 10,000 tasks of a second on average over 100 peers of unequal speed (both
lognormal), 20 ms round trip, without losses and with a tenth of the peers lost a minute. The bound is what the speeds
of all that live add up to, or the longest task on the fastest peer. To reach: median 1.07, 95 % 1.12, under 2 % of
work in vain.

{makespan_text(splits)}
## Starting, joining, idling

`python -m bench.daemon`.

{daemon_text(daemon)}
## Environments

`python -m bench.environments`: what an environment of 100 modules adds to the first result in a new box.

{daemon_text(environments)}
## Transport

`python -m bench.transport`: two processes, loopback. A ratio above 1 means that Croft is faster than TCP with TLS; iroh
encrypts in user space and copies more. To reach: bulk at least 150 MB/s.

{transport_text(transport)}
## Tunnels

`python -m bench.tunnel`: a TCP service of one peer, used from another, and the same service through `ssh -L`. To reach:
at least 0.7 of the throughput of one stream of Croft's own, at most 1.5 ms added to a round trip.

{transport_text(tunnel)}
## Paths

`python -m bench.paths`, as root: real daemons in network namespaces with real NAT. A relayed copy runs between two
hosts that cannot reach each other. The relay is a process of Python.

{daemon_text(paths)}
## A community of fifty

`python -m bench.overlay`: fifty daemons on this machine, in a network namespace of their own; one run. What far more
peers would do: [overlay](overlay.md).

{daemon_text(overlay)}
## A Dask cluster

`python -m bench.dask_cluster`: two workers of one thread each, Croft's on two peers in boxes, beside Dask's own local
cluster.

{sizes_text(cluster)}
## Calls of capabilities

`python -m bench.calls`: a function of two numbers, called over loopback. Croft's calls go from the program by two
daemons, encrypted between them, to the function's process, with the signature checked on both sides, consent
and the audit log; gRPC's straight and in the clear; Dask's from the client to an actor of its own local cluster.

{sizes_text(calls)}
## Pipelines

`python -m bench.pipelines`: thirty values of 10 MB through three stages of 0.5 s on three peers. The slowest stage
alone takes 15 s; the submitter's traffic is what its peer says of all its links.

{daemon_text(pipelines)}
## Values between tasks

`python -m bench.values`: a chain of ten tasks, each of which takes the array of 100 MB that the one before has made and
makes another one; on one lender, and from one of two to the other each time. The submitter's traffic is that of both
chains, of 2 GB in all.

{daemon_text(values)}
## Communities

`python -m bench.communities`: a history of 30,000 operations by twenty admins and all members, in three partitions
that meet now and then, judged, and opened from disk as the daemon does it.

{daemon_text(communities)}
## Shares on disk

`python -m bench.chunks FOLDER`: the store in which a holder keeps shares, on the disk of FOLDER, beside
`dd conv=fdatasync` there. All that is put is synced before it is acknowledged. Start and memory
are those of a process that does nothing else, and of a whole peer until its first answer.

{daemon_text(chunks)}
## Stored files

`python -m bench.storage`: files at five peers, any three of which give them back: six daemons on this machine, every
share on disk before it is acknowledged. The bulk stream is what goes through between two of these peers in the same
run.

{daemon_text(stored)}
## Beside scp and Tahoe-LAFS

`python -m bench.rivals`: a file of 1 GiB and 5,000 of 20 KiB. Croft and Tahoe-LAFS keep any three of five shares, each
with five holders on this machine, and Croft's are synced before they count; scp makes one copy, which is not.
Tahoe-LAFS is given 200 of the small files; "—" where it is not installed. To reach: 3 × Tahoe-LAFS on the large file,
100 × on the small ones, and twice scp on those.

{rivals_text(rivals)}
## A folder of 100,000 files

`python -m bench.folder`: an owner and one holder on this machine. A new file is on the holder's disk, and in the list,
before it counts.

{daemon_text(folder)}
## A year among home peers

`croft {" ".join(YEAR)}`, simulated: machines that are up for 75 to 90 % of the time, in sessions of very
unequal length, some of them off by night; they stay for a year and a half on average, and others come. Below it, how
often something cannot be read at a given moment if nobody looks after it and nobody leaves.

{storage_year_text(year)}
![Repair, room and the least margin, day by day](storage-year.svg)

## Backups

`python -m bench.backup`: a made-up source tree backed up to the same five peers, and by restic and borg (zstd level 1)
to a local folder, one after the other. After the second run a line is added to one in a hundred files.

{daemon_text(backups)}""",
        encoding="utf-8",
    )
    print(f"written: {PLACE}")


if __name__ == "__main__":
    main()
