"""Verifies what a link leads to, as a delegate does: which shares belong together is known, and no key of any."""

from __future__ import annotations

from typing import Final

from croft.errors import PeerMisbehaved, Refused, TooLarge
from croft.model.ids import PeerId
from croft.storage.formats import Bounds, Stripe, StripeList, check_stripe, decode_stored
from croft.storage.linked_files import LISTED_BYTES_MAX, LinkReader
from croft.storage.links import VERIFY, Link, open_target
from croft.storage.permits import bearers
from croft.storage.placement import Rule
from croft.storage.tending import Report, Tending, Ward, together
from croft.storage.wards import bounded

STRIPES_MAX: Final = 1_000_000


class LinkVerifier:
    """Of one peer."""

    def __init__(self, own: PeerId, reader: LinkReader, tending: Tending) -> None:
        self._own = own
        self._reader = reader
        self._tending = tending

    async def verify(self, link: Link, *, is_deep: bool = False, mends: bool = False) -> Report:
        """Has holders prove what they have of all that belongs to a link.

        `is_deep`: every share is read, and compared with its id. `mends`: lost shares are made again elsewhere.
        Raises Refused, NotFound, Unreachable, Usage, TooLarge.
        """
        state = max((one.state for one in await self._reader.answers(link)), key=lambda state: state.sequence)
        content = open_target(link.key, state, VERIFY)
        if mends and self._own not in bearers(state.permit):
            raise Refused(
                "this link lets you verify, and not repair", remedy="Ask its owner for one by which you may: --repair."
            )
        if content.size > LISTED_BYTES_MAX:
            raise TooLarge(f"a list of {content.size} bytes behind a link", remedy="Ask for a link to a part of it.")
        told = decode_stored(await self._reader.reading(link.owner, state.permit).whole(content), StripeList)
        by_rule: dict[Rule, dict[bytes, Stripe]] = {Rule(): {}}
        for stripe, rule in _sound(told):
            by_rule.setdefault(rule, {})[stripe.id] = stripe
        reports = [
            await self._tending.round(
                Ward(link.owner, list(stripes.values()), rule, state.permit),
                is_thorough=True,
                is_deep=is_deep,
                mends=mends,
            )
            for rule, stripes in by_rule.items()
        ]
        return together(reports)


def _sound(told: StripeList) -> list[tuple[Stripe, Rule]]:
    """The stripes of a list, each with the rule for it. Raises Refused for one that does not fit together."""
    try:
        if len(told.stripes) > STRIPES_MAX:
            raise PeerMisbehaved(f"{len(told.stripes)} stripes", step=VERIFY)
        for stripe in told.stripes:
            check_stripe(stripe)
        return bounded(told, Bounds([], [], []))
    except PeerMisbehaved as problem:
        raise Refused(f"what this link leads to makes no sense: {problem}", remedy="Ask its owner.") from None
