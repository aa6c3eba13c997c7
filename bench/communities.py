"""Measures communities: how fast operations are judged, and how fast a large community opens from disk.

    python -m bench.communities [--members N] [--operations N] [--json FILE]

A history of its founder, twenty admins and all members, who act in three partitions that meet now and then: people are
let in, get roles, are removed and let in again. It is opened as the daemon opens it, in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import report
from croft.adapters.sqlite_database import SqliteDatabase
from croft.adapters.system import SystemClock
from croft.identity.grants import found
from croft.identity.keys import SecretKey
from croft.model.ids import CommunityId, TwinId
from croft.twins.community import Community
from croft.twins.community_exchange import Exchange
from croft.twins.community_operation import Signed, open_operation, reopen_operation, write_operation

ADMINS = 20
PARTITIONS = 3
MEET_EVERY = 300
ONE_BY_ONE = 10_000
ROOT, FOUNDER = SecretKey(b"r" * 32), SecretKey(b"f" * 32)
PLACE = CommunityId(ROOT.public)
OWN = TwinId(FOUNDER.public)


def history(members: int, operations: int) -> Iterator[tuple[bytes, Signed]]:
    """Signed operations, parents before children."""
    draw = random.Random(1)
    admins = [SecretKey(draw.randbytes(32)) for _ in range(ADMINS)]
    people = [draw.randbytes(32).hex() for _ in range(members)]
    replicas = [Community(PLACE, OWN) for _ in range(PARTITIONS)]
    signed: dict[bytes, Signed] = {}
    removed: list[list[str]] = [[] for _ in range(PARTITIONS)]
    acts = [("admit", admin.public, f"admin {n}") for n, admin in enumerate(admins)]
    acts += [("role", admin.public, "admin") for admin in admins]
    for count in range(operations):
        at = count % PARTITIONS if count >= len(acts) else 0
        if count <= len(acts) or count % MEET_EVERY == 0:
            for replica in replicas:
                for other in replicas:
                    for one in list(other.lacking(replica.sample(64), other.heads(64))):
                        replica.take(signed[one.id], is_needed=True)
        key = FOUNDER if count < len(acts) else draw.choice(admins[at::PARTITIONS])
        if count < len(acts):
            act, subject, value = acts[count]
        elif (number := count - len(acts)) < members - ADMINS:
            act, subject, value = "admit", people[number], f"member {number}"
        else:
            act, subject = draw.choice(("role", "role", "remove", "admit")), draw.choice(people)
            if act == "admit" and removed[at]:
                subject = removed[at].pop()
            elif act == "remove":
                removed[at].append(subject)
            value = draw.choice(("member", "guest")) if act == "role" else ""
        operation = replicas[at].next_operation(TwinId(key.public), act, subject, value, at=1e9 + count, chain=())
        record = write_operation(key, operation)
        opened = open_operation(record, PLACE)
        signed[opened.id] = opened
        replicas[at].take(opened, is_needed=True)
        yield record, opened


async def write(place: Path, records: list[bytes]) -> None:
    """What a daemon has on disk."""
    database = await SqliteDatabase.open(place)
    rows = [(PLACE, number.to_bytes(8, "big"), record) for number, record in enumerate(records)]
    await database.run(
        lambda db: (
            db.executemany("INSERT INTO community_operation (community, id, record) VALUES (?, ?, ?)", rows).rowcount
        )
    )
    await database.close()


def judge(operations: list[Signed]) -> float:
    """How many operations per second of processor are put in their place and judged, all at once."""
    began = time.process_time()
    known = Community(PLACE, OWN)
    for one in operations:
        known.take(one, is_needed=True)
    known.members()
    return len(operations) / (time.process_time() - began)


def judge_each(operations: list[Signed]) -> float:
    """The same while somebody asks after each of them, as in a daemon that hears of one after the other."""
    began = time.process_time()
    known = Community(PLACE, OWN)
    for one in operations:
        known.take(one, is_needed=True)
        known.role(OWN)
    return len(operations) / (time.process_time() - began)


@dataclass
class _Joined:
    community: CommunityId
    name: str
    chain: list[bytes]


class _Nobody:
    """A peer without links."""

    def __init__(self) -> None:
        self.links = self

    def communities(self) -> list[_Joined]:
        return [_Joined(PLACE, "village", found(ROOT, OWN))]

    def on_up(self, *_: Any) -> None: ...

    on_notice = on_call = on_up


def peak_kib() -> int:
    """The most that this process has held of memory."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


async def opened(place: Path) -> dict[str, float]:
    """Opens it as a daemon does; seconds, and what it took of memory."""
    database = await SqliteDatabase.open(place)
    before = peak_kib()
    began = time.perf_counter()
    exchange = Exchange(OWN, _Nobody(), database, SystemClock())  # type: ignore[arg-type]  # of links it asks no more
    await exchange.load()
    known = exchange.of(PLACE)
    members = len(known.members())
    took = time.perf_counter() - began
    peak = peak_kib()
    await database.close()
    return {
        "s": took,
        "MB": (peak - before) / 1024,
        "resident MB": peak / 1024,
        "members": members,
        "operations": len(known),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--operations", type=int, default=30_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--open", type=Path)
    arguments = parser.parse_args()
    if arguments.open:
        print(json.dumps(asyncio.run(opened(arguments.open))))
        return
    made = list(history(arguments.members, arguments.operations))
    records, signed = [record for record, _ in made], [one for _, one in made]
    began = time.perf_counter()
    for record in records[:3000]:
        reopen_operation(record, PLACE)
    reading = 3000 / (time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "croft.db"
        asyncio.run(write(place, records))
        command = [sys.executable, "-m", "bench.communities", "--open", str(place)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    figures = {
        "operations judged at once/s": judge(signed),
        "operations judged one by one/s": judge_each(signed[:ONE_BY_ONE]),
        "operations read/s": reading,
        "members": told["members"],
        "operations": told["operations"],
        "opened s": told["s"],
        "opened, MB more": told["MB"],
        "opened, resident MB": told["resident MB"],
    }
    report(figures, arguments.json)


if __name__ == "__main__":
    main()
