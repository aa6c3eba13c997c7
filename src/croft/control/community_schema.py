"""What the local API answers about communities."""

from __future__ import annotations

import msgspec


class Community(msgspec.Struct, frozen=True, kw_only=True):
    """A community that this peer is in.

    `members`: people, or for `croft status` their devices. `role`: the owner's: founder, admin, member or guest.
    `invite`: who may invite: founders, admins or members. `text`: what its admins tell members. `digest`: equal on two
    peers that know the same.
    """

    community: str
    name: str
    members: int
    role: str = ""
    invite: str = ""
    text: str = ""
    digest: str = ""


class CommunityMember(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody in a community. `devices`: what theirs are called here, as far as they are known."""

    twin: str
    name: str
    role: str
    devices: list[str]
    is_self: bool


class CommunityAct(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody did in a community.

    `act`: create, admit, role, remove, rule or leave; `subject`: a name or a rule; `value`: the role, or what the rule
    says; `at`: Unix seconds, by the author's clock. `why_not`: why it has no effect; empty if it counts. `is_refused`:
    it was not even kept, and only this peer tells of it.
    """

    id: str
    at: float
    author: str
    author_twin: str
    act: str
    subject: str
    value: str
    why_not: str
    is_refused: bool = False


class CommunityWanted(msgspec.Struct, frozen=True, kw_only=True):
    """A name for a new community, or the name or id of one; empty: the only one."""

    community: str = ""


class LogWanted(msgspec.Struct, frozen=True, kw_only=True):
    """The log of which community, and how many of the last acts; 0: all."""

    community: str = ""
    last: int = 0


class RoleWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to make what: admin, member or guest."""

    who: str
    role: str
    community: str = ""


class RemovalOfMember(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to remove."""

    who: str
    community: str = ""


class RulesWanted(msgspec.Struct, frozen=True, kw_only=True):
    """Rules to set, by name."""

    rules: dict[str, str]
    community: str = ""
