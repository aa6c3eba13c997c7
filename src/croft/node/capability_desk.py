"""Capabilities as the local API shows, offers and calls them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from croft.control import schema
from croft.control.naming import find_person, find_provider
from croft.errors import Usage
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.twins.call import ranked
from croft.twins.call_client import Deliver, OpenCall
from croft.twins.call_messages import AskCall
from croft.twins.capability import Capability, Terms, check_name, show_signature
from croft.twins.capability_book import OwnCapability
from croft.twins.consent import FRIENDS, MEMBERS, MINE, ROLE, Rule, Verdict
from croft.twins.consent_book import Question

if TYPE_CHECKING:
    from croft.node.assemble import Parts

RECIPIENTS_MAX = 32
ACTS_MAX = 10_000


class CapabilityDesk:
    """Fulfils `croft.control.capabilities_app.Capabilities` and `croft.control.calls.Calls`."""

    def __init__(
        self,
        parts: Parts,
        peers: Callable[[], list[schema.Peer]],
        contacts: Callable[[], list[schema.Contact]],
    ) -> None:
        self._parts = parts
        self._peers = peers
        self._contacts = contacts

    def capabilities(self) -> list[schema.Capability]:
        """What the owner may call, of one name in the order in which they are asked; this peer's own among them."""
        board = self._parts.calling.capabilities
        found = [(one, board.candidate(one)) for one in board.known()]
        order = {candidate.peer: at for at, candidate in enumerate(ranked([each for _, each in found]))}
        found.sort(key=lambda pair: (pair[0].terms.name, order[pair[1].peer]))
        own = {row.name: row for row in self._parts.calling.book.all()}
        return [
            self._own(own[one.terms.name]) if one.peer == self._parts.overlay.own.peer else self._shown(one)
            for one, _ in found
        ]

    async def offer_capability(self, wanted: schema.CapabilityWanted) -> schema.Capability:
        """Lets others call a function of a file of this machine. Raises Usage, NotFound, Busy."""
        if len(wanted.to) > RECIPIENTS_MAX:
            raise Usage("a capability for too many", remedy="Found a community for them, or make them friends.")
        source = wanted.source
        if (
            not (source.file or source.command or source.http or source.data)
            or not Path(source.file or "/").is_absolute()
        ):
            raise Usage("a capability without whole paths", remedy="Use `croft offer capability`.")
        consent = _verdict(wanted.consent)
        terms = Terms(
            check_name(wanted.name),
            wanted.signature.encode(),
            wanted.text,
            tuple(wanted.examples),
            tuple(wanted.needs),
            wanted.price,
            wanted.is_idempotent,
            wanted.time_s_max,
        )
        to = list(dict.fromkeys(map(self._recipient, wanted.to))) or [MEMBERS]
        row = await self._parts.calling.book.offer(source, terms, to, consent, wanted.slots)
        self._parts.calling.capabilities.publish()
        return self._own(row)

    async def withdraw_capability(self, name: str) -> schema.Capability:
        """Lets nobody call it any more. Raises NotFound."""
        row = await self._parts.calling.book.withdraw(name)
        self._parts.calling.capabilities.publish()
        return self._own(row)

    def call(self, asked: AskCall, deliver: Deliver) -> OpenCall:
        """Makes a call for a program. Raises NotFound, Usage."""
        return self._parts.calling.client.call(asked, deliver)

    # --- consent and the log of it -----------------------------------------------------------------------------------

    def consent_rules(self) -> list[schema.ConsentRule]:
        """As they are tried."""
        return list(map(self._rule, self._parts.calling.consent.rules()))

    async def set_consent(self, wanted: schema.ConsentWanted) -> schema.ConsentRule:
        """One more rule. Raises Usage, NotFound, Busy."""
        if wanted.capability:
            self._parts.calling.book.get(wanted.capability)
        who = wanted.who if wanted.who.startswith(ROLE) else self._recipient(wanted.who)
        is_community = any(who == one.community for one in self._parts.overlay.communities())
        verdict = _verdict(wanted.verdict)
        consent = self._parts.calling.consent
        return self._rule(
            await consent.set_rule(wanted.capability, who, verdict, wanted.per_day, is_community=is_community)
        )

    async def remove_consent(self, number: int) -> schema.ConsentRule:
        """Removes a rule. Raises NotFound."""
        return self._rule(await self._parts.calling.consent.remove_rule(number))

    def consent_questions(self) -> list[schema.ConsentQuestion]:
        """Calls that wait for the owner."""
        return list(map(self._question, self._parts.calling.consent.questions()))

    async def answer_question(self, number: int, answer: schema.ConsentAnswer) -> schema.ConsentQuestion:
        """Lets a waiting call in, or not. Raises NotFound."""
        consent = self._parts.calling.consent
        return self._question(await consent.answer(number, is_allowed=answer.is_allowed, always=answer.always))

    async def acts(self, wanted: schema.AuditWanted) -> list[schema.Act]:
        """What others did here, oldest first. Raises NotFound, Usage."""
        who = find_provider(self._contacts(), self._peers(), wanted.who) if wanted.who else ""
        found = [act for act in await self._parts.calling.audit.acts(wanted.since) if who in ("", act.peer, act.twin)]
        return [schema.Act(**msgspec.structs.asdict(act)) for act in found[-max(1, min(wanted.count_max, ACTS_MAX)) :]]

    async def verify_audit(self) -> schema.AuditState:
        """Whether the log is as this peer left it."""
        lines, findings = await self._parts.calling.audit.verify()
        return schema.AuditState(lines=lines, findings=[finding.what for finding in findings])

    # --- inside ------------------------------------------------------------------------------------------------------

    def _shown(self, one: Capability) -> schema.Capability:
        overlay, terms = self._parts.overlay, one.terms
        contact = self._parts.plan.contacts.get(one.twin)
        return schema.Capability(
            name=terms.name,
            peer=one.peer,
            twin=one.twin,
            by=overlay.name_of(one.peer),
            is_own=False,
            shown=show_signature(terms.name, one.signature),
            signature=terms.signature.decode(),
            digest=terms.digest.hex(),
            text=terms.text,
            examples=list(terms.examples),
            needs=list(terms.needs),
            price=terms.price,
            is_idempotent=terms.is_idempotent,
            time_s_max=terms.time_s_max,
            is_alive=overlay.is_alive(one.peer),
            trust="own" if one.twin == overlay.own.twin else contact.trust.value,
        )

    def _own(self, row: OwnCapability) -> schema.Capability:
        own = self._parts.overlay.own
        shown = self._shown(Capability(CommunityId(""), own.peer, own.twin, row.terms, 0, 0.0, signature=row.signature))
        return msgspec.structs.replace(
            shown,
            is_own=True,
            to=[self._name_of(who) for who in row.to],
            consent=row.consent.value,
            slots=row.slots,
            source=row.source.shown,
        )

    def _rule(self, rule: Rule) -> schema.ConsentRule:
        return schema.ConsentRule(
            number=rule.number,
            capability=rule.capability,
            who=self._name_of(rule.who),
            verdict=rule.verdict.value,
            per_day=rule.per_day,
        )

    def _question(self, question: Question) -> schema.ConsentQuestion:
        return schema.ConsentQuestion(
            number=question.number,
            capability=question.capability,
            by=self._parts.overlay.name_of(question.peer),
            peer=question.peer,
            twin=question.twin,
            arguments=question.arguments,
            asked_at=question.asked_at,
            expires_at=question.expires_at,
        )

    def _recipient(self, who: str) -> str:
        """Whom a word means: members, friends, mine, a community, or a person. Raises NotFound, Usage."""
        if who in (MEMBERS, FRIENDS, MINE):
            return who
        communities = [one for one in self._parts.overlay.communities() if who in (one.name, one.community)]
        if len(communities) > 1:
            raise Usage(f"several communities are called `{who}`", remedy="Name it by its id: `croft status --json`.")
        return communities[0].community if communities else find_person(self._contacts(), self._peers(), who)

    def _name_of(self, recipient: str) -> str:
        if recipient in (MEMBERS, FRIENDS, MINE) or recipient.startswith(ROLE):
            return recipient
        overlay = self._parts.overlay
        for one in overlay.communities():
            if one.community == recipient:
                return one.name
        petname = self._parts.plan.contacts.get(TwinId(recipient)).petname
        peer = next((one.peer for one in overlay.members() if one.twin == recipient), PeerId(recipient))
        return petname or overlay.name_of(peer)


def _verdict(text: str) -> Verdict:
    try:
        return Verdict(text)
    except ValueError:
        raise Usage(f"`{text}` is no verdict", remedy="Write auto, ask or deny.") from None
