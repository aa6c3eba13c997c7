"""Holds devices of this machine for whoever calls a capability that needs them: the same leases as jobs take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from croft.ledger.leasing import LeaseBook
from croft.model.amounts import Amounts
from croft.model.lease import Request, Stage, Usage

if TYPE_CHECKING:
    from croft.node.lending import Lending
    from croft.twins.call_server import Caller

CAPABILITY_PURPOSE: Final = "capability"
WAIT_S_MAX: Final = 30.0


class CapabilityDevices:
    """Fulfils `croft.twins.call_gate.Devices`. What the owner offers as a device has one holder at a time, whether jobs
    use it or a capability."""

    def __init__(self, leases: LeaseBook, lending: Lending) -> None:
        self._leases = leases
        self._lending = lending

    async def hold(self, caller: Caller, capability: str, needs: Sequence[str]) -> Callable[[], None]:
        """Holds a unit of each device among what is needed; call what is returned once. Raises Full, Refused."""
        if not needs:
            return _nothing
        offers = [offer for offer in self._lending.offers.all() if set(offer.devices) & set(needs)]
        wants = {name: 1 for offer in offers for name in offer.devices if name in needs}
        if not wants:
            return _nothing
        request = Request(
            key=f"{CAPABILITY_PURPOSE}/{caller.peer}/{capability}",
            peer=caller.peer,
            twin=caller.twin,
            purpose=CAPABILITY_PURPOSE,
            job=capability,
            offers=tuple(offer.name for offer in offers),
            wants=Amounts.of(wants),
        )
        lease = await self._leases.take(request, WAIT_S_MAX)

        def release() -> None:
            self._leases.used(lease, Usage(tasks=1))
            # It rests between the calls of one caller, and goes to whoever else wants the device.
            self._leases.leave(lease, Stage.WARM)

        return release


def _nothing() -> None:
    """What is held where nothing is needed."""
