"""How much of a machine: an amount for each of its resources, under the names that people write in offers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

CPU: Final = "cpu"
"""Processors, each a slot in which one task at a time runs."""
MEMORY: Final = "mem"
"""Bytes."""
DISK: Final = "disk"
"""Bytes."""
BOX: Final = "box"
"""Boxes; every lease takes one, so that their number is bounded."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """An amount of each of some resources, in whole units; of all others there is none. Make one by `of`."""

    pairs: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, amounts: Mapping[str, int]) -> Amounts:
        """These amounts; those of zero are left out."""
        return cls(tuple(sorted((name, amount) for name, amount in amounts.items() if amount)))

    def __getitem__(self, name: str) -> int:
        return next((amount for known, amount in self.pairs if known == name), 0)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.pairs)

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts.of({name: self[name] + other[name] for name in {*self, *other}})

    def __sub__(self, other: Amounts) -> Amounts:
        """May go below zero, where more is held than is offered."""
        return Amounts.of({name: self[name] - other[name] for name in {*self, *other}})

    def with_(self, **amounts: int) -> Amounts:
        """The same with some amounts in the place of others."""
        return Amounts.of({**dict(self.pairs), **amounts})

    def lacking(self, wanted: Amounts) -> tuple[str, ...]:
        """The names of which `wanted` asks for more than there is; none: it fits."""
        return tuple(name for name, amount in wanted.pairs if amount > max(0, self[name]))

    def least(self, other: Amounts) -> Amounts:
        """The smaller one of each."""
        return Amounts.of({name: min(self[name], other[name]) for name in {*self, *other}})

    def most(self, other: Amounts) -> Amounts:
        """The larger one of each."""
        return Amounts.of({name: max(self[name], other[name]) for name in {*self, *other}})


def show_amount(name: str, amount: int) -> str:
    """ "2 processors", "1.5 GiB of memory", "1 camera": for people."""
    match name:
        case "cpu":
            return f"{amount} processor{'' if amount == 1 else 's'}"
        case "box":
            return f"{amount} box{'' if amount == 1 else 'es'}"
        case "mem" | "disk":
            return f"{_show_bytes(amount)} of {'memory' if name == MEMORY else 'disk'}"
        case _:
            return f"{amount} {name}"


def show_part(name: str, part: int, amount: int) -> str:
    """ "1 of 2 processors", "256 MiB of 1.5 GiB of memory": for people."""
    return f"{_show_bytes(part) if name in (MEMORY, DISK) else part} of {show_amount(name, amount)}"


def _show_bytes(amount: int) -> str:
    return f"{amount / (1 << 30):.1f} GiB" if amount >= 1 << 30 else f"{amount >> 20} MiB"
