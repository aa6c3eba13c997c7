"""The local API on capabilities: what others let the owner call, what the owner lets others, and what they did."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request
from starlette.routing import Route

from croft.control import schema
from croft.control.answers import answer, body


class Capabilities(Protocol):
    """What the local API asks about capabilities."""

    def capabilities(self) -> list[schema.Capability]: ...

    async def offer_capability(self, wanted: schema.CapabilityWanted) -> schema.Capability: ...

    async def withdraw_capability(self, name: str) -> schema.Capability: ...

    def consent_rules(self) -> list[schema.ConsentRule]: ...

    async def set_consent(self, wanted: schema.ConsentWanted) -> schema.ConsentRule: ...

    async def remove_consent(self, number: int) -> schema.ConsentRule: ...

    def consent_questions(self) -> list[schema.ConsentQuestion]: ...

    async def answer_question(self, number: int, answer: schema.ConsentAnswer) -> schema.ConsentQuestion: ...

    async def acts(self, wanted: schema.AuditWanted) -> list[schema.Act]: ...

    async def verify_audit(self) -> schema.AuditState: ...


def capability_routes(desk: Capabilities) -> list[Route]:
    """One route per question."""

    async def capabilities(_: Request) -> object:
        return desk.capabilities()

    async def offer(request: Request) -> object:
        return await desk.offer_capability(await body(request, schema.CapabilityWanted))

    async def withdraw(request: Request) -> object:
        return await desk.withdraw_capability(request.path_params["name"])

    async def rules(_: Request) -> object:
        return desk.consent_rules()

    async def set_rule(request: Request) -> object:
        return await desk.set_consent(await body(request, schema.ConsentWanted))

    async def remove_rule(request: Request) -> object:
        return await desk.remove_consent(request.path_params["number"])

    async def questions(_: Request) -> object:
        return desk.consent_questions()

    async def answer_question(request: Request) -> object:
        wanted = await body(request, schema.ConsentAnswer)
        return await desk.answer_question(request.path_params["number"], wanted)

    async def acts(request: Request) -> object:
        return await desk.acts(await body(request, schema.AuditWanted))

    async def verify(_: Request) -> object:
        return await desk.verify_audit()

    return [
        Route("/v1/consent", answer(rules), methods=["GET"]),
        Route("/v1/consent", answer(set_rule), methods=["POST"]),
        Route("/v1/consent/queue", answer(questions), methods=["GET"]),
        Route("/v1/consent/queue/{number:int}", answer(answer_question), methods=["POST"]),
        Route("/v1/consent/{number:int}", answer(remove_rule), methods=["DELETE"]),
        Route("/v1/audit", answer(acts), methods=["POST"]),
        Route("/v1/audit/verification", answer(verify), methods=["GET"]),
        Route("/v1/capabilities", answer(capabilities), methods=["GET"]),
        Route("/v1/capabilities", answer(offer), methods=["POST"]),
        Route("/v1/capabilities/{name}", answer(withdraw), methods=["DELETE"]),
    ]
