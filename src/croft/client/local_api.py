"""Asks the local daemon over its Unix socket. Standard library only: the command line starts with it."""

from __future__ import annotations

import http.client
import socket
import time
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec

from croft.control import backup_schema, schema
from croft.control.naming import find_peer, find_provider
from croft.errors import CroftError, TimedOut, Unreachable, by_code

T = TypeVar("T")

TIMEOUT_S = 30.0
JOIN_TIMEOUT_S = 60.0
MEASURE_TIMEOUT_S = 60.0
STORAGE_TIMEOUT_S = 600.0
PRUNE_TIMEOUT_S = 86_400.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class LocalApi:
    """The daemon's answers, typed. Every method raises Unreachable if the daemon does not run."""

    def __init__(self, control_socket: Path) -> None:
        self._socket = control_socket

    def status(self) -> schema.Status:
        """Who this peer is, who is here, what is wrong."""
        return self._ask("GET", "/v1/status", schema.Status)

    def peers(self) -> list[schema.Peer]:
        """Every known member, this peer first."""
        return self._ask("GET", "/v1/peers", list[schema.Peer])

    def find_peer(self, name: str) -> schema.Peer:
        """The member of this name, nickname or id, or of an id that starts like this. Raises NotFound, Usage."""
        return find_peer(self.peers(), name)

    def find_peers(self, wanted: schema.PeersWanted) -> list[schema.Peer]:
        """Members that are alive and have all that is wanted, most free processors first. Raises Usage."""
        return self._ask("POST", "/v1/find/peers", list[schema.Peer], wanted)

    def find_key(self, key: str) -> schema.Located:
        """Who has what a key names. Raises Usage."""
        return self._ask("POST", "/v1/find/key", schema.Located, schema.KeyWanted(key=key))

    def provided(self) -> list[str]:
        """The keys that this peer provides."""
        return self._ask("GET", "/v1/provided", list[str])

    def provide(self, key: str) -> list[str]:
        """Lets others find that this peer has what `key` names. Raises Usage."""
        return self._ask("POST", "/v1/provided", list[str], schema.KeyWanted(key=key))

    def withdraw_key(self, key: str) -> list[str]:
        """No longer provides a key. Raises NotFound."""
        return self._ask("POST", "/v1/provided/withdrawn", list[str], schema.KeyWanted(key=key))

    def invite(
        self,
        *,
        lifetime_s: float = 3600.0,
        is_spoken: bool = True,
        community: str = "",
        is_for_guest: bool = False,
    ) -> schema.Invitation:
        """A new invitation, with its line and, unless `is_spoken` is false, a code for one LAN.

        Raises NotFound, Usage, Refused, Busy.
        """
        wanted = schema.InvitationWanted(
            lifetime_s=lifetime_s, is_spoken=is_spoken, community=community, is_for_guest=is_for_guest
        )
        return self._ask("POST", "/v1/invitations", schema.Invitation, wanted)

    def invitations(self) -> list[schema.Invitation]:
        """Invitations made here, newest first, without their secrets."""
        return self._ask("GET", "/v1/invitations", list[schema.Invitation])

    def withdraw(self, invitation: str) -> schema.Invitation:
        """Makes an open invitation worthless. Raises NotFound."""
        return self._ask("DELETE", f"/v1/invitations/{invitation}", schema.Invitation)

    def join(self, code: str) -> schema.Joined:
        """Joins a community. Raises Usage, Refused, Unreachable."""
        wanted = schema.JoinWanted(code=code)
        return self._ask("POST", "/v1/join", schema.Joined, wanted, timeout_s=JOIN_TIMEOUT_S)

    def communities(self) -> list[schema.Community]:
        """The communities that this peer is in."""
        return self._ask("GET", "/v1/communities", list[schema.Community])

    def new_community(self, name: str) -> schema.Community:
        """Founds a community. Raises Usage, Refused."""
        wanted = schema.CommunityWanted(community=name)
        return self._ask("POST", "/v1/communities", schema.Community, wanted)

    def community_members(self, community: str = "") -> list[schema.CommunityMember]:
        """Everybody in a community, named by its name or id; empty: the only one. Raises NotFound, Usage."""
        wanted = schema.CommunityWanted(community=community)
        return self._ask("POST", "/v1/communities/members", list[schema.CommunityMember], wanted)

    def set_role(self, who: str, role: str, *, community: str = "") -> schema.CommunityMember:
        """Makes somebody an admin, a member or a guest of a community. Raises NotFound, Usage, Refused."""
        wanted = schema.RoleWanted(who=who, role=role, community=community)
        return self._ask("POST", "/v1/communities/roles", schema.CommunityMember, wanted)

    def remove_member(self, who: str, *, community: str = "") -> schema.CommunityMember:
        """Removes somebody from a community. Raises NotFound, Usage, Refused."""
        wanted = schema.RemovalOfMember(who=who, community=community)
        return self._ask("POST", "/v1/communities/removals", schema.CommunityMember, wanted)

    def leave_community(self, community: str) -> schema.Community:
        """Leaves a community. Raises NotFound, Usage, Refused."""
        wanted = schema.CommunityWanted(community=community)
        return self._ask("POST", "/v1/communities/departures", schema.Community, wanted)

    def set_rules(self, rules: dict[str, str], *, community: str = "") -> schema.Community:
        """Sets rules of a community; without any, tells them. Raises NotFound, Usage, Refused."""
        wanted = schema.RulesWanted(rules=rules, community=community)
        return self._ask("POST", "/v1/communities/rules", schema.Community, wanted)

    def community_log(self, community: str = "", *, last: int = 0) -> list[schema.CommunityAct]:
        """What was done in a community, in order, with what had no effect and why; the last acts, or all.

        Raises NotFound, Usage.
        """
        wanted = schema.LogWanted(community=community, last=last)
        return self._ask("POST", "/v1/communities/log", list[schema.CommunityAct], wanted)

    def expose(self, wanted: schema.ExposureWanted) -> schema.Exposure:
        """Lets others reach a service of this machine. Raises Usage, NotFound, Busy."""
        return self._ask("POST", "/v1/exposures", schema.Exposure, wanted)

    def exposures(self) -> list[schema.Exposure]:
        """The services of this machine that others may reach, by name."""
        return self._ask("GET", "/v1/exposures", list[schema.Exposure])

    def unexpose(self, name: str) -> schema.Exposure:
        """Ends a service for others, and their connections to it. Raises NotFound."""
        return self._ask("DELETE", f"/v1/exposures/{quote(name, safe='')}", schema.Exposure)

    def contacts(self) -> list[schema.Contact]:
        """Everybody whom the owner noted, by petname."""
        return self._ask("GET", "/v1/contacts", list[schema.Contact])

    def note(self, wanted: schema.ContactWanted) -> schema.Contact:
        """Notes a person, or changes what is noted. Raises NotFound, Usage, Busy."""
        return self._ask("POST", "/v1/contacts", schema.Contact, wanted)

    def forget(self, who: str) -> schema.Contact:
        """Forgets what is noted of a person. Raises NotFound, Usage."""
        return self._ask("DELETE", f"/v1/contacts/{quote(who, safe='')}", schema.Contact)

    def send(self, wanted: schema.MessageWanted) -> list[schema.Message]:
        """Writes to people or into a room. Raises Usage, NotFound, Refused, Busy."""
        return self._ask("POST", "/v1/messages", list[schema.Message], wanted)

    def messages(self, wanted: schema.MessagesWanted) -> list[schema.Message]:
        """Messages, oldest first. Raises NotFound, Usage."""
        return self._ask("POST", "/v1/messages/found", list[schema.Message], wanted)

    def rooms(self) -> list[schema.Room]:
        """Rooms in which something was written."""
        return self._ask("GET", "/v1/rooms", list[schema.Room])

    def leave_call(self, wanted: schema.LeftCallWanted) -> schema.LeftCall:
        """Leaves a call for whoever offers it. Raises NotFound, TooLarge, Refused, Busy."""
        return self._ask("POST", "/v1/calls/left", schema.LeftCall, wanted)

    def left_calls(self) -> list[schema.LeftCall]:
        """Calls that were left for others, newest first."""
        return self._ask("GET", "/v1/calls/left", list[schema.LeftCall])

    def left_call(self, start: str, wait_s: float = 0.0) -> schema.LeftCall:
        """One, once it is answered or so much time has passed, 25 s at most. Raises NotFound."""
        return self._ask("GET", f"/v1/calls/left/{quote(start, safe='')}?wait_s={wait_s:g}", schema.LeftCall)

    def left_value(self, start: str) -> schema.LeftValue:
        """Its result. Raises NotFound, Unreachable."""
        path = f"/v1/calls/left/{quote(start, safe='')}/value"
        return self._ask("GET", path, schema.LeftValue, timeout_s=STORAGE_TIMEOUT_S)

    def twins(self) -> list[schema.Twin]:
        """The owner of this peer, then everybody known."""
        return self._ask("GET", "/v1/twins", list[schema.Twin])

    def twin(self, who: str) -> schema.Twin:
        """Somebody, as they say themselves and are known here. Raises NotFound, Usage."""
        return self._ask("GET", f"/v1/twins/{quote(who, safe='')}", schema.Twin)

    def say(self, wanted: schema.TwinWanted) -> schema.Twin:
        """What others are told of the owner. Raises Usage, NotFound."""
        return self._ask("POST", "/v1/twins", schema.Twin, wanted)

    def pipelines(self) -> list[schema.Pipeline]:
        """Pipelines of this peer's owner, newest first."""
        return self._ask("GET", "/v1/pipelines", list[schema.Pipeline])

    def pipeline(self, name: str) -> schema.Pipeline:
        """One, by its id or name. Raises NotFound."""
        return self._ask("GET", f"/v1/pipelines/{quote(name, safe='')}", schema.Pipeline)

    def cancel_pipeline(self, name: str) -> schema.Pipeline:
        """Ends a pipeline; what is through stays. Raises NotFound."""
        return self._ask("POST", f"/v1/pipelines/{quote(name, safe='')}/cancellation", schema.Pipeline)

    def forget_pipeline(self, name: str) -> schema.Pipeline:
        """Ends a pipeline if it runs, and drops its results. Raises NotFound."""
        return self._ask("DELETE", f"/v1/pipelines/{quote(name, safe='')}", schema.Pipeline)

    def set_limit(self, wanted: schema.LimitWanted) -> schema.Limit:
        """Sets one more rate limit. Raises Usage, NotFound, Busy."""
        return self._ask("POST", "/v1/limits", schema.Limit, wanted)

    def limits(self) -> list[schema.Limit]:
        """The owner's rate limits, in the order in which they were set."""
        return self._ask("GET", "/v1/limits", list[schema.Limit])

    def remove_limit(self, number: int) -> schema.Limit:
        """Removes a rate limit. Raises NotFound."""
        return self._ask("DELETE", f"/v1/limits/{number}", schema.Limit)

    def devices(self) -> list[schema.Device]:
        """The owner's devices, this one first; revoked ones last."""
        return self._ask("GET", "/v1/devices", list[schema.Device])

    def add_device(self, *, lifetime_s: float = 3600.0) -> schema.Invitation:
        """A line that makes a fresh machine a device of this owner. Raises Refused on a device without the key."""
        wanted = schema.InvitationWanted(lifetime_s=lifetime_s, is_spoken=False)
        return self._ask("POST", "/v1/devices", schema.Invitation, wanted)

    def revoke_device(self, name: str) -> schema.Device:
        """Shuts a device of this owner out for ever. Raises Refused, NotFound, Usage."""
        return self._ask("DELETE", f"/v1/devices/{quote(name, safe='')}", schema.Device)

    def await_twin(self, twin: str) -> None:
        """Waits until the daemon, which starts anew, runs as a device of `twin`. Raises TimedOut."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                if self.status().twin == twin:
                    return
            except Unreachable:
                pass  # between two runs
            if time.monotonic() > deadline:
                raise TimedOut("the peer does not come back as the new device", remedy="See `croft status --log`.")
            time.sleep(0.05)

    def jobs(self) -> list[schema.Job]:
        """Jobs submitted here, newest first."""
        return self._ask("GET", "/v1/jobs", list[schema.Job])

    def job(self, name: str) -> schema.Job:
        """One job, by its id or a durable one's label. Raises NotFound."""
        return self._ask("GET", f"/v1/jobs/{quote(name, safe='')}", schema.Job)

    def cancel_job(self, name: str) -> schema.Job:
        """Ends a durable job; what is done stays. Raises NotFound."""
        return self._ask("POST", f"/v1/jobs/{quote(name, safe='')}/cancellation", schema.Job)

    def forget_job(self, name: str) -> schema.Job:
        """Ends a durable job if it runs, and drops its results. Raises NotFound."""
        return self._ask("DELETE", f"/v1/jobs/{quote(name, safe='')}", schema.Job)

    def settings(self) -> list[schema.Setting]:
        """The daemon's settings, with their origins."""
        return self._ask("GET", "/v1/settings", list[schema.Setting])

    def net(self) -> schema.Net:
        """How this peer is reached, and the ways to the others."""
        return self._ask("GET", "/v1/net", schema.Net)

    def measure(self, peer: str) -> schema.Way:
        """Measures the way to a peer. Raises NotFound, Refused, Unreachable."""
        wanted = schema.MeasureWanted(peer=peer)
        return self._ask("POST", "/v1/net/measurements", schema.Way, wanted, timeout_s=MEASURE_TIMEOUT_S)

    def offers(self) -> list[schema.Offer]:
        """What this peer and others offer."""
        return self._ask("GET", "/v1/offers", list[schema.Offer])

    def offer_relay(self, amount: float, per_client: float | None, to: list[str]) -> schema.Offer:
        """Offers this peer as a relay: bytes per second. Raises Usage, NotFound, Refused."""
        wanted = schema.OfferWanted(amount=amount, per_client=per_client, to=to)
        return self._ask("PUT", "/v1/offers/relay", schema.Offer, wanted)

    def lend(self, wanted: schema.LendWanted) -> schema.Offer:
        """One more offer of this peer. Raises Usage, NotFound, Busy."""
        return self._ask("POST", "/v1/offers", schema.Offer, wanted)

    def withdraw_offer(self, what: str) -> schema.Offer:
        """Takes back `relay`, or an offer by its number. Raises NotFound, Refused for what the settings offer."""
        return self._ask("DELETE", f"/v1/offers/{what}", schema.Offer)

    def capabilities(self) -> list[schema.Capability]:
        """What others let the owner of this peer call, and what this peer offers."""
        return self._ask("GET", "/v1/capabilities", list[schema.Capability])

    def offer_capability(self, wanted: schema.CapabilityWanted) -> schema.Capability:
        """Lets others call something. Raises Usage, NotFound, Busy."""
        return self._ask("POST", "/v1/capabilities", schema.Capability, wanted)

    def withdraw_capability(self, name: str) -> schema.Capability:
        """Lets nobody call it any more. Raises NotFound."""
        return self._ask("DELETE", f"/v1/capabilities/{quote(name, safe='')}", schema.Capability)

    def consent_rules(self) -> list[schema.ConsentRule]:
        """The owner's rules of consent, as they are tried."""
        return self._ask("GET", "/v1/consent", list[schema.ConsentRule])

    def set_consent(self, wanted: schema.ConsentWanted) -> schema.ConsentRule:
        """One more rule, in place of the one about the same. Raises Usage, NotFound, Busy."""
        return self._ask("POST", "/v1/consent", schema.ConsentRule, wanted)

    def remove_consent(self, number: int) -> schema.ConsentRule:
        """Removes a rule. Raises NotFound."""
        return self._ask("DELETE", f"/v1/consent/{number}", schema.ConsentRule)

    def consent_queue(self) -> list[schema.ConsentQuestion]:
        """Calls that wait until the owner says whether they may run, oldest first."""
        return self._ask("GET", "/v1/consent/queue", list[schema.ConsentQuestion])

    def answer_question(self, number: int, *, is_allowed: bool, always: bool = False) -> schema.ConsentQuestion:
        """Says whether a call may run. Raises NotFound."""
        answer = schema.ConsentAnswer(is_allowed=is_allowed, always=always)
        return self._ask("POST", f"/v1/consent/queue/{number}", schema.ConsentQuestion, answer)

    def acts(self, wanted: schema.AuditWanted) -> list[schema.Act]:
        """What others did here, oldest first. Raises NotFound, Usage."""
        return self._ask("POST", "/v1/audit", list[schema.Act], wanted)

    def verify_audit(self) -> schema.AuditState:
        """Whether the log of that is as this peer left it."""
        return self._ask("GET", "/v1/audit/verification", schema.AuditState)

    def find_provider(self, name: str) -> str:
        """The id of the peer, or of the person, that a name means. Raises NotFound, Usage."""
        return find_provider(self.contacts(), self.peers(), name)

    def leases(self) -> list[schema.Lease]:
        """What others hold of this peer, then what they held, newest first."""
        return self._ask("GET", "/v1/leases", list[schema.Lease])

    def files(self, wanted: schema.FilesWanted) -> list[schema.StoredFile]:
        """Stored files by name. Raises Refused on a device without the owner's key."""
        return self._ask("POST", "/v1/storage/files", list[schema.StoredFile], wanted, timeout_s=STORAGE_TIMEOUT_S)

    def remove_files(self, wanted: schema.RemovalWanted) -> schema.FilesRemoved:
        """Removes a stored file, or a folder of them. Raises NotFound, Usage."""
        return self._ask("POST", "/v1/storage/removals", schema.FilesRemoved, wanted, timeout_s=STORAGE_TIMEOUT_S)

    def backups(self) -> list[backup_schema.Backup]:
        """Every backup of the owner, those of this device first."""
        return self._ask("GET", "/v1/backups", list[backup_schema.Backup], timeout_s=STORAGE_TIMEOUT_S)

    def add_backup(self, wanted: backup_schema.BackupWanted) -> backup_schema.Backup:
        """One more backup of this device. Raises Usage, NotFound, Busy, Refused."""
        return self._ask("POST", "/v1/backups", backup_schema.Backup, wanted, timeout_s=STORAGE_TIMEOUT_S)

    def change_backup(self, wanted: backup_schema.BackupChange) -> backup_schema.Backup:
        """Changes a backup of this device. Raises Usage, NotFound, Refused."""
        return self._ask("POST", "/v1/backups/changed", backup_schema.Backup, wanted, timeout_s=STORAGE_TIMEOUT_S)

    def adopt_backup(self, wanted: backup_schema.BackupAdoption) -> backup_schema.Backup:
        """Goes on with the backup of a device that is gone. Raises NotFound, Usage, Busy, Refused."""
        return self._ask("POST", "/v1/backups/adopted", backup_schema.Backup, wanted, timeout_s=PRUNE_TIMEOUT_S)

    def remove_backup(self, name: str) -> backup_schema.BackupRemoved:
        """Drops a backup with all that is stored. Raises NotFound, Busy, Refused."""
        wanted = backup_schema.BackupNamed(name=name)
        return self._ask("POST", "/v1/backups/removed", backup_schema.BackupRemoved, wanted, timeout_s=PRUNE_TIMEOUT_S)

    def backup_snapshots(self, name: str) -> list[backup_schema.BackupSnapshot]:
        """The snapshots of a backup, oldest first. Raises NotFound."""
        wanted, path = backup_schema.BackupNamed(name=name), "/v1/backups/snapshots"
        return self._ask("POST", path, list[backup_schema.BackupSnapshot], wanted, timeout_s=STORAGE_TIMEOUT_S)

    def prune_backup(self, name: str) -> backup_schema.BackupPruned:
        """Forgets the snapshots that the policy lets go, and frees what only they needed. Raises NotFound, Busy."""
        wanted = backup_schema.BackupNamed(name=name)
        return self._ask("POST", "/v1/backups/pruned", backup_schema.BackupPruned, wanted, timeout_s=PRUNE_TIMEOUT_S)

    def collect(self) -> schema.FilesRemoved:
        """Has holders drop what no stored file needs."""
        return self._ask("POST", "/v1/storage/collections", schema.FilesRemoved, timeout_s=STORAGE_TIMEOUT_S)

    def roll_back(self, wanted: schema.RollbackWanted) -> schema.StoredFile:
        """Makes an earlier version of a stored file the newest one again. Raises NotFound."""
        return self._ask("POST", "/v1/storage/rollbacks", schema.StoredFile, wanted, timeout_s=STORAGE_TIMEOUT_S)

    def snapshots(self) -> list[schema.Snapshot]:
        """Names under which the stored files are kept as they were."""
        return self._ask("GET", "/v1/storage/snapshots", list[schema.Snapshot], timeout_s=STORAGE_TIMEOUT_S)

    def take_snapshot(self, name: str) -> list[schema.Snapshot]:
        """Keeps the stored files as they are now under a name. Raises Refused, Usage."""
        wanted = schema.SnapshotWanted(name=name)
        return self._ask("POST", "/v1/storage/snapshots", list[schema.Snapshot], wanted, timeout_s=STORAGE_TIMEOUT_S)

    def drop_snapshot(self, name: str) -> list[schema.Snapshot]:
        """Forgets a snapshot. Raises NotFound, Usage."""
        wanted = schema.SnapshotWanted(name=name)
        path = "/v1/storage/snapshots/dropped"
        return self._ask("POST", path, list[schema.Snapshot], wanted, timeout_s=STORAGE_TIMEOUT_S)

    def recover_files(self) -> schema.Recovered:
        """Takes in what peers hold for this twin, on a machine that is new."""
        return self._ask("POST", "/v1/storage/recoveries", schema.Recovered, timeout_s=STORAGE_TIMEOUT_S)

    def links(self) -> list[schema.FileLink]:
        """Links to stored files that were made here."""
        return self._ask("GET", "/v1/storage/links", list[schema.FileLink], timeout_s=STORAGE_TIMEOUT_S)

    def make_link(self, wanted: schema.LinkWanted) -> schema.FileLink:
        """Lets others read stored files. Raises NotFound, Usage."""
        return self._ask("POST", "/v1/storage/links", schema.FileLink, wanted, timeout_s=STORAGE_TIMEOUT_S)

    def rebalance_storage(self, wanted: schema.RebalanceWanted) -> schema.Rebalanced:
        """Moves shares to where they belong now, within bounds. Raises Refused."""
        return self._ask("POST", "/v1/storage/rebalances", schema.Rebalanced, wanted, timeout_s=STORAGE_TIMEOUT_S)

    def verify_link(self, wanted: schema.VerificationWanted) -> schema.LinkVerified:
        """What holders prove of all behind a link. Raises Refused, NotFound, Unreachable."""
        return self._ask("POST", "/v1/storage/links/verified", schema.LinkVerified, wanted, timeout_s=STORAGE_TIMEOUT_S)

    def revoke_link(self, link: str) -> schema.FileLink:
        """Has a link lead to nothing any more. Raises NotFound, Unreachable."""
        wanted = schema.LinkNamed(link=link)
        return self._ask("POST", "/v1/storage/links/revoked", schema.FileLink, wanted, timeout_s=STORAGE_TIMEOUT_S)

    def check_storage(self) -> schema.StorageState:
        """Asks all holders of stored files now, has them prove what they say, and makes lost shares again."""
        return self._ask("POST", "/v1/storage/checks", schema.StorageState, timeout_s=STORAGE_TIMEOUT_S)

    def storage(self) -> schema.StorageState:
        """How the stored files stand."""
        return self._ask("GET", "/v1/storage", schema.StorageState, timeout_s=STORAGE_TIMEOUT_S)

    def pause(self, for_s: float | None) -> schema.Lending:
        """Lends nothing for so many seconds, or until `resume`."""
        return self._ask("POST", "/v1/pause", schema.Lending, schema.PauseWanted(for_s=for_s))

    def resume(self) -> schema.Lending:
        """Lends again."""
        return self._ask("DELETE", "/v1/pause", schema.Lending)

    def stop(self) -> None:
        """Asks the daemon to end."""
        self._ask("POST", "/v1/stop", dict[str, str])

    def _ask(self, method: str, path: str, kind: type[T], wanted: object = None, timeout_s: float = TIMEOUT_S) -> T:
        connection = _UnixConnection(self._socket, timeout_s)
        body = b"" if wanted is None else msgspec.json.encode(wanted)
        try:
            connection.request(method, path, body=body, headers={"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        except (FileNotFoundError, ConnectionRefusedError):
            raise not_running() from None
        except PermissionError:
            raise Unreachable(
                f"the daemon's socket {self._socket} belongs to another user",
                remedy="Run as the user who ran `croft up`, or set CROFT_HOME to a home of your own.",
            ) from None
        except TimeoutError:
            raise Unreachable(
                f"the daemon gave no answer within {timeout_s:g} s", remedy="See its log: `croft status --log`."
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"the daemon ended while it was asked: {error}", remedy="Start it: `croft up`.") from None
        finally:
            connection.close()
        if response.status != 200:
            raise _error(answer)
        return msgspec.json.decode(answer, type=kind)


def not_running() -> Unreachable:
    """What to say when there is no daemon."""
    return Unreachable("the peer is not running", remedy="Start it with `croft up`.")


def _error(answer: bytes) -> CroftError:
    try:
        failure = msgspec.json.decode(answer, type=schema.Failure)
    except msgspec.MsgspecError:
        return CroftError("the daemon failed on this request", remedy="See its log: `croft status --log`.")
    error = by_code(failure.code, failure.message, failure.remedy)
    error.exit_code = failure.exit_code
    return error
