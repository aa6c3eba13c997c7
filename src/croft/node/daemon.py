"""The daemon: one process per home. Crash-only: it may be killed at any time and started again."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import logging.handlers
import os
import shutil
import signal
import socket
import sys
from collections.abc import Generator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import uvicorn
import uvloop

from croft.adapters.box_process import remove_folder
from croft.adapters.chunk_store import DiskChunkStore
from croft.adapters.environment_cache import EnvironmentCache
from croft.adapters.iroh_transport import IrohTransport
from croft.adapters.lan_discovery import LanDiscovery
from croft.adapters.leftovers import remove_leftovers
from croft.adapters.local_services import LoopbackServices
from croft.adapters.machine_load import MachineLoad
from croft.adapters.owners_machine import SystemMachine
from croft.adapters.owners_programs import OwnersPrograms
from croft.adapters.relay_host import RelayProcesses
from croft.adapters.sandbox import best_sandbox
from croft.adapters.socket_addresses import SocketAddress
from croft.adapters.sqlite_database import SqliteDatabase
from croft.adapters.system import SystemClock, SystemEntropy, ThreadOffload, minute_of_week
from croft.compute.owners_rules import Rules
from croft.control.app import create_app
from croft.control.config import Config, load
from croft.control.home import Home
from croft.control.work import WorkServer
from croft.errors import CroftError, Failed
from croft.ledger.own_offers import SETTINGS, OwnOffer
from croft.model.amounts import CPU, DISK, MEMORY, Amounts
from croft.model.isolation import Grade
from croft.node.assemble import Parts, Plan, Ports, assemble
from croft.node.backup_desk import BackupDesk
from croft.node.capability_desk import CapabilityDesk
from croft.node.communities import CommunityDesk
from croft.node.identity import Identity, adopt, load_identity
from croft.node.launch import hold_lock
from croft.node.message_desk import MessageDesk
from croft.node.network import NetworkDesk
from croft.node.offer_desk import OfferDesk
from croft.node.peer import LocalPeer
from croft.node.people import PeopleDesk
from croft.node.pipeline_desk import PipelineDesk
from croft.node.policy import OwnersPolicy
from croft.node.search import SearchDesk
from croft.node.services import ServiceDesk
from croft.node.storage_desk import StorageDesk
from croft.node.supervisor import supervise
from croft.overlay.contacts import ContactBook
from croft.overlay.join_messages import JOIN_PROTOCOL
from croft.overlay.messages import PROTOCOL
from croft.ports import Sandbox

log = logging.getLogger(__name__)

LOG_BYTES_MAX = 5 << 20
LOG_FILES_KEPT = 3
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
DISK_FREE_BYTES_MIN = 64 << 20
PORT_SETTING = "port"
COLLECTED_AFTER = 10_000, 10, 10
"""As of `gc.set_threshold`: what grows to a list of 100,000 files is looked through less often meanwhile."""


class _Server(uvicorn.Server):
    """Leaves signals to the daemon."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """No handlers of its own."""
        yield


def run(home: Home, flags: Mapping[str, str], *, ready_fd: int | None, log_to_terminal: bool = False) -> None:
    """Runs the daemon until it is told to end. Raises CroftError if it cannot start."""
    config = load(home, flags)
    _start_log(home, config, log_to_terminal)
    with hold_lock(home):
        while uvloop.run(_serve(home, config, ready_fd)):
            ready_fd = None  # whoever waited for the first start knows already


async def _serve(home: Home, config: Config, ready_fd: int | None) -> bool:
    """One run of the peer; whether it is to be started anew, as somebody else."""
    _check_disk(home)
    await asyncio.to_thread(_clear_away, home)
    identity, _ = load_identity(home)
    async with AsyncExitStack() as stack:
        database = await SqliteDatabase.open(home.database)
        stack.push_async_callback(database.close)
        transport, moved = await _open_transport(identity, config, database)
        stack.push_async_callback(transport.close)
        sandbox = await asyncio.to_thread(best_sandbox, allows_unconfined=_allows_unconfined(config))
        relays = RelayProcesses(config["bind"])
        chunks = await DiskChunkStore.open(home.chunks, SystemEntropy())
        stack.push_async_callback(chunks.close)
        offload = ThreadOffload()
        stack.callback(offload.close)
        ports = Ports(
            transport,
            SystemClock(),
            SystemEntropy(),
            database,
            sandbox,
            LanDiscovery(shows_beacons=_is_on_a_network(config)),
            LoopbackServices(),
            relays,
            SystemMachine(),
            chunks,
            offload,
            EnvironmentCache(home.environments, config["environments.cache"]),
            OwnersPrograms(),
        )
        parts = assemble(_plan(home, config, identity, sandbox), ports)
        if moved:
            parts.health.warn("port.moved", moved, remedy="Others find it again by itself; or set a fixed `port`.")
        await parts.load()
        is_to_start_anew = await _serve_parts(parts, home, config, ready_fd)
    log.info("the peer has ended")
    return is_to_start_anew


def _clear_away(home: Home) -> None:
    """What an earlier run left of the work of others is nobody's any more."""
    try:
        remove_folder(home.jobs)
    except OSError as error:
        log.warning("what an earlier run left in %s %s", home.jobs, error.strerror)
    home.jobs.mkdir(mode=0o700, exist_ok=True)
    if count := remove_leftovers():
        log.info("removed %d folders and control groups of peers that were killed", count)


async def _serve_parts(parts: Parts, home: Home, config: Config, ready_fd: int | None) -> bool:
    peer = LocalPeer(parts, home, config)
    desk, people = ServiceDesk(parts, peer.peers), PeopleDesk(parts, peer.peers)
    storage = StorageDesk(parts, peer.peers, people.contacts)
    communities = CommunityDesk(parts, peer.peers, people.contacts)
    peer.named_community = communities.named
    backups = BackupDesk(parts, peer.peers)
    capabilities = CapabilityDesk(parts, peer.peers, people.contacts)
    pipelines = PipelineDesk(parts)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, peer.stopping.set)
    control = _control_socket(home.control_socket)
    server = _Server(
        uvicorn.Config(
            create_app(
                peer,
                parts.jobs,
                desk,
                people,
                NetworkDesk(parts, peer.peers),
                OfferDesk(parts, peer.peers, people.contacts),
                SearchDesk(parts, peer.peers),
                storage,
                communities,
                backups,
                capabilities,
                MessageDesk(parts, peer.peers, people.contacts),
                pipelines,
            ),
            log_config=None,
            lifespan="off",
            access_log=False,
            timeout_graceful_shutdown=1,
        )
    )
    work = WorkServer(parts.jobs, desk, parts.circles, storage, backups, capabilities, pipelines)
    work = WorkServer(parts.jobs, desk, parts.circles, storage, backups, capabilities, pipelines)
    health = parts.health
    async with asyncio.TaskGroup() as tasks:
        services = [
            tasks.create_task(parts.serve(), name="peer"),
            tasks.create_task(supervise("work", lambda: work.serve(home.work_socket), health), name="service.work"),
            tasks.create_task(supervise("control", lambda: server.serve([control]), health), name="service.control"),
        ]
        while not (server.started and home.work_socket.exists()):
            await asyncio.sleep(0.005)
        log.info("peer %s (%s) runs in %s", parts.overlay.own.name, parts.overlay.own.peer, home.state)
        _say_ready(ready_fd)
        await peer.stopping.wait()
        server.should_exit = True
        for service in services:
            service.cancel()
    home.control_socket.unlink(missing_ok=True)
    home.work_socket.unlink(missing_ok=True)
    return peer.is_to_start_anew


def _plan(home: Home, config: Config, identity: Identity, sandbox: Sandbox) -> Plan:
    load_of_machine = MachineLoad(home.state)
    own = identity.own(config["name"])
    contacts = ContactBook(own.twin)
    return Plan(
        own=own,
        root=identity.root,
        twin_key=identity.twin_key,
        policy=OwnersPolicy(home, config, own.name, sandbox.isolation, contacts.trust_of),
        contacts=contacts,
        offer=_settings_offer(config),
        rules=Rules(config["lend.idle"], config["lend.battery"]),
        lent_cpus_max=None if config["lend.share"] == 1.0 else config["lend.share"] * (os.cpu_count() or 1),
        labels=config["labels"],
        machine_load=lambda: (load_of_machine.cpu(), load_of_machine.disk()),
        adopt=lambda certificate: adopt(home, certificate),
        minute_of_week=minute_of_week,
        relay_port=config["relay.port"],
        delegates_wanted=config["jobs.delegates"],
        storage_delegates=config["storage.delegates"],
        kept_bytes_max=config["pipelines.disk"],
        own_folders=(os.fsencode(home.state),),
    )


def _settings_offer(config: Config) -> OwnOffer:
    """What the settings lend: nothing at all where they lend no processors."""
    slots: int = config["lend.cpus"]
    devices, places = config["lend.devices"]
    lent = {CPU: slots, MEMORY: config["lend.memory"], DISK: config["lend.disk"], **devices}
    amounts = Amounts.of(lent) if slots else Amounts()
    return OwnOffer(SETTINGS, amounts, (config["lend.to"],), config["lend.when"], tuple(places.items()))


def _is_on_a_network(config: Config) -> bool:
    """Whether others on the local network are to find this peer, and it them."""
    address = SocketAddress.parse(f"{config['bind']}:0")
    return config["lan"] == "on" and not (address is not None and address.host.is_loopback)


def _allows_unconfined(config: Config) -> bool:
    """Whether the owner wrote that code may run here without isolation."""
    return Grade.D in (config["sandbox.required_grade"], config["sandbox.own_devices_grade"])


async def _open_transport(identity: Identity, config: Config, database: SqliteDatabase) -> tuple[IrohTransport, str]:
    """The transport on its port, and what to tell the owner if it had to move to another one."""
    protocols = [PROTOCOL, JOIN_PROTOCOL]
    wanted: int = config["port"]
    kept = await database.run(
        lambda db: db.execute("SELECT value FROM setting WHERE name = ?", (PORT_SETTING,)).fetchone()
    )
    moved = ""
    port = wanted or (int(kept[0]) if kept else 0)
    try:
        transport = await IrohTransport.open(identity.device.raw, protocols, f"{config['bind']}:{port}")
    except Failed:
        if wanted or not port:
            raise
        # The port was our own choice, so another one will do.
        moved = f"UDP port {port} is taken by another program; this peer moved to another one."
        transport = await IrohTransport.open(identity.device.raw, protocols, f"{config['bind']}:0")
    bound = str(transport.port)
    await database.run(
        lambda db: db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (PORT_SETTING, bound.encode())).rowcount
    )
    return transport, moved


def _control_socket(path: Path) -> socket.socket:
    """A listening Unix socket that the owner alone can open."""
    path.unlink(missing_ok=True)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        control.bind(str(path))
    finally:
        os.umask(mask)
    control.listen(128)
    control.setblocking(False)
    return control


def _check_disk(home: Home) -> None:
    free = shutil.disk_usage(home.state).free
    if free < DISK_FREE_BYTES_MIN:
        raise Failed(
            f"the disk of {home.state} is full: {free >> 20} MiB are free, {DISK_FREE_BYTES_MIN >> 20} are needed",
            remedy="Free some space, or use another home: CROFT_HOME=FOLDER.",
        )


def _start_log(home: Home, config: Config, log_to_terminal: bool) -> None:
    handler: logging.Handler
    if log_to_terminal:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = logging.handlers.RotatingFileHandler(
            home.log_file, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES_KEPT, encoding="utf-8"
        )
    logging.basicConfig(level=config["log.level"].upper(), format=LOG_FORMAT, handlers=[handler])
    for noisy in ("uvicorn.error", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _say_ready(ready_fd: int | None, error: CroftError | None = None) -> None:
    if ready_fd is None:
        return
    answer = {"code": error.code, "error": error.message, "remedy": error.remedy} if error else {"ready": os.getpid()}
    os.write(ready_fd, json.dumps(answer).encode() + b"\n")
    os.close(ready_fd)


def main() -> None:
    """The daemon's own program; people start it by `croft up`."""
    parser = argparse.ArgumentParser(prog="croft.node.daemon")
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    flags = dict(text.partition("=")[::2] for text in arguments.set)
    try:
        home = Home.find()
        home.make()
        gc.set_threshold(*COLLECTED_AFTER)
        run(home, flags, ready_fd=arguments.ready_fd)
    except CroftError as error:
        logging.getLogger(__name__).error("the peer cannot start: %s", error.message)
        if arguments.ready_fd is None:
            print(f"error: {error.message}\nhint: {error.remedy}", file=sys.stderr)  # noqa: T201 - the unit's journal
        else:
            _say_ready(arguments.ready_fd, error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
