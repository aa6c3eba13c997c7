"""The pass by which somebody who is no member yet reaches one member through a relay, to be let in by it.

Whoever makes an invitation signs a pass for each relay that it can be reached by, and puts it into the invitation's
line. It says which relay, until when, and who signed. The relay lets its bearer talk to the signer and to nobody else,
binds it to the first key that shows it, and cuts that key when the pass expires. It is no invitation: it crosses the
wire of an http relay in the clear, and whoever reads it there gains the way to a peer that will refuse it.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from croft.errors import PeerMisbehaved
from croft.identity.keys import SecretKey
from croft.wire.codec import Message
from croft.wire.envelope import open_signed, sign

PASS_KIND: Final = "relay pass"
PASS_CHARS_MAX: Final = 600
LIFETIME_S_MAX: Final = 31 * 86_400.0
"""What an invitation may last, and a day for clocks that differ."""
STEP: Final = "relay pass"


class PassContent(Message, frozen=True):
    """Lets its bearer use the relay of the peer `relay` until `expires_at` (Unix seconds), to reach the signer."""

    relay: bytes
    invitation: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class RelayPass:
    """A pass whose signature holds. `relay` and `host` are device keys."""

    relay: bytes
    host: bytes
    invitation: str
    expires_at: float


def make_pass(host: SecretKey, relay: bytes, invitation: str, expires_at: float) -> str:
    """The text of a pass to reach `host` through the relay of the device `relay`."""
    record = sign(host.signer, PASS_KIND, PassContent(relay, invitation, expires_at))
    return base64.urlsafe_b64encode(record).decode().rstrip("=")


def open_pass(text: str, now: float) -> RelayPass:
    """What a pass says. Raises PeerMisbehaved unless it is one, signed, and good at Unix time `now`."""
    if len(text) > PASS_CHARS_MAX:
        raise PeerMisbehaved("a pass that is too long", step=STEP)
    try:
        record = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise PeerMisbehaved("that is no pass", step=STEP) from None
    host, content = open_signed(record, PASS_KIND, PassContent, step=STEP)
    if not now < content.expires_at <= now + LIFETIME_S_MAX:
        raise PeerMisbehaved("a pass that has expired, or lasts too long", step=STEP)
    return RelayPass(content.relay, bytes.fromhex(host), content.invitation, content.expires_at)
