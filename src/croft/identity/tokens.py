"""Biscuit tokens of one signed block that holds facts and at most one expiry, and nothing to compute.

Biscuit is a small logic language; a token from a stranger is a program. So only blocks in the form that `make_token`
writes are evaluated, and evaluation is then short. Source: Eclipse Biscuit 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from biscuit_auth import (
    Algorithm,
    AuthorizationError,
    AuthorizerBuilder,
    Biscuit,
    BiscuitBuilder,
    BiscuitValidationError,
    DataLogError,
    PrivateKey,
    PublicKey,
    Rule,
)

from croft.identity.keys import SecretKey

TOKEN_BYTES_MAX: Final = 2_048
TOKENS_KEPT: Final = 512
"""Valid ones that are remembered: a member shows the same chain with each descriptor and each hello."""
EVALUATION_MAX: Final = timedelta(seconds=2)
"""Biscuit's own limit is one millisecond of wall time, and would refuse good tokens on a busy machine."""
EXPIRY: Final = "check if time($t), $t < {expiry};"
"""Datalog to add to a token that is to end at `expiry`."""
_DATE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
_FACT = rf'[a-z_]+\((?:"[0-9a-z]*"|hex:[0-9a-f]*|true|false|{_DATE})\);\n'
_BLOCK: Final = re.compile(rf"(?:{_FACT})*(?:check if time\(\$t\), \$t < (?P<expiry>{_DATE});\n)?")


class TokenInvalid(Exception):
    """Not signed by that key, changed since, or of another form than ours."""


class TokenExpired(TokenInvalid):
    """Signed and whole, but its time is over."""


def make_token(key: SecretKey, datalog: str, values: Mapping[str, object]) -> bytes:
    """A token that `key` signs. `datalog` is facts of one term each, and EXPIRY if it is to expire."""
    token = BiscuitBuilder(datalog, dict(values)).build(_private(key.raw))
    assert _BLOCK.fullmatch(token.block_source(0)), "a token that nobody would read"
    return bytes(token.to_bytes())


def read_token(token: bytes, signer: str, facts: Mapping[str, type], now: float | None = None) -> list[Any]:
    """The term of each of `facts`, which must occur once and be of that type.

    Args:
        signer: the public key in hex. now: Unix seconds, to hold against the expiry; None not to.

    Raises:
        TokenInvalid, TokenExpired.
    """
    if len(token) > TOKEN_BYTES_MAX:
        raise TokenInvalid(f"{len(token)} bytes, limit is {TOKEN_BYTES_MAX}")
    terms, expiry = _opened(token, signer, tuple(facts.items()))
    if now is not None and expiry is not None and datetime.fromtimestamp(now // 1, UTC) >= expiry:
        raise TokenExpired
    return list(terms)


@lru_cache(TOKENS_KEPT)
def _opened(token: bytes, signer: str, facts: tuple[tuple[str, type], ...]) -> tuple[tuple[Any, ...], datetime | None]:
    """The terms, and until when the token holds. Raises TokenInvalid; what is raised is not remembered."""
    names = ", ".join(f"${name}" for name, _ in facts)
    body = ", ".join(f"{name}(${name})" for name, _ in facts)
    try:
        biscuit = Biscuit.from_bytes(token, _public(bytes.fromhex(signer)))
        block = _BLOCK.fullmatch(biscuit.block_source(0)) if biscuit.block_count() == 1 else None
        if block is None:
            raise TokenInvalid("it holds more than facts")
        # Protobuf skips fields it does not know, outside of what is signed.
        if bytes(biscuit.to_bytes()) != token:
            raise TokenInvalid("it is not written as it was made")
        authorizer = _patient("allow if true;").build(biscuit)
        found: list[Any] = authorizer.query(Rule(f"read({names}) <- {body}"))
    except (AuthorizationError, BiscuitValidationError, DataLogError, ValueError) as error:
        raise TokenInvalid(str(error)) from None
    terms: tuple[Any, ...] = tuple(found[0].terms) if len(found) == 1 else ()
    if [type(term) for term in terms] != [kind for _, kind in facts]:
        raise TokenInvalid("it does not say what it should")
    return terms, None if block["expiry"] is None else datetime.fromisoformat(block["expiry"])


def token_date(at: float) -> datetime:
    """Unix seconds as a token says them: in whole ones, rounded up, so that nothing ends early."""
    return datetime.fromtimestamp(-(-at // 1), UTC)


# The stubs of the wheel lag behind it: they know neither the algorithm's name and argument, nor the limits.
_ED25519: Final[Any] = Algorithm.Ed25519  # type: ignore[attr-defined]


def _private(raw: bytes) -> PrivateKey:
    return PrivateKey.from_bytes(raw, _ED25519)  # type: ignore[call-arg]


def _public(raw: bytes) -> PublicKey:
    return PublicKey.from_bytes(raw, _ED25519)  # type: ignore[call-arg]


def _patient(datalog: str) -> AuthorizerBuilder:
    builder: Any = AuthorizerBuilder(datalog)
    limits = builder.limits()
    limits.max_time = EVALUATION_MAX
    builder.set_limits(limits)
    patient: AuthorizerBuilder = builder
    return patient
