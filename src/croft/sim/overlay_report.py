"""Measures the overlay at scale, on virtual peers, and says what it found.

Started as `python -m croft.sim.overlay_report PEERS SEED`; people start it by `croft sim overlay`.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import sys
import time
import tracemalloc
from dataclasses import dataclass
from random import Random

from croft.overlay.lookup import Buckets, Contact, place_of
from croft.overlay.membership import Member
from croft.overlay.presence import renew_after_s
from croft.sim.overlay_net import HERE, PRESENCE_BYTES, WORD_BYTES, OverlayNet
from croft.sim.population import Population, search_many

FULL_VIEW_MAX = 1_000
"""Networks of more peers are simulated with a part of all members known to each, as real ones above 4,096."""
CORES_MAX = 10_000
"""So many peers with all their cores; searches alone go on above."""
SETTLE_S = 60.0
IDLE_S = 60.0
SEARCHES = 1_000
SYBILS = 200
SPLIT_PEERS_MAX = 200
SPLIT_S = 60.0
LOSSY_S = 600.0
LOSSY_PEERS_MAX = 200
LOSS = 0.05
LINK_LOSSES_PER_HOUR = 6
"""Of each link, by mere loss of packets: far more often than retransmitting links fall silent."""
DESCRIPTOR_BYTES = 1_500
MEMORY_SAMPLE = 200


@dataclass
class Report:
    """What was found. Times are virtual seconds, bytes those of whole packets."""

    peers: int
    seed: int
    links_mean: float = 0.0
    links_max: int = 0
    neighbours_min: int = 0
    idle_bytes_per_s: float = 0.0
    idle_bytes_per_s_of_100: float = 0.0
    record_everywhere_s: float = 0.0
    record_bytes_per_peer: float = 0.0
    death_known_s: float = 0.0
    false_deaths_of_others: int = 0
    false_deaths_in_loss: int = 0
    link_losses: int = 0
    healed_s: float = 0.0
    lookup_success: float = 0.0
    lookup_hops_mean: float = 0.0
    lookup_hops_max: int = 0
    lookup_asked_mean: float = 0.0
    lookup_success_10_dead: float = 0.0
    lookup_success_30_dead: float = 0.0
    lookup_hops_max_30_dead: int = 0
    lookup_success_besieged: float = 0.0
    memory_bytes_per_peer: int = 0
    took_s: float = 0.0

    def figures(self) -> dict[str, float]:
        """All of them, by name; how long it took is not one."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "took_s"}


def measure(peers: int, seed: int, *, searches: int = SEARCHES, lossy_s: float = LOSSY_S) -> Report:
    """The whole report. Fewer searches and a shorter time of losses make it quicker."""
    started = time.monotonic()
    report = Report(peers, seed)
    _network(report, min(peers, CORES_MAX))
    report.idle_bytes_per_s_of_100 = _idle_of(100, seed)
    _loss(report, min(peers, LOSSY_PEERS_MAX), lossy_s)
    _split(report, min(peers, SPLIT_PEERS_MAX))
    _lookups(report, searches)
    report.memory_bytes_per_peer = memory_per_peer(peers, seed)
    report.took_s = time.monotonic() - started
    return report


def _settled(count: int, seed: int, loss: float = 0.0) -> OverlayNet:
    net = OverlayNet(count, seed, view_max=FULL_VIEW_MAX, loss=loss)
    net.run(SETTLE_S)
    return net


def _idle(net: OverlayNet) -> float:
    """Bytes that each peer sends per second while nothing happens: messages, heartbeats, presences renewed."""
    before, count = sum(peer.sent_bytes for peer in net.peers), len(net.peers)
    net.run(IDLE_S)
    said = (sum(peer.sent_bytes for peer in net.peers) - before) / count / IDLE_S
    return said + net.heartbeat_bytes_per_s()


def _presences(record_bytes_per_peer: float, known: int) -> float:
    """What renewing everybody's presence costs each peer, by what spreading one record costs it."""
    return record_bytes_per_peer * PRESENCE_BYTES / WORD_BYTES * known / renew_after_s(known)


def _idle_of(count: int, seed: int) -> float:
    net = _settled(count, seed)
    idle = _idle(net)
    _, cost = _spread(net)
    return idle + _presences(cost, count)


def _spread(net: OverlayNet) -> tuple[float, float]:
    """How long a record takes to everybody, and the bytes it costs each."""
    before, began, count = sum(peer.sent_bytes for peer in net.peers), net.now, len(net.peers)
    record = net.publish(net.random.randrange(count), "news")
    assert net.run(60.0, until=lambda: net.held.get(record, 0) == count), "a record has not reached everybody"
    took_s = net.held_at[record] - began
    net.run(1.0)
    return took_s, (sum(peer.sent_bytes for peer in net.peers) - before) / count


def _network(report: Report, count: int) -> None:
    net = _settled(count, report.seed)
    report.links_mean = sum(len(peer.links) for peer in net.peers) / count
    report.links_max = max(len(peer.links) for peer in net.peers)
    report.neighbours_min = min(len(peer.neighbours.neighbours()) for peer in net.peers)
    idle = _idle(net)
    report.record_everywhere_s, report.record_bytes_per_peer = _spread(net)
    report.idle_bytes_per_s = idle + _presences(report.record_bytes_per_peer, len(net.peers[0].view))
    victim = net.random.randrange(count)
    name, began = net.contacts[victim].peer, net.now
    if count <= FULL_VIEW_MAX:
        witnesses = [peer for peer in net.peers if peer.number != victim]
    else:
        # Above the full view, those who know it and are linked to somebody who was linked to it.
        witnesses = [net.peers[number] for number in net.peers[victim].links if name in net.peers[number].view]
    net.crash(victim)
    assert net.run(60.0, until=lambda: all(p.detector.is_dead(name) for p in witnesses)), "a death is not known"
    report.death_known_s = net.now - began
    net.run(30.0)
    report.false_deaths_of_others = _false_deaths(net)


def _false_deaths(net: OverlayNet) -> int:
    up = {peer.contact.peer for peer in net.peers if peer.is_up}
    return sum(1 for peer in net.peers if peer.is_up for dead in peer.detector.dead() if dead in up)


def _loss(report: Report, count: int, lossy_s: float) -> None:
    """An hour's losses of links in ten minutes, while one in twenty packets is lost."""
    net = _settled(count, report.seed, loss=LOSS)
    random = Random(f"{report.seed}/loss")
    losses = int(sum(len(peer.links) for peer in net.peers) / 2 * LINK_LOSSES_PER_HOUR * lossy_s / LOSSY_S)
    for _ in range(losses):
        net.run(lossy_s / losses)
        peer = random.choice(net.peers)
        if peer.links:
            net.lose_link(peer.number, random.choice(list(peer.links)))
        report.link_losses += 1
        report.false_deaths_in_loss += _false_deaths(net) if report.link_losses % 100 == 0 else 0
    report.false_deaths_in_loss += _false_deaths(net)


def _split(report: Report, count: int) -> None:
    net = _settled(count, report.seed)
    net.split([number % 2 for number in range(count)])
    net.run(SPLIT_S)
    records = [net.publish(number, f"while split {number}") for number in (0, 1)]
    net.run(5.0)
    net.split(None)
    began = net.now

    def is_whole() -> bool:
        return _false_deaths(net) == 0 and all(net.held[record] == count for record in records)

    assert net.run(300.0, until=is_whole, every_s=1.0), "the halves have not healed"
    report.healed_s = net.now - began


def _lookups(report: Report, searches: int) -> None:
    population = Population(report.peers, report.seed)
    keys = [f"key{number}".encode() for number in range(searches)]
    healthy = search_many(population, keys, report.seed)
    report.lookup_success, report.lookup_hops_mean = healthy.share, healthy.hops_mean
    report.lookup_hops_max, report.lookup_asked_mean = healthy.hops_max, healthy.asked_mean
    report.lookup_success_10_dead = search_many(population, keys, report.seed, dead_share=0.1).share
    third = search_many(population, keys, report.seed, dead_share=0.3)
    report.lookup_success_30_dead, report.lookup_hops_max_30_dead = third.share, third.hops_max
    population.besiege(place_of(b"besieged"), SYBILS)
    report.lookup_success_besieged = search_many(population, [b"besieged"] * 100, report.seed).share


def memory_per_peer(peers: int, seed: int) -> int:
    """Bytes that one peer's part of the overlay takes: everybody it knows, with their descriptors, in its buckets."""
    population = Population(peers, seed)
    sample = Random(f"{seed}/memory").sample(population.contacts, min(MEMORY_SAMPLE, peers))
    tables = [population.table(contact) for contact in sample]
    gc.collect()
    tracemalloc.start()
    held = [_remember(contact, table) for contact, table in zip(sample, tables, strict=True)]
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used // len(held)


def _remember(own: Contact, table: list[Contact]) -> tuple[Buckets, list[Member]]:
    buckets, members = Buckets(own.place), []
    for number, one in enumerate(table):
        buckets.add(Contact(one.peer, one.place, one.twin, one.sponsors))
        members.append(_member(one, number))
    return buckets, members


def _member(contact: Contact, number: int) -> Member:
    return Member(
        community=HERE,
        peer=contact.peer,
        twin=contact.twin,
        name=f"member {number}",
        addresses=(f"192.0.2.{number % 250}:4{number}", f"198.51.100.{number % 250}:4{number}"),
        sequence=1_700_000_000_000 + number,
        instance=number.to_bytes(8, "big"),
        expires_at=1.7e9 + number,
        slots=number,
        memory_bytes=number << 30,
        disk_bytes=number << 31,
        grade="A",
        python="3.11",
        machine="x86_64",
        version="0.1.0",
        record=bytes([number % 256]) * DESCRIPTOR_BYTES,
    )


def shown(report: Report) -> str:
    """The report for people."""
    full = "everybody knows everybody" if report.peers <= FULL_VIEW_MAX else "each knows a part"
    hops_to_reach = math.log2(report.peers) / 2 + 2
    cores = "" if report.peers <= CORES_MAX else f" (all but lookups and memory with {CORES_MAX:,})"
    lines = [
        f"seed      {report.seed}",
        f"peers     {report.peers:,}{cores}, {full}; RTT 100 ms; took {report.took_s:.0f} s",
        f"links     {report.links_mean:.1f} each, at most {report.links_max}; "
        f"neighbours at least {report.neighbours_min}",
        f"idle      {report.idle_bytes_per_s:,.0f} B/s sent by each; "
        f"{report.idle_bytes_per_s_of_100:,.0f} with 100 peers",
        f"record    everywhere in {report.record_everywhere_s:.1f} s, {report.record_bytes_per_peer:,.0f} B a peer",
        f"death     known to all whom it concerns in {report.death_known_s:.1f} s; others held for dead: "
        f"{report.false_deaths_of_others}",
        f"loss      {report.link_losses:,} links lost at 5 % loss; held for dead though alive: "
        f"{report.false_deaths_in_loss}",
        f"split     halves for {SPLIT_S:.0f} s; one community again after {report.healed_s:.0f} s",
        f"lookup    {report.lookup_success:.2%}, {report.lookup_hops_mean:.1f} hops, at most {report.lookup_hops_max} "
        f"(to reach {hops_to_reach:.1f}), {report.lookup_asked_mean:.1f} asked",
        f"dead      10 % at once: {report.lookup_success_10_dead:.2%} found; "
        f"30 %: {report.lookup_success_30_dead:.2%}, at most {report.lookup_hops_max_30_dead} hops",
        f"besieged  by {SYBILS} identities around one key: {report.lookup_success_besieged:.2%} found",
        f"memory    {report.memory_bytes_per_peer / 1000:,.0f} kB a peer for whom it knows",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and prints."""
    report = measure(int(sys.argv[1]), int(sys.argv[2]))
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps({"schema": 1, **dataclasses.asdict(report)}) + "\n")
    else:
        sys.stdout.write(shown(report))


if __name__ == "__main__":
    main()
