"""A block between whole simulated peers: felt at once by the one who is blocked, and by nobody else."""

from __future__ import annotations

import asyncio

import pytest

from croft.errors import ConnectionLost, CroftError, Refused
from croft.overlay.exposure import Exposure, Grantee, GranteeKind, TunnelProtocol
from croft.sim.world import World
from support.worlds import Play, double, lasting

SECOND_S = 1.0


def test_a_block_cuts_what_runs_and_refuses_what_comes_until_it_is_undone(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        ada, bob = world["peer1"], world["peer2"]
        grantee = Grantee(GranteeKind.TWIN, bob.twin)
        await ada.parts.tunnel_host.expose(Exposure("wiki", 80, TunnelProtocol.TCP, (grantee,), 0.0))
        listener = await ada.local.listen(80)
        held = await bob.parts.tunnels.open(ada.peer, "wiki")
        job = world.submit("peer2", lasting(30.0, double), [1, 2], only=["peer1"])
        await asyncio.sleep(2)
        assert ada.parts.lender.slots_busy > 0

        await ada.parts.address_book.block(bob.twin)

        with pytest.raises(ConnectionLost):
            await held.read(1)
        await asyncio.sleep(1)
        assert ada.parts.lender.slots_busy == 0
        with pytest.raises(CroftError, match="has blocked you"):
            await bob.parts.tunnels.open(ada.peer, "wiki")
        with pytest.raises(Refused, match="is blocked here"):
            await ada.parts.overlay.open_stream(bob.peer, "tasks/1")
        await asyncio.sleep(60)
        assert ada.parts.overlay.links.get(bob.peer) is None
        assert world.disunity(["peer1", "peer3"]) == "" == world.missing_link(["peer2", "peer3"])
        listener.close()
        job.running.cancel()
        await asyncio.gather(job.running, return_exceptions=True)

        await ada.parts.address_book.unblock(bob.twin)

        await world.until(world.disunity, within_s=5)
        again = world.submit("peer2", lasting(SECOND_S, double), [1, 2, 3], only=["peer1"])
        await again.running

    play(story)


def test_a_block_outlives_a_restart_of_either(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        ada, bob = world["peer1"], world["peer2"]
        await ada.parts.address_book.block(bob.twin)
        await world.restart("peer1")
        await world.restart("peer2")
        await world.until(lambda: world.missing_link(["peer1", "peer3"]), within_s=60)
        await asyncio.sleep(60)
        assert ada.parts.overlay.links.get(bob.peer) is None
        [contact] = ada.parts.address_book.all()
        assert contact.is_blocked and contact.twin == bob.twin

    play(story)
