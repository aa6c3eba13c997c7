"""A stored file that is an argument of a task."""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3


@dataclass(frozen=True, slots=True)
class StoredArgument:
    """One version of a stored file, for tasks: `grid.submit(f, grid.storage.file("photos/a.jpg"))`.

    The task is given it as a file that is open for reading. Made by `StoredFiles.file`.
    """

    name: str
    size: int
    name_bytes: bytes
    number: int
    at: float
    """When it was put."""

    @property
    def digest(self) -> bytes:
        """What stands for this version among the buffers of tasks."""
        named = f"{self.name_bytes.hex()}/{self.number}/{self.at}"
        return blake3(named.encode(), derive_key_context="croft stored file as an argument").digest()
