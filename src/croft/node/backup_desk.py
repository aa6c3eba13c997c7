"""Backups as the local API shows, runs and restores them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from croft.control import backup_schema, schema
from croft.control.naming import find_peer
from croft.control.storage_work import Progress
from croft.control.work_messages import OpenBackupRestore, OpenBackupRun, OpenBackupVerify
from croft.errors import CroftError, NotFound, Refused, Usage
from croft.model.ids import CommunityId, PeerId
from croft.node.backup_verifying import Verifying, margin_of
from croft.node.backups import COMMUNITY_MARK, FRIENDS, LastRun
from croft.node.file_attributes import shown
from croft.node.tree_reading import refuse_own, root_name
from croft.node.tree_writing import TreeWriter
from croft.storage.backup_formats import Definition, StoreName, check_backup_name
from croft.storage.backup_schedule import EVERY_S_MIN
from croft.storage.formats import FORMAT
from croft.storage.placement import parse_layout
from croft.storage.retention import Policy

if TYPE_CHECKING:
    from croft.node.assemble import Parts

PATHS_MAX: Final = 100
WORDS_MAX: Final = 256
WORD_CHARS_MAX: Final = 1_000
UNKNOWN: Final = -1


class BackupDesk:
    """Fulfils `croft.control.backup_app.Backups` and `croft.control.backup_work.BackupDesk`."""

    def __init__(self, parts: Parts, peers: Callable[[], list[schema.Peer]]) -> None:
        self._parts = parts
        self._peers = peers
        self._backups = parts.backups
        self._upkeep = parts.upkeep
        self._offload = parts.ports.offload

    # --- which there are ---------------------------------------------------------------------------------------------

    async def backups(self) -> list[backup_schema.Backup]:
        """Every backup of the owner, those of this device first. Raises CroftError."""
        everything = await self._backups.all()
        return [await self._shown(name, definition, everything) for name, definition in everything.items()]

    async def add(self, wanted: backup_schema.BackupWanted) -> backup_schema.Backup:
        """One more backup of this device. Raises Usage, NotFound, Busy, Refused."""
        check_backup_name(wanted.name)
        paths = _paths(wanted.paths_hex)
        for path in paths:
            refuse_own(path, self._parts.plan.own_folders)
        definition = Definition(
            FORMAT,
            self._parts.overlay.own.name,
            paths,
            exclude=_words(wanted.exclude),
            to=self._whom(_words(wanted.to)),
            keep=_layout(wanted.keep),
            every_s=_every_s(wanted.every_s),
            policy=_policy(wanted.policy),
            made_at=self._parts.ports.clock.now(),
        )
        name = await self._backups.define(wanted.name, definition)
        return await self._shown(name, definition, await self._backups.all())

    async def change(self, wanted: backup_schema.BackupChange) -> backup_schema.Backup:
        """Changes a backup of this device. Raises Usage, NotFound, Refused."""
        name, definition = await self._backups.find(wanted.name)
        changed = replace(
            definition,
            exclude=definition.exclude if wanted.exclude is None else _words(wanted.exclude),
            to=definition.to if wanted.to is None else self._whom(_words(wanted.to)),
            keep=definition.keep if wanted.keep is None else _layout(wanted.keep),
            every_s=definition.every_s if wanted.every_s is None else _every_s(wanted.every_s),
            policy=definition.policy if wanted.policy is None else _policy(wanted.policy),
        )
        await self._backups.redefine(name, changed)
        return await self._shown(name, changed, await self._backups.all())

    async def adopt(self, wanted: backup_schema.BackupAdoption) -> backup_schema.Backup:
        """Has this device go on with the backup of one that is gone. Raises Usage, NotFound, Busy, Refused."""
        name, definition = await self._backups.find(wanted.name)
        own_name = wanted.own_name or name.name
        check_backup_name(own_name)
        paths = _paths(wanted.paths_hex) if wanted.paths_hex else list(definition.paths)
        for path in paths:
            refuse_own(path, self._parts.plan.own_folders)
            if not os.path.lexists(path):
                raise Usage(
                    f"`{shown(path)}` is not here",
                    remedy=f"First restore it, as by `croft backup restore {wanted.name} --into /`, or say which paths "
                    "it is to go on with.",
                )
        adopted = await self._backups.adopt(name, own_name, replace(definition, paths=paths))
        everything = await self._backups.all()
        return await self._shown(adopted, everything[adopted], everything)

    async def remove(self, wanted: backup_schema.BackupNamed) -> backup_schema.BackupRemoved:
        """Drops a backup with all that is stored. Raises NotFound, Busy, Refused."""
        name, definition = await self._backups.find(wanted.name)
        await self._backups.remove(name, definition)
        freed, is_later = await self._collected()
        return backup_schema.BackupRemoved(name=wanted.name, freed_bytes=freed, is_freed_later=is_later)

    async def snapshots(self, wanted: backup_schema.BackupNamed) -> list[backup_schema.BackupSnapshot]:
        """The snapshots of one, oldest first. Raises NotFound."""
        name, _ = await self._backups.find(wanted.name)
        store = await self._backups.store(name)
        found: list[backup_schema.BackupSnapshot] = []
        for number in await store.numbers():
            record = await store.snapshot(number)
            found.append(
                backup_schema.BackupSnapshot(
                    number=number,
                    at=record.at,
                    took_s=record.took_s,
                    paths=_texts(record.paths),
                    files=record.files,
                    size_bytes=record.size,
                    unreadable=record.unreadable,
                    torn=record.torn,
                )
            )
        return found

    async def prune(self, wanted: backup_schema.BackupNamed) -> backup_schema.BackupPruned:
        """Forgets what the policy lets go, and has holders drop what nothing needs any more. Raises CroftError."""
        name, definition = await self._backups.find(wanted.name)
        forgotten, dropped, rewritten, _ = await self._backups.prune(name, definition)
        freed, is_later = await self._collected()
        return backup_schema.BackupPruned(
            forgotten=forgotten,
            packs_dropped=dropped,
            packs_rewritten=rewritten,
            freed_bytes=freed,
            is_freed_later=is_later,
        )

    # --- what takes long ---------------------------------------------------------------------------------------------

    async def run(self, opening: OpenBackupRun, progress: Progress) -> backup_schema.BackupReport:
        """See `croft.control.backup_work.BackupDesk`."""
        found, _ = await self._backups.find(opening.name)

        def tell(files: int, size: int) -> None:
            progress(files, size, UNKNOWN)

        return _report(await self._backups.run(found, tell, is_anew=opening.is_anew))

    async def restore(self, opening: OpenBackupRestore, progress: Progress) -> backup_schema.BackupRestored:
        """See `croft.control.backup_work.BackupDesk`."""
        if not os.path.isabs(opening.into):
            raise Usage("a folder is named by its whole path here")
        name, _ = await self._backups.find(opening.name)
        store = await self._backups.store(name)
        storage = self._parts.storage
        faults_before = len(storage.faults())
        await store.look_again()
        async with store.reading() as reader:
            number = opening.number or max(await store.numbers(), default=0)
            if not number:
                raise NotFound(
                    f"`{opening.name}` has no snapshot yet", remedy=f"Run it: `croft backup run {name.name}`."
                )
            record = await store.snapshot(number)
            writer = TreeWriter(store, reader, self._offload, replaces=opening.replaces, tell=progress)
            done = await writer.write(record.tree, opening.inside, opening.into)
        return backup_schema.BackupRestored(
            snapshot=number,
            files=done.files,
            size_bytes=done.size_bytes,
            left=done.left,
            problems=done.problems,
            faults=storage.faults()[faults_before:],
        )

    async def verify(self, opening: OpenBackupVerify, progress: Progress) -> backup_schema.BackupVerified:
        """See `croft.control.backup_work.BackupDesk`."""
        name, _ = await self._backups.find(opening.name)
        store = await self._backups.store(name)
        report = await self._upkeep.tend()
        await store.look_again()
        async with store.reading() as reader:
            verifying = Verifying(store, reader, self._offload)
            await verifying.look(report.short)
            if opening.reads:
                await verifying.read(lambda packs, size: progress(packs, size, UNKNOWN))
            await verifying.walk()
        found = verifying.found
        return backup_schema.BackupVerified(
            snapshots=found.snapshots,
            packs=found.packs,
            missing=found.missing,
            margin=found.margin,
            short=found.short,
            read_bytes=found.read_bytes,
            damaged=found.damaged,
        )

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _collected(self) -> tuple[int, bool]:
        """How many bytes holders dropped, and whether it is left to them to do so later."""
        try:
            return await self._upkeep.collect(), False
        except Refused:
            return 0, True  # another device may need something: it is collected by itself later

    def _whom(self, words: Sequence[str]) -> list[str]:
        """Words as they are kept: `friends`, communities and peers by their ids. Raises NotFound, Usage."""
        communities = {one.name: one.community for one in self._parts.overlay.communities()}
        kept: list[str] = []
        for word in words:
            if word == FRIENDS:
                kept.append(FRIENDS)
            elif word in communities:
                kept.append(COMMUNITY_MARK + communities[word])
            else:
                kept.append(find_peer(self._peers(), word).peer)
        return list(dict.fromkeys(kept))

    def _shown_whom(self, kept: Sequence[str]) -> list[str]:
        overlay = self._parts.overlay
        names = {one.community: one.name for one in overlay.communities()}

        def name_of(word: str) -> str:
            if word == FRIENDS:
                return word
            if word.startswith(COMMUNITY_MARK):
                community = CommunityId(word.removeprefix(COMMUNITY_MARK))
                return names.get(community, community[:10])
            return overlay.name_of(PeerId(word))

        return [name_of(word) for word in kept]

    async def _shown(
        self, name: StoreName, definition: Definition, everything: dict[StoreName, Definition]
    ) -> backup_schema.Backup:
        backups = self._backups
        store, last = await backups.store(name), await backups.last_run(name)
        numbers = await store.numbers()
        newest, problem = None, ""
        try:
            newest = await store.snapshot(numbers[-1]) if numbers else None
        except CroftError as error:
            problem = error.message
        is_alone = sum(one.name == name.name for one in everything) == 1
        margin = await self._margin(name)
        return backup_schema.Backup(
            name=name.name if is_alone or backups.is_own(name) else f"{definition.device_name}:{name.name}",
            device=definition.device_name,
            is_own=backups.is_own(name),
            is_running=backups.is_running(name),
            paths=_texts(definition.paths),
            to=self._shown_whom(definition.to),
            keep=definition.keep,
            every_s=definition.every_s,
            exclude=list(definition.exclude),
            policy=backup_schema.RetentionPolicy(
                **{one: getattr(definition.policy, one) for one in definition.policy.__struct_fields__}
            ),
            snapshots=len(numbers),
            newest=numbers[-1] if numbers else 0,
            newest_at=newest.at if newest else 0.0,
            size_bytes=newest.size if newest else 0,
            stored_bytes=await store.stored_bytes(),
            next_at=await backups.next_at(name, definition),
            margin=margin,
            trouble=self._trouble(name, last, margin) or problem,
            last_run=_report(last) if last else None,
        )

    async def _margin(self, name: StoreName) -> int | None:
        report = self._upkeep.report
        if report is None:
            return None
        store = await self._backups.store(name)
        contents = [version.content async for _, version in store.packs()]
        return min((margin_of(one.parts, report.short) for one in contents if one is not None), default=None)

    def _trouble(self, name: StoreName, last: LastRun | None, margin: int | None) -> str:
        if last is not None and last.error:
            return last.error
        if margin is not None and margin < 0:
            return "part of it cannot be read now"
        if last is not None and (last.unreadable or last.torn):
            return f"{last.unreadable} files were left out, {last.torn} changed while they were read"
        return self._backups.waits(name)


def _paths(paths_hex: Sequence[str]) -> list[bytes]:
    """The paths of a backup. Raises Usage."""
    try:
        paths = [os.path.normpath(bytes.fromhex(path)) for path in paths_hex]
    except ValueError:
        raise Usage("these are no paths") from None
    if not 0 < len(paths) <= PATHS_MAX or not all(map(os.path.isabs, paths)) or any(b"\0" in path for path in paths):
        raise Usage("a backup is of some files or folders", remedy="Name them: croft backup add PATH…")
    for path in paths:
        if not os.path.lexists(path):
            raise Usage(f"there is no file {shown(path)}", remedy="Check the path.")
    names = [root_name(path) for path in paths]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise Usage(f"two of these paths end in `{twice.decode(errors='replace')}`", remedy="Make two backups of them.")
    return paths


def _layout(text: str) -> str:
    """A layout that is one, or none. Raises Usage."""
    return str(parse_layout(text)) if text else ""


def _every_s(every_s: float) -> float:
    if every_s and not every_s >= EVERY_S_MIN:
        raise Usage("a backup runs at most once a minute", remedy="Say it like --every 6h.")
    return every_s


def _words(words: Sequence[str]) -> list[str]:
    if len(words) > WORDS_MAX or any(not word or len(word) > WORD_CHARS_MAX for word in words):
        raise Usage("too many words, or one that is empty or too long", remedy="Name fewer.")
    return list(words)


def _policy(wanted: backup_schema.RetentionPolicy) -> Policy:
    policy = Policy(**{name: getattr(wanted, name) for name in wanted.__struct_fields__})
    policy.check()
    return policy


def _texts(paths: Sequence[bytes]) -> list[str]:
    return [shown(path) for path in paths]


def _report(last: LastRun) -> backup_schema.BackupReport:
    return backup_schema.BackupReport(
        began_at=last.began_at,
        ended_at=last.ended_at,
        error=last.error,
        snapshot=last.number,
        files=last.files,
        size_bytes=last.size_bytes,
        new=last.new,
        changed=last.changed,
        unchanged=last.unchanged,
        read_bytes=last.read_bytes,
        new_bytes=last.new_bytes,
        sent_bytes=last.sent_bytes,
        unreadable=last.unreadable,
        torn=last.torn,
        named_unreadable=list(last.named_unreadable),
        named_torn=list(last.named_torn),
    )
