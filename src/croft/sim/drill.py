"""A drill: a community works through random faults, is healed, and must then be whole with nothing lost.

Started as `python -m croft.sim.drill PEERS SEED MINUTES`; people start it by `croft sim`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from croft.sim.world import World, simulate

HEAL_S_MAX = 180.0
JOB_S_MAX = 3_600.0
TASK_S = 2.0
CALM_S = 1.0, 15.0
FAULT_S = 1.0, 40.0
EPILOGUE_S = 7_200.0
SLOTS = 2
RETURN = "return"
"""Not a fault: somebody who is down starts again."""
FAULTS = "crash", "silent crash", "restart", "partition", "one-way cut", "slow", "dead box", RETURN


@dataclass
class Report:
    """What happened in a drill. Times are virtual."""

    faults: Counter[str] = field(default_factory=Counter)
    tasks: int = 0
    job_s: float = 0.0
    healed_after_s: float = 0.0
    virtual_s: float = 0.0
    done_by: dict[str, int] = field(default_factory=dict)


def task(number: int) -> int:
    """A simulated task; what it returns shows that it was this one."""
    return number * number


task.virtual_s = TASK_S  # type: ignore[attr-defined]  # how tasks declare how long they take


def drill(peers: int, seed: int, minutes: float) -> Report:
    """Runs a drill. Raises what went wrong, with the command that repeats it."""
    report = Report()

    async def story(world: World) -> None:
        names = await world.unite(peers, slots=SLOTS)
        # About half of what the peers could do in that time, were they all well.
        report.tasks = max(10, int(peers * SLOTS * minutes * 60 / TASK_S / 2))
        job = world.submit(names[0], task, range(report.tasks))
        await _trouble(world, Random(f"{seed}/faults"), names[1:], minutes * 60, report.faults)
        await _mend(world, names)
        report.healed_after_s = await world.until(world.disunity, within_s=HEAL_S_MAX)
        async with asyncio.timeout(JOB_S_MAX):
            values = await job.values()
        assert values == [number * number for number in range(report.tasks)], "a task has the result of another"
        report.job_s = job.ended_at - job.started_at
        report.done_by = {name: job.done_by(world[name].peer) for name in names}
        report.virtual_s = world.now

    simulate(
        story,
        seed=seed,
        repeat=f"croft sim --peers {peers} --seed {seed} --minutes {minutes:g}",
        loss=0.01,
        limit_virtual_s=minutes * 60 + EPILOGUE_S,
    )
    return report


async def _trouble(world: World, random: Random, names: list[str], duration_s: float, faults: Counter[str]) -> None:
    """One fault after the other, some of them overlapping, for a while. The job's own machine stays up."""
    ends_at = world.now + duration_s
    while world.now < ends_at:
        await asyncio.sleep(random.uniform(*CALM_S))
        name = random.choice(names)
        lasts_s = random.uniform(*FAULT_S)
        kind = random.choice(FAULTS)
        match kind:
            case "crash" | "silent crash" if world[name].run is not None:
                await world.crash(name, is_loud=kind == "crash")
            case "restart":
                await world.restart(name, port=random.randrange(50_000, 60_000))
            case "partition":
                shuffled = random.sample(list(world.machines), len(world.machines))
                at = random.randrange(1, len(shuffled))
                world.partition(shuffled[:at], shuffled[at:])
                await asyncio.sleep(lasts_s)
                world.heal()
            case "one-way cut":
                world.network.cut([world[name].host], [world[other].host for other in world.machines if other != name])
                await asyncio.sleep(lasts_s)
                world.heal()
            case "slow":
                world[name].sandbox.slowness = random.choice([1.0, 3.0, 30.0])
            case "dead box":
                world[name].sandbox.crash("out of memory")
            case _:
                kind = RETURN
                down = [other for other in names if world[other].run is None]
                if down:
                    await world.start(random.choice(down))
        faults[kind] += 1


async def _mend(world: World, names: list[str]) -> None:
    world.heal()
    for name in names:
        world[name].sandbox.slowness = 1.0
        if world[name].run is None:
            await world.start(name)


def main() -> None:
    """Runs one drill and prints its report, or what went wrong."""
    peers, seed, minutes = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    started = time.monotonic()
    report = drill(peers, seed, minutes)
    del report.faults[RETURN]
    faults = ", ".join(f"{count} × {kind}" for kind, count in sorted(report.faults.items())) or "none"
    lines = [
        f"seed     {seed}",
        f"peers    {peers}, for {report.virtual_s / 60:.1f} min of virtual time in {time.monotonic() - started:.1f} s",
        f"faults   {faults}",
        f"job      {report.tasks} tasks, each recorded once, in {report.job_s:.0f} s",
        "done by  " + ", ".join(f"{name} {count}" for name, count in report.done_by.items()),
        f"healed   one list of members and one link per pair after {report.healed_after_s:.1f} s",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
