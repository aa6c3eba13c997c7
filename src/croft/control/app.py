"""The HTTP side of the local API: one route per question, JSON in and out."""

from __future__ import annotations

from typing import Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from croft.control import schema
from croft.control.answers import answer, body
from croft.control.backup_app import Backups, backup_routes
from croft.control.capabilities_app import Capabilities, capability_routes
from croft.control.community_app import CommunityBook, community_routes
from croft.control.find_app import Search, find_routes
from croft.control.jobs_app import Jobs, job_routes
from croft.control.messages_app import Messages, message_routes
from croft.control.network_app import Network, network_routes
from croft.control.offers_app import Offers, offer_routes
from croft.control.people_app import People, people_routes
from croft.control.pipelines_app import Pipelines, pipeline_routes
from croft.control.services_app import Services, service_routes
from croft.control.storage_app import Files, storage_routes


class Node(Protocol):
    """What the local API asks of the peer."""

    def status(self) -> schema.Status: ...

    def peers(self) -> list[schema.Peer]: ...

    async def invite(self, wanted: schema.InvitationWanted) -> schema.Invitation: ...

    async def invitations(self) -> list[schema.Invitation]: ...

    async def withdraw(self, invitation: str) -> schema.Invitation: ...

    async def join(self, wanted: schema.JoinWanted) -> schema.Joined: ...

    def settings(self) -> list[schema.Setting]: ...

    async def pause(self, wanted: schema.PauseWanted) -> schema.Lending: ...

    async def resume(self) -> schema.Lending: ...

    async def leases(self) -> list[schema.Lease]: ...

    def stop(self) -> None: ...


def create_app(
    node: Node,
    jobs: Jobs,
    services: Services,
    people: People,
    network: Network,
    offers: Offers,
    search: Search,
    files: Files,
    communities: CommunityBook,
    backups: Backups,
    capabilities: Capabilities,
    messages: Messages,
    pipelines: Pipelines,
) -> Starlette:
    """The application; the caller serves it on a socket that only the owner can open."""

    async def status(_: Request) -> object:
        return node.status()

    async def peers(_: Request) -> object:
        return node.peers()

    async def invite(request: Request) -> object:
        return await node.invite(await body(request, schema.InvitationWanted))

    async def invitations(_: Request) -> object:
        return await node.invitations()

    async def withdraw(request: Request) -> object:
        return await node.withdraw(request.path_params["invitation"])

    async def join(request: Request) -> object:
        return await node.join(await body(request, schema.JoinWanted))

    async def settings(_: Request) -> object:
        return node.settings()

    async def pause(request: Request) -> object:
        return await node.pause(await body(request, schema.PauseWanted))

    async def resume(_: Request) -> object:
        return await node.resume()

    async def leases(_: Request) -> object:
        return await node.leases()

    async def stop(_: Request) -> object:
        node.stop()
        return {}

    return Starlette(
        routes=[
            Route("/v1/status", answer(status), methods=["GET"]),
            Route("/v1/peers", answer(peers), methods=["GET"]),
            Route("/v1/invitations", answer(invite), methods=["POST"]),
            Route("/v1/invitations", answer(invitations), methods=["GET"]),
            Route("/v1/invitations/{invitation}", answer(withdraw), methods=["DELETE"]),
            Route("/v1/join", answer(join), methods=["POST"]),
            Route("/v1/settings", answer(settings), methods=["GET"]),
            Route("/v1/pause", answer(pause), methods=["POST"]),
            Route("/v1/pause", answer(resume), methods=["DELETE"]),
            Route("/v1/leases", answer(leases), methods=["GET"]),
            Route("/v1/stop", answer(stop), methods=["POST"]),
            *job_routes(jobs),
            *service_routes(services),
            *network_routes(network),
            *offer_routes(offers),
            *people_routes(people),
            *find_routes(search),
            *storage_routes(files),
            *community_routes(communities),
            *backup_routes(backups),
            *capability_routes(capabilities),
            *message_routes(messages),
            *pipeline_routes(pipelines),
        ]
    )
