"""What the local API answers. The same fields are in `--json` and in the Python API.

Times are Unix seconds, durations seconds, sizes bytes, shares of something from 0 to 1.
"""

from __future__ import annotations

import enum

import msgspec

from croft.control.capability_schema import Act as Act
from croft.control.capability_schema import AuditState as AuditState
from croft.control.capability_schema import AuditWanted as AuditWanted
from croft.control.capability_schema import Capability as Capability
from croft.control.capability_schema import CapabilityWanted as CapabilityWanted
from croft.control.capability_schema import ConsentAnswer as ConsentAnswer
from croft.control.capability_schema import ConsentQuestion as ConsentQuestion
from croft.control.capability_schema import ConsentRule as ConsentRule
from croft.control.capability_schema import ConsentWanted as ConsentWanted
from croft.control.community_schema import Community as Community
from croft.control.community_schema import CommunityAct as CommunityAct
from croft.control.community_schema import CommunityMember as CommunityMember
from croft.control.community_schema import CommunityWanted as CommunityWanted
from croft.control.community_schema import LogWanted as LogWanted
from croft.control.community_schema import RemovalOfMember as RemovalOfMember
from croft.control.community_schema import RoleWanted as RoleWanted
from croft.control.community_schema import RulesWanted as RulesWanted
from croft.control.storage_schema import FileLink as FileLink
from croft.control.storage_schema import FilesPut as FilesPut
from croft.control.storage_schema import FilesRead as FilesRead
from croft.control.storage_schema import FilesRemoved as FilesRemoved
from croft.control.storage_schema import FilesWanted as FilesWanted
from croft.control.storage_schema import HolderState as HolderState
from croft.control.storage_schema import LinkNamed as LinkNamed
from croft.control.storage_schema import LinkVerified as LinkVerified
from croft.control.storage_schema import LinkWanted as LinkWanted
from croft.control.storage_schema import PeerFilled as PeerFilled
from croft.control.storage_schema import Rebalanced as Rebalanced
from croft.control.storage_schema import RebalanceWanted as RebalanceWanted
from croft.control.storage_schema import Recovered as Recovered
from croft.control.storage_schema import RemovalWanted as RemovalWanted
from croft.control.storage_schema import RollbackWanted as RollbackWanted
from croft.control.storage_schema import SharesMoved as SharesMoved
from croft.control.storage_schema import Snapshot as Snapshot
from croft.control.storage_schema import SnapshotWanted as SnapshotWanted
from croft.control.storage_schema import StorageState as StorageState
from croft.control.storage_schema import StoredFile as StoredFile
from croft.control.storage_schema import StoredVersion as StoredVersion
from croft.control.storage_schema import VerificationWanted as VerificationWanted
from croft.control.storage_schema import WatchedData as WatchedData
from croft.control.twin_schema import LeftCall as LeftCall
from croft.control.twin_schema import LeftCallWanted as LeftCallWanted
from croft.control.twin_schema import LeftValue as LeftValue
from croft.control.twin_schema import Message as Message
from croft.control.twin_schema import MessagesWanted as MessagesWanted
from croft.control.twin_schema import MessageWanted as MessageWanted
from croft.control.twin_schema import Pipeline as Pipeline
from croft.control.twin_schema import PipelinePeer as PipelinePeer
from croft.control.twin_schema import PipelineStage as PipelineStage
from croft.control.twin_schema import Room as Room
from croft.control.twin_schema import Twin as Twin
from croft.control.twin_schema import TwinWanted as TwinWanted

SCHEMA = 1


class Severity(enum.StrEnum):
    """How bad a health warning is."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class HealthWarning(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the owner may want to mend."""

    code: str
    title: str
    severity: Severity
    remedy: str = ""


class Lending(msgspec.Struct, frozen=True, kw_only=True):
    """What this peer lends, and how much of it is in use.

    `slots_now` are lent at this moment; if none, `reason` says why. `paused_until` in Unix seconds; 0 for a pause
    without end, None if lending is not paused.
    """

    slots: int
    slots_busy: int
    memory_bytes: int
    disk_bytes: int
    grade: str
    grade_reason: str = ""
    slots_now: int = 0
    reason: str = ""
    paused_until: float | None = None


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody holds of this peer, or held, and what was used under it.

    `number` counts all leases of this peer. `holder`: what the peer that holds it is called here. `job`: its own.
    `stage`: held, silent (its holder was lost and may come back), warm (given up to whoever needs room), ending, or
    ended. `amounts` by resource: cpu (0: it takes turns), mem and disk in bytes, devices; `offers`: from which offer
    each comes. What was used is told once the lease has ended; `death` says which limit or fault ended its box, or
    something in it.
    """

    number: int
    holder: str
    peer: str
    twin: str
    purpose: str
    job: str
    stage: str
    amounts: dict[str, int]
    offers: dict[str, str]
    granted_at: float
    ended_at: float | None = None
    cpu_s: float = 0.0
    memory_peak_bytes: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    tasks: int = 0
    death: str = ""


class PauseWanted(msgspec.Struct, frozen=True, kw_only=True):
    """A pause of lending: for so many seconds, or until it is resumed."""

    for_s: float | None = None


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """One member of a community, as this peer knows it.

    `name` is what it is called here, unlike every other; `self_name` what it calls itself; `petname` what the owner
    calls its person. `trust`: none, low, normal or high, and own for the owner's other devices. `link`: self, direct,
    relayed, idle (alive, and a link is made when it is needed), offline or blocked.
    """

    peer: str
    twin: str
    name: str
    communities: list[str]
    is_self: bool
    link: str
    address: str = ""
    round_trip_s: float | None = None
    slots: int = 0
    slots_busy: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    cpu: float | None = None
    disk: float | None = None
    grade: str = ""
    python: str = ""
    machine: str = ""
    version: str = ""
    seen_at: float = 0.0
    self_name: str = ""
    petname: str = ""
    trust: str = "normal"
    is_blocked: bool = False
    labels: list[str] = []
    devices: list[str] = []


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Who this peer is, who is here, what is wrong, what next."""

    peer: str
    twin: str
    name: str
    version: str
    python: str
    home: str
    process: int
    started_at: float
    addresses: list[str]
    lending: Lending
    communities: list[Community]
    peers: list[Peer]
    health: list[HealthWarning]
    next_step: str = ""


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """An invitation. `line` and `code` are given only when it is made: they are secrets."""

    invitation: str
    community: str
    state: str
    created_at: float
    expires_at: float
    guesses_left: int
    used_by: str = ""
    is_for_guest: bool = False
    line: str = ""
    code: str = ""


class InvitationWanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to invite to, and for how long. `community`: its name or the start of its id; empty: the only one."""

    lifetime_s: float = 3600.0
    is_spoken: bool = True
    community: str = ""
    is_for_guest: bool = False


class JoinWanted(msgspec.Struct, frozen=True, kw_only=True):
    """The line or the spoken code of an invitation."""

    code: str


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """The community that was joined. `twin`: whose device this machine is, which a line for a device changes."""

    community: str
    name: str
    inviter: str
    members: int
    twin: str = ""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job that this peer submitted. `state`: filling, queued, running, ended, failed or cancelled.

    One that `is_durable` is kept on disk, results and all, until it is forgotten. `reason` is why nobody works on it.
    `submitter`, `carrier` and `delegates` are names: who submitted it, carries it on now, and holds copies.
    """

    job: str
    kind: str
    label: str
    state: str
    created_at: float
    ended_at: float | None
    tasks: int
    done: int
    failed: int
    done_by: dict[str, int] = {}
    is_durable: bool = False
    reason: str = ""
    submitter: str = ""
    carrier: str = ""
    delegates: list[str] = []


class Exposure(msgspec.Struct, frozen=True, kw_only=True):
    """A service of this machine that others may reach. `to` names them; `expires_at` None: until it is removed."""

    name: str
    port: int
    protocol: str
    to: list[str]
    created_at: float
    expires_at: float | None = None
    connections: int = 0


class ExposureWanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to expose, and to whom: names of people, peers or communities. An empty `name` follows from the port."""

    port: int
    to: list[str]
    protocol: str = "tcp"
    name: str = ""
    lifetime_s: float | None = None


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """A rate limit: `rate` bytes a second each way. An empty field limits whatever there is."""

    number: int
    rate: float
    peer: str = ""
    purpose: str = ""
    direction: str = ""
    hours: str = ""


class LimitWanted(msgspec.Struct, frozen=True, kw_only=True):
    """A limit to set. `peer` as people name it; `purpose`: tasks or tunnel; `direction`: up or down; `hours`: 08-18."""

    rate: float
    peer: str = ""
    purpose: str = ""
    direction: str = ""
    hours: str = ""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device of this machine's owner. `link` is that of a peer, or `revoked`. `holds_key`: known of this one only."""

    peer: str
    name: str
    is_self: bool
    link: str
    seen_at: float = 0.0
    holds_key: bool | None = None
    revoked_at: float | None = None


class Contact(msgspec.Struct, frozen=True, kw_only=True):
    """A person whom the owner noted. `devices`: what those of them that are known are called here."""

    twin: str
    petname: str
    trust: str
    is_blocked: bool
    added_at: float
    devices: list[str] = []


class ContactWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to note, as a peer, a petname or an id names them, and what is to change; None leaves it as it is."""

    who: str
    petname: str | None = None
    trust: str | None = None
    is_blocked: bool | None = None


class Relay(msgspec.Struct, frozen=True, kw_only=True):
    """A relay that can be used here; `is_home` if this peer is reached by it now."""

    url: str
    peer: str
    name: str
    round_trip_s: float
    is_home: bool


class Relayed(msgspec.Struct, frozen=True, kw_only=True):
    """What the relay here has passed on for one peer: payload bytes, and frames that found no room."""

    peer: str
    name: str
    received_bytes: int
    sent_bytes: int
    dropped_frames: int


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """The way to one peer.

    `link` is direct, relayed or offline; `relay_by` names the owner of the relay in use. Bytes are since this peer
    started, headers included; rates are bytes per second over the last moment; `measured_…` are of the last
    measurement. `energy_wh` is an estimate, see `Net.energy_assumption`. `advice` is what could make the way better.
    """

    peer: str
    name: str
    link: str
    relay_by: str = ""
    address: str = ""
    nat: str = ""
    round_trip_s: float | None = None
    sent_per_s: float = 0.0
    received_per_s: float = 0.0
    measured_to_per_s: float | None = None
    measured_from_per_s: float | None = None
    measured_at: float = 0.0
    direct_sent_bytes: int = 0
    direct_received_bytes: int = 0
    relayed_sent_bytes: int = 0
    relayed_received_bytes: int = 0
    energy_wh: float = 0.0
    advice: str = ""


class Net(msgspec.Struct, frozen=True, kw_only=True):
    """How this peer is reached, and the ways to the others."""

    nat: str
    addresses: list[str]
    outside: list[str]
    relays: list[Relay]
    relayed: list[Relayed]
    relay_clients: int
    ways: list[Way]
    energy_assumption: str
    advice: str = ""


class MeasureWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Whose way to measure: a name or an id."""

    peer: str


class OfferWanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to offer: bytes per second in all and per client, to which communities (names or ids; none: all)."""

    amount: float
    per_client: float | None = None
    to: list[str] = []


class LendWanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to lend: an amount of each resource (cpu, mem and disk in bytes, devices); `places`: where devices are.

    `to`: members, friends, mine, and names of communities and people; none: members. `when`: "mon-fri 20-08"; empty:
    always.
    """

    lent: dict[str, int]
    places: dict[str, str] = {}
    to: list[str] = []
    when: str = ""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a member lends.

    `what`: relay, of which `amount` is bytes per second and `places` are its URLs; or lend, which says in `lent` how
    much of what, and in `places` where one's own devices are. `number` tells a peer's offers apart; 0: that of the
    settings. `when`: the part of the week, by the lender's clock; empty: always. `is_standing`: whether it is lent now.
    """

    what: str
    peer: str
    name: str
    is_own: bool
    to: list[str]
    amount: float
    per_client: float | None = None
    places: list[str] = []
    expires_at: float | None = None
    number: int = 0
    lent: dict[str, int] = {}
    when: str = ""
    is_standing: bool = True


class PeersWanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer must have. Zero and empty: whatever. `grade`: this one or a better one."""

    cpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    round_trip_s: float | None = None
    machine: str = ""
    python: str = ""
    grade: str = ""
    labels: list[str] = []


class KeyWanted(msgspec.Struct, frozen=True, kw_only=True):
    """A key to look up or to provide."""

    key: str


class Located(msgspec.Struct, frozen=True, kw_only=True):
    """Who has what a key names; how many peers were asked, and how many one after the other."""

    key: str
    providers: list[Peer]
    asked: int
    hops: int
    took_s: float


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting, its value, and where the value comes from: flag, environment, file or default."""

    key: str
    value: str
    origin: str
    text: str


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every answer that is not a success."""

    code: str
    message: str
    remedy: str = ""
    exit_code: int = 1
