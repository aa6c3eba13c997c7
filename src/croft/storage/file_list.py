"""The owner's files by name: a sorted tree whose nodes end where names say so (a prolly tree, as in Noms and Dolt).

Equal lists are equal trees, whatever came in which order; a change touches one leaf and the branches above it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

from blake3 import blake3

from croft.errors import Failed
from croft.storage.formats import FORMAT, Branch, Child, Content, Entry, Leaf, Node
from croft.storage.sealing import derive
from croft.wire.codec import encode

T = TypeVar("T")

NODE_ENTRIES_MAX: Final = 256
END_BITS: Final = 0x3F
TOP_BYTES_MAX: Final = 24 << 10
"""More than this at the top, and there is another level below it."""
LEVELS_MAX: Final = 8

Load = Callable[[Child], Awaitable[Node]]
Store = Callable[[Sequence[bytes]], Awaitable[list[Content]]]


def ends_node(level: int, name: bytes) -> bool:
    """Whether a node ends after this name, whatever else is in it."""
    return blake3(bytes([level]) + name).digest()[-1] & END_BITS == 0


def cut(level: int, items: Sequence[T], name_of: Callable[[T], bytes]) -> list[list[T]]:
    """The nodes of a level that hold these, which are in order."""
    nodes: list[list[T]] = [[]]
    for item in items:
        nodes[-1].append(item)
        if len(nodes[-1]) == NODE_ENTRIES_MAX or ends_node(level, name_of(item)):
            nodes.append([])
    return [node for node in nodes if node]


class FileList:
    """One state of the list; `updated` makes the next one. `secret`: by which nodes are known to their owner."""

    def __init__(self, secret: bytes, leaves: Sequence[Child], branches: Mapping[bytes, Child], top: Sequence[Child]):
        self._digest_key = derive(secret, "node digest")
        self._secret = secret
        self.leaves = list(leaves)
        self.branches = dict(branches)
        self.top = list(top)

    @classmethod
    async def open(cls, secret: bytes, top: Sequence[Child], load: Load) -> FileList:
        """The list under a root; its branches are read. Raises Unreachable, Failed."""
        level, branches = list(top), dict[bytes, Child]()
        for _ in range(LEVELS_MAX):
            nodes = [await load(child) for child in level[:1]]
            if not nodes or isinstance(nodes[0], Leaf):
                return cls(secret, level, branches, top)
            branches.update((child.digest, child) for child in level)
            below: list[Child] = []
            for child in level:
                node = await load(child)
                if not isinstance(node, Branch):
                    raise _damaged()
                below += node.children
            level = below
        raise _damaged()

    @property
    def nodes(self) -> list[Child]:
        """Every node."""
        return [*self.branches.values(), *self.leaves]

    async def entries(self, load: Load, prefix: bytes = b"") -> AsyncIterator[Entry]:
        """Those whose name begins so, in order. Raises Unreachable, Failed."""
        firsts = [leaf.first for leaf in self.leaves]
        for leaf in self.leaves[max(0, bisect_right(firsts, prefix) - 1) :]:
            if leaf.first > prefix and not leaf.first.startswith(prefix):
                return
            for entry in await _entries(leaf, load):
                if entry.name.startswith(prefix):
                    yield entry

    async def entries_of(self, load: Load, leaf: Child) -> list[Entry]:
        """Those of one leaf. Raises Unreachable, Failed."""
        return await _entries(leaf, load)

    async def find(self, load: Load, name: bytes) -> Entry | None:
        """The entry of this very name. Raises Unreachable, Failed."""
        at = bisect_right([leaf.first for leaf in self.leaves], name) - 1
        entries = await _entries(self.leaves[at], load) if at >= 0 else []
        return next((entry for entry in entries if entry.name == name), None)

    async def updated(self, changes: Mapping[bytes, Entry | None], load: Load, store: Store) -> FileList:
        """The list with these entries in the place of those of their names; None: without. Raises CroftError."""
        leaves = await self._stored(0, await self._changed_leaves(changes, load), {}, store)
        known = {**self.branches}
        level, branches, top = 0, dict[bytes, Child](), leaves
        while len(top) > 1 and len(encode(top)) > TOP_BYTES_MAX:
            level += 1
            plans: list[Child | Node] = [
                Branch(FORMAT, children) for children in cut(level, top, lambda child: child.first)
            ]
            if len(plans) == len(top):
                break  # every name ends a node: another level would not make it smaller
            top = await self._stored(level, plans, known, store)
            branches.update((child.digest, child) for child in top)
        return FileList(self._secret, leaves, branches, top)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _changed_leaves(self, changes: Mapping[bytes, Entry | None], load: Load) -> list[Child | Node]:
        firsts = [leaf.first for leaf in self.leaves]
        names = sorted(changes)
        plan: list[Child | Node] = []
        kept, at = 0, 0
        while at < len(names):
            end = max(kept, bisect_right(firsts, names[at]) - 1, 0)
            plan += self.leaves[kept:end]
            entries: dict[bytes, Entry] = {}
            while True:
                if end < len(self.leaves):
                    entries.update((entry.name, entry) for entry in await _entries(self.leaves[end], load))
                    end += 1
                while at < len(names) and (end >= len(self.leaves) or names[at] < firsts[end]):
                    change = changes[names[at]]
                    entries.pop(names[at], None)
                    if change is not None:
                        entries[names[at]] = change
                    at += 1
                # Where a node ended by its size, or ends no more, the next one moves up.
                if end >= len(self.leaves) or not entries or ends_node(0, max(entries)):
                    break
            ordered = [entries[name] for name in sorted(entries)]
            plan += [Leaf(FORMAT, part) for part in cut(0, ordered, lambda entry: entry.name)]
            kept = end
        return [*plan, *self.leaves[kept:]]

    async def _stored(
        self, level: int, plan: Sequence[Child | Node], known: Mapping[bytes, Child], store: Store
    ) -> list[Child]:
        """Nodes with what is new in the store."""
        known = {**known, **{leaf.digest: leaf for leaf in self.leaves}} if level == 0 else known
        fresh: dict[bytes, bytes] = {}
        digests: list[bytes] = []
        for item in plan:
            if isinstance(item, Child):
                digests.append(item.digest)
                continue
            plain = encode(item)
            digests.append(blake3(plain, key=self._digest_key).digest())
            if digests[-1] not in known:
                fresh[digests[-1]] = plain
        contents = dict(zip(fresh, await store(list(fresh.values())), strict=True)) if fresh else {}
        made: list[Child] = []
        for item, digest in zip(plan, digests, strict=True):
            if isinstance(item, Child):
                made.append(item)
            elif digest in contents:
                first, count = _span(item)
                made.append(Child(first, count, digest, contents[digest]))
            else:
                made.append(known[digest])
        return made


def _span(node: Node) -> tuple[bytes, int]:
    if isinstance(node, Leaf):
        return node.entries[0].name, len(node.entries)
    return node.children[0].first, sum(child.count for child in node.children)


async def _entries(leaf: Child, load: Load) -> list[Entry]:
    node = await load(leaf)
    if not isinstance(node, Leaf):
        raise _damaged()
    return node.entries


def _damaged() -> Failed:
    return Failed("the file list is damaged", remedy="Use another copy of it.")
