"""The links that an owner made, kept beside the files: every device of the owner lists, renews and revokes them.

Facts that devices may add apart are under names of their own, so that none is lost when their lists are merged: a link
that one device revoked stays so, whatever another one told of it meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from croft.errors import NotFound, Usage
from croft.storage.contents import BytesSource, Putting
from croft.storage.formats import Version, decode_stored
from croft.storage.kept_records import KeptRecords
from croft.storage.links import MadeLink, OwnLink, ToldLink
from croft.storage.service import HIDDEN, NOTHING, Storage

LINKS: Final = HIDDEN + b"links/"
MADE: Final = b"made"
FILES: Final = b"files"
TOLD: Final = b"told"
REVOKED: Final = b"revoked"


class LinkBook:
    """Reads and changes it. Raises what `Storage.kept` and `Storage.keep` raise."""

    def __init__(self, storage: Storage, records: KeptRecords) -> None:
        self._storage = storage
        self._records = records

    async def all(self) -> list[OwnLink]:
        """Every link, the oldest first."""
        made: dict[bytes, MadeLink] = {}
        told: dict[bytes, ToldLink] = {}
        revoked: set[bytes] = set()
        async for name, version in self._storage.kept(LINKS):
            link, _, what = name.removeprefix(LINKS).partition(b"/")
            if what == MADE:
                made[link] = decode_stored(await self._records.read(name, version), MadeLink)
            elif what == TOLD:
                told[link] = decode_stored(await self._records.read(name, version), ToldLink)
            elif what == REVOKED:
                revoked.add(link)
        links = [OwnLink(one, told.get(link), link in revoked) for link, one in made.items()]
        return sorted(links, key=lambda link: (link.made.made_at, link.made.id))

    async def find(self, start: str) -> OwnLink:
        """The one whose id begins so. Raises NotFound, Usage."""
        found = [link for link in await self.all() if start and link.made.id.hex().startswith(start)]
        if not found:
            raise NotFound(f"there is no link `{start[:40]}`", remedy="See which there are: `croft link list`.")
        if len(found) > 1:
            raise Usage(f"several links begin with `{start[:40]}`", remedy="Write more of the id: `croft link list`.")
        return found[0]

    async def keep(
        self,
        link: bytes,
        records: Mapping[bytes, bytes],
        contents: Mapping[bytes, Version | None],
        putting: Putting,
        written: Mapping[bytes, Sequence[Version]] = NOTHING,
    ) -> None:
        """Keeps this of a link, by what it is: records; contents that were put, None: no more. All of it at once, and
        with it versions of files that others wrote."""
        pending = {what: await putting.add(BytesSource(data)) for what, data in records.items()}
        await putting.finish()
        made = {what: Version(0, b"", 0.0, one.size, one.content) for what, one in pending.items()}
        everything: dict[bytes, Version | None] = {**contents, **made}
        kept = {place(link, what): version for what, version in everything.items()}
        await self._storage.take_in(written, kept, putting)
        await self._records.remember(
            {place(link, what): (pending[what].content.key, data) for what, data in records.items()}
        )


def place(link: bytes, what: bytes) -> bytes:
    """Under what name something of a link is kept."""
    return LINKS + link.hex().encode() + b"/" + what
