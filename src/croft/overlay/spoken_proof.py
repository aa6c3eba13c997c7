"""The proof by which two peers show each other that they know the same spoken code, without telling it.

SPAKE2 (RFC 9382, in the variant of the `spake2` library) over Ed25519, its identities bound to both peers' keys,
then one confirmation each way that covers the community and the joiner's certificate. Whoever stands between two
peers has keys of its own, so the confirmations it could pass on are of other identities and fail. A listener
learns nothing to try words against; a peer that guesses learns one bit per guess.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any, Final

from blake3 import blake3
from spake2 import SPAKE2_A, SPAKE2_B

from croft.errors import PeerMisbehaved
from croft.model.ids import CommunityId, PeerId
from croft.overlay.invitation_code import SpokenCode
from croft.wire.codec import encode

MESSAGE_BYTES: Final = 33
SEED_BYTES: Final = 32
SEED_CONTEXT: Final = "croft spoken code SPAKE2 scalar v1"
KEY_CONTEXT: Final = "croft spoken code confirmation key v1"
STEP: Final = "spoken code"


class _Side:
    def __init__(self, side: Any, code: SpokenCode, joiner: PeerId, inviter: PeerId, seed: bytes) -> None:
        assert len(seed) == SEED_BYTES, "the scalar needs a seed of full strength"
        self._nameplate = code.nameplate
        self._joiner = joiner
        self._inviter = inviter
        self._exchange = side(str(code).encode(), idA=joiner.encode(), idB=inviter.encode(), entropy_f=_stream(seed))
        self.message: bytes = self._exchange.start()
        self._key = b""

    def finish(self, message: bytes) -> None:
        """Takes the other side's message. Raises PeerMisbehaved if it is none."""
        if len(message) != MESSAGE_BYTES:
            raise PeerMisbehaved(f"a SPAKE2 message of {len(message)} bytes", step=STEP)
        try:
            secret: bytes = self._exchange.finish(message)
        except Exception as error:
            # The library raises plain exceptions and failed assertions for points that are none.
            raise PeerMisbehaved(f"not a SPAKE2 message: {type(error).__name__}", step=STEP) from None
        self._key = blake3(secret, derive_key_context=KEY_CONTEXT).digest()

    def _confirmation(self, who: str, community: CommunityId, certificate: bytes) -> bytes:
        assert self._key, "the exchange comes before the confirmation"
        said = encode((who, self._joiner, self._inviter, self._nameplate, community, certificate))
        return blake3(said, key=self._key).digest()


class JoinerProof(_Side):
    """The joiner's side. `message` is its first one."""

    def __init__(self, code: SpokenCode, joiner: PeerId, inviter: PeerId, seed: bytes) -> None:
        super().__init__(SPAKE2_A, code, joiner, inviter, seed)

    def confirmation(self, community: CommunityId, certificate: bytes) -> bytes:
        """Shows that this side knows the code."""
        return self._confirmation("joiner", community, certificate)

    def is_confirmed(self, confirmation: bytes, community: CommunityId, certificate: bytes) -> bool:
        """Whether the inviter knows the code."""
        return hmac.compare_digest(confirmation, self._confirmation("inviter", community, certificate))


class InviterProof(_Side):
    """The inviter's side. `message` is its answer."""

    def __init__(self, code: SpokenCode, joiner: PeerId, inviter: PeerId, seed: bytes) -> None:
        super().__init__(SPAKE2_B, code, joiner, inviter, seed)

    def confirmation(self, community: CommunityId, certificate: bytes) -> bytes:
        """Shows that this side knows the code. Only for a joiner that has shown so first."""
        return self._confirmation("inviter", community, certificate)

    def is_confirmed(self, confirmation: bytes, community: CommunityId, certificate: bytes) -> bool:
        """Whether the joiner knows the code."""
        return hmac.compare_digest(confirmation, self._confirmation("joiner", community, certificate))


def _stream(seed: bytes) -> Callable[[int], bytes]:
    """What `spake2` draws its one scalar from."""

    def draw(size_bytes: int) -> bytes:
        return blake3(seed, derive_key_context=SEED_CONTEXT).digest(length=size_bytes)

    return draw
