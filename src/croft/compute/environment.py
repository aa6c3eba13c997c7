"""Says what the Python environment of a job is, and which of its wheels fit a machine.

An environment is a list of wheels by BLAKE3. A distribution may stand there as several wheels, for different
platforms: each lender takes the best that fits it. Sans-IO.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from blake3 import blake3

from croft.errors import PeerMisbehaved, Refused, TooLarge
from croft.wire.codec import Message, encode

WHEELS_MAX = 1_000
WHEEL_BYTES_MAX = 2 << 30
WHEEL_NAME_LENGTH_MAX = 200
DIGEST_BYTES = 32
TAGS_SHOWN_MAX = 3
WHEEL_NAME = re.compile(r"[A-Za-z0-9._]+-[A-Za-z0-9._+!]+(-\d[A-Za-z0-9._]*)?-[a-z0-9_.]+-[a-z0-9_.]+-[a-z0-9_.]+\.whl")
"""PEP 427, as builders write it."""


class Wheel(Message, frozen=True):
    """A wheel by its file name, its size in bytes and the BLAKE3 digest of its bytes."""

    name: str
    size: int
    digest: bytes


class Environment(Message, frozen=True):
    """The wheels that a job's code imports from, and for which Python, `3.12`, they were put together."""

    python: str
    wheels: Sequence[Wheel]

    @property
    def digest(self) -> bytes:
        """Of all that it says: what two peers mean when they speak of the same one."""
        return blake3(encode(self)).digest()


def distribution_of(name: str) -> str:
    """The distribution that a wheel of that file name installs, normalised (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.partition("-")[0]).lower()


def tags_of(name: str) -> Iterator[str]:
    """What a wheel of that file name runs on, as `cp312-cp312-manylinux_2_17_x86_64`."""
    parts = name.removesuffix(".whl").split("-")[-3:]
    return map("-".join, itertools.product(*(part.split(".") for part in parts)))


def check_sound(environment: Environment) -> None:
    """Raises PeerMisbehaved for an environment that no peer of ours describes."""
    wheels = environment.wheels
    if not 0 < len(wheels) <= WHEELS_MAX or len({wheel.name for wheel in wheels}) < len(wheels):
        raise PeerMisbehaved(f"an environment of {len(wheels)} wheels, or one twice", step="opening")
    for wheel in wheels:
        is_named = len(wheel.name) <= WHEEL_NAME_LENGTH_MAX and WHEEL_NAME.fullmatch(wheel.name)
        if not is_named or len(wheel.digest) != DIGEST_BYTES or not 0 < wheel.size <= WHEEL_BYTES_MAX:
            raise PeerMisbehaved("an environment with an impossible wheel", step="opening")


def fitting(environment: Environment, python: str, tags: Mapping[str, int], bytes_max: int) -> list[Wheel]:
    """One wheel of each distribution, by name. `tags` are those that this machine takes, best first, by rank.

    Raises:
        Refused: the Python is another one, or a distribution has no wheel for this machine; says which.
        TooLarge: they take more than `bytes_max`.
    """
    if environment.python != python:
        raise Refused(
            f"this peer runs Python {python}, the environment is made for Python {environment.python}",
            remedy="Wheels and functions are made for one minor version; use peers with the same Python.",
        )
    choices: dict[str, list[Wheel]] = {}
    for wheel in environment.wheels:
        choices.setdefault(distribution_of(wheel.name), []).append(wheel)
    chosen: list[Wheel] = []
    for name, wheels in sorted(choices.items()):
        ranked = [(rank, wheel.name, wheel) for wheel in wheels if (rank := _rank(wheel, tags)) is not None]
        if not ranked:
            made_for = sorted({tag for wheel in wheels for tag in tags_of(wheel.name)})
            more = f" and {len(made_for) - TAGS_SHOWN_MAX} more" if len(made_for) > TAGS_SHOWN_MAX else ""
            raise Refused(
                f"{name} is there as a wheel for {', '.join(made_for[:TAGS_SHOWN_MAX])}{more}, "
                f"this peer takes {next(iter(tags), 'none')} and what is like it",
                remedy=f"Add a wheel of {name} for such peers: see `pip download --platform`.",
            )
        chosen.append(min(ranked)[2])
    total = sum(wheel.size for wheel in chosen)
    if total > bytes_max:
        raise TooLarge(
            f"the environment takes {total:,} bytes, this peer keeps at most {bytes_max:,}",
            remedy="Its owner may change the setting `environments.cache`.",
        )
    return chosen


def digest_of(wheels: Sequence[Wheel], python: str) -> bytes:
    """By which a built environment is known: what is in it depends on nothing else."""
    return blake3(b"".join([python.encode(), *(wheel.digest for wheel in wheels)])).digest()


def _rank(wheel: Wheel, tags: Mapping[str, int]) -> int | None:
    return min((tags[tag] for tag in tags_of(wheel.name) if tag in tags), default=None)
