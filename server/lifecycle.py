"""How adapters come and go while the server runs: versions in, versions out, and what an id stands for."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from server import adapter_folder, logs, sources
from server.adapter_folder import AdapterFolder
from server.base_model import BaseModel
from server.catalog import AdapterCard, Alias, Catalog, Record, Refusal, Target, printable, refusal_of
from server.errors import (
    AdaptermuxError,
    AdapterNotFound,
    AdapterRefused,
    Conflict,
    InvalidInput,
    PathEscape,
    ServiceError,
)
from server.ledger import Kept, Ledger, entry_of
from server.manifest import ADAPTER_ID
from server.residency import key_of
from server.sources import Limits
from server.store import Store

MOST_PREVIOUS = 20


class Lifecycle:
    """`server.desk.Lifecycle`: keeps store, catalog and ledger in step. Any thread may call it.

    A lock is held over changes of what is known, never while something is fetched, read or loaded. A change is written
    down before it is seen, and an id is given to a version only once its weights are in memory and checked: whatever
    goes wrong, the id stands for what it stood for.
    """

    def __init__(
        self,
        base: BaseModel,
        store: Store,
        catalog: Catalog,
        ledger: Ledger,
        source_roots: Sequence[str],
        keep_versions: int,
    ) -> None:
        """source_roots: what callers may name as sources, see `server.sources`."""
        self._base, self._store, self._catalog, self._ledger = base, store, catalog, ledger
        self._source_roots, self._keep_versions = source_roots, keep_versions
        self._lock = threading.RLock()

    # -- what callers ask --

    def put(
        self,
        adapter_id: str,
        source: str | None,
        tags: Sequence[str] | None = None,
        is_pinned: bool | None = None,
        activate: bool = True,
    ) -> Record:
        if source is None:
            with self._lock:
                return self._change(self._known(adapter_id), tags=tags, is_pinned=is_pinned)
        card = self._bring(adapter_id, source, self._source_roots)
        with self._lock:
            record = self._catalog.get(adapter_id) or Record(adapter_id)
            versions = {**record.versions, card.version: card}
            alias = (Target(card.version),) if activate or not record.alias else record.alias
            refusal = None if activate else record.refusal
            record = self._change(replace(record, versions=versions, refusal=refusal), alias, tags, is_pinned)
            logs.event("adapter_put", adapter_id=adapter_id, version=card.version, source=card.source)
            return self._prune(record)

    def remove(self, reference: str) -> None:
        adapter_id, _, version = reference.partition("@")
        with self._lock:
            record = self._known(adapter_id)
            if version and version not in record.versions:
                raise AdapterNotFound(f"adapter `{adapter_id}` has no version {version[:64]!a}")
            if version and any(target.version == version for target in record.alias):
                raise Conflict(f"`{adapter_id}` stands for version `{version}`; let it stand for another one first")
            if record.followed in record.versions and version in ("", record.followed):
                raise Conflict(f"`{reference}` lies in the folder or bucket that is served; remove it there")
            gone = [version] if version else list(record.versions)
            left = {name: card for name, card in record.versions.items() if name not in gone}
            self._save(replace(record, versions=left) if left else None, adapter_id)
            self._drop(record, gone)
            logs.event("adapter_removed", adapter_id=adapter_id, versions=gone)

    def set_alias(self, adapter_id: str, alias: Alias) -> Record:
        self._check_alias(self._known(adapter_id), alias)
        for target in alias:
            self._load(adapter_id, target.version)
        with self._lock:
            record = self._known(adapter_id)
            self._check_alias(record, alias)  # again: time has passed
            record = self._change(record, alias)
            logs.event("alias_set", adapter_id=adapter_id, alias={one.version: one.weight for one in alias})
            return record

    def rollback(self, adapter_id: str) -> Record:
        record = self._known(adapter_id)
        usable = [alias for alias in record.previous if all(one.version in record.versions for one in alias)]
        if not usable:
            raise Conflict(f"`{adapter_id}` has stood for nothing else that is still there")
        alias = usable[-1]
        for target in alias:
            self._load(adapter_id, target.version)
        with self._lock:
            record = self._known(adapter_id)
            self._check_alias(record, alias)
            rest = record.previous[: max(index for index, one in enumerate(record.previous) if one == alias)]
            record = self._change(record, alias, previous=rest)
            logs.event("alias_rolled_back", adapter_id=adapter_id, alias={one.version: one.weight for one in alias})
            return record

    # -- what lies in the folder that is served --

    def restore(self) -> None:
        """Begin with what the ledger says. A version that is not as it was is listed with the reason."""
        kept = self._ledger.read()
        self._ledger.tidy(kept)
        for adapter_id, one in kept.items():
            self._catalog.put(self._restored(adapter_id, one))

    def follow(self, root: Path, name: str) -> bool:
        """Serve what lies in a folder, new or changed, in place of what lay there before.

        What is refused is listed with the reason. Returns False where it is worth trying again later.
        """
        return self._followed(name, lambda: self._take(root, name))

    def follow_source(self, name: str, source: str, seen: str) -> bool:
        """The same for what lies in a bucket: it is fetched. seen: what it looked like there."""
        return self._followed(name, lambda: self._bring(name, source, [source]), seen)

    def _followed(self, name: str, bring: Callable[[], AdapterCard], seen: str | None = None) -> bool:
        try:
            card = bring()
            with self._lock:
                before = self._catalog.get(name) or Record(name)
                self._prune(self._change(replace(_taking_over(before, card), seen=seen)))
                self._drop(before, [one for one in before.versions if one not in self._known(name).versions])
        except Exception as error:  # one folder must never stop the others, whatever it holds
            if not isinstance(error, AdaptermuxError):
                logs.event("follow_failed", trace=traceback.format_exception(error))
            self._refuse(name, refusal_of(error))
            return not isinstance(error, ServiceError)
        if card.warnings:
            logs.event("adapter_has_warnings", adapter_id=name, warnings=card.warnings)
        return True

    def _take(self, root: Path, name: str) -> AdapterCard:
        """Register a folder where it lies. Where something is served in its place, load it before it takes over."""
        folder = adapter_folder.read(root, name, self._base)
        self._register(folder)
        if (known := self._catalog.get(name)) is not None and known.alias:
            self._load(name, folder.version)
        return _card(folder, None)

    def unfollow(self, name: str) -> None:
        """What lay in the folder is gone."""
        name = printable(name)
        with self._lock:
            record = self._catalog.get(name)
            if record is None:
                return
            gone = [version for version in record.versions if version == record.followed]
            versions = {version: card for version, card in record.versions.items() if version not in gone}
            alias = tuple(target for target in record.alias if target.version in versions)
            if not alias and versions:
                alias = (Target(list(versions)[-1]),)
            left = replace(record, versions=versions, alias=alias, followed=None, refusal=None)
            self._save(left if versions else None, name)
            self._drop(record, gone)
        logs.event("adapter_gone", adapter_id=name)

    def on_damaged(self, folder: AdapterFolder, error: AdapterRefused) -> None:
        """The weights of a version were found to be damaged when they were read."""
        with self._lock:
            record = self._catalog.get(folder.adapter_id)
            if record is None or (card := record.versions.get(folder.version)) is None:
                return
            card = replace(card, refusal=Refusal(error.code, str(error)))
            self._catalog.put(replace(record, versions={**record.versions, card.version: card}))
        logs.event("adapter_refused", adapter_id=folder.adapter_id, code=error.code, reason=str(error))

    # -- parts --

    def _bring(self, adapter_id: str, source: str, allowed: Sequence[str]) -> AdapterCard:
        """Fetch a version, check it to its last byte and load it."""
        if not ADAPTER_ID.fullmatch(adapter_id):
            raise PathEscape(f"{adapter_id[:80]!a} is no name for an adapter")
        wanted = sources.parse(source, allowed)
        with self._ledger.incoming() as place:
            source = wanted.fetch(place / adapter_id, Limits()).source
            version = adapter_folder.read(place, adapter_id, self._base).version
            with self._lock:
                kept = self._ledger.keep(place / adapter_id, adapter_id, version)
                folder = self._read_kept(kept, adapter_id)
                self._register(folder)
        try:
            self._load(adapter_id, version)
        except AdaptermuxError:
            self._forget_if_unused(adapter_id, version)
            raise
        return _card(folder, source)

    def _read_kept(self, place: Path, adapter_id: str) -> AdapterFolder:
        return replace(adapter_folder.read(place.parent, place.name, self._base), adapter_id=adapter_id)

    def _register(self, folder: AdapterFolder) -> None:
        """Make a version known to the store, anew if what it knows turned out to be damaged."""
        record = self._catalog.get(folder.adapter_id)
        known = record.versions.get(folder.version) if record is not None else None
        if known is None or known.refusal is not None:
            self._store.unregister(key_of(folder.adapter_id, folder.version))
        self._store.register(folder)

    def _load(self, adapter_id: str, version: str) -> None:
        """Bring a version into memory, or raise what stands against it."""
        self._store.release(self._store.acquire(adapter_id, version).result())

    def _forget_if_unused(self, adapter_id: str, version: str) -> None:
        with self._lock:
            record = self._catalog.get(adapter_id)
            if record is None or version not in record.versions:
                self._store.unregister(key_of(adapter_id, version))
                self._ledger.discard(adapter_id, version)

    def _restored(self, adapter_id: str, kept: Kept) -> Record:
        versions: dict[str, AdapterCard] = {}
        refusal: Refusal | None = None
        for version, (source, created) in kept.versions.items():
            try:
                folder = self._read_kept(self._ledger.folder_of(adapter_id, version), adapter_id)
                if folder.version != version:
                    raise Conflict(f"its folder holds version `{folder.version}`")
                self._register(folder)
                versions[version] = replace(_card(folder, source), created=created)
            except AdaptermuxError as error:
                refusal = Refusal(error.code, f"version `{version}` is lost: {error}")
                logs.event("adapter_refused", adapter_id=adapter_id, code=error.code, reason=refusal.reason)
        return Record(
            adapter_id,
            versions,
            alias=kept.alias,
            previous=kept.previous,
            tags=kept.tags,
            is_pinned=kept.is_pinned,
            followed=kept.followed,
            seen=kept.seen,
            refusal=refusal,
        )

    def settle(self) -> None:
        """After `restore` and the first look at the folder: let every id stand for something that is there."""
        with self._lock:
            for record in self._catalog.all():
                alias = tuple(target for target in record.alias if target.version in record.versions)
                if not alias and record.versions:
                    alias = (Target(record.followed or list(record.versions)[-1]),)
                if not record.versions and record.refusal is None:
                    self._catalog.remove(record.adapter_id)  # only tags were kept of it
                elif alias != record.alias:
                    self._catalog.put(replace(record, alias=alias))
                if record.is_pinned:
                    self._pin(replace(record, alias=alias), Record(record.adapter_id))

    def _known(self, adapter_id: str) -> Record:
        """Without near names: who asks may not know of all."""
        record = self._catalog.get(adapter_id)
        if record is None:
            raise AdapterNotFound(f"there is no adapter {adapter_id[:128]!a}; see GET /v1/adapters")
        return record

    def _check_alias(self, record: Record, alias: Alias) -> None:
        for target in alias:
            if target.version not in record.versions:
                known = ", ".join(f"`{version}`" for version in record.versions)
                raise InvalidInput(
                    "version", f"`version`: adapter `{record.adapter_id}` has no {target.version!a}; it has {known}"
                )
        if len({target.version for target in alias}) < len(alias):
            raise InvalidInput("versions", "`versions` names a version twice")

    def _change(
        self,
        record: Record,
        alias: Alias | None = None,
        tags: Sequence[str] | None = None,
        is_pinned: bool | None = None,
        previous: tuple[Alias, ...] | None = None,
    ) -> Record:
        """Write a changed record down and let it be seen; versions that no id stands for leave memory."""
        before = self._catalog.get(record.adapter_id) or Record(record.adapter_id)
        alias = record.alias if alias is None else alias
        if previous is None:
            is_flip = before.alias and alias != before.alias
            previous = (*record.previous, before.alias)[-MOST_PREVIOUS:] if is_flip else record.previous
        record = replace(
            record,
            alias=alias,
            previous=previous,
            tags=record.tags if tags is None else tuple(sorted(set(tags))),
            is_pinned=record.is_pinned if is_pinned is None else is_pinned,
        )
        self._pin(record, before)
        self._save(record, record.adapter_id)
        served = {target.version for target in record.alias}
        for version in served:
            self._store.prefetch(key_of(record.adapter_id, version))  # and it is not retired any more
        for target in before.alias:
            if target.version not in served:
                self._store.unpin(key_of(record.adapter_id, target.version))
                self._store.retire(key_of(record.adapter_id, target.version))
        if before.is_pinned and not record.is_pinned:
            for version in served:
                self._store.unpin(key_of(record.adapter_id, version))
        return record

    def _pin(self, record: Record, before: Record) -> None:
        """Pin what a pinned record stands for; raises LoadFailed, and then pins nothing."""
        held = {target.version for target in before.alias} if before.is_pinned else set()
        wanted = {target.version for target in record.alias} if record.is_pinned else set()
        pinned: list[str] = []
        try:
            for version in wanted - held:
                self._store.pin(key_of(record.adapter_id, version))
                pinned.append(version)
        except AdaptermuxError:
            for version in pinned:
                self._store.unpin(key_of(record.adapter_id, version))
            raise

    def _save(self, record: Record | None, adapter_id: str) -> None:
        """Write down a record in place of the one that was, None for nothing, then let it be seen."""
        if entry_of(record) != entry_of(self._catalog.get(adapter_id)):
            others = (one for one in self._catalog.all() if one.adapter_id != adapter_id)
            self._ledger.write([*others, *([record] if record is not None else [])])
        if record is None:
            self._catalog.remove(adapter_id)
        else:
            self._catalog.put(record)

    def _prune(self, record: Record) -> Record:
        """Forget the oldest versions that were fetched, beyond those that are kept for a rollback."""
        in_use = {target.version for target in record.alias} | {record.followed}
        fetched = [card.version for card in record.versions.values() if card.source and card.version not in in_use]
        gone = fetched[: max(0, len(fetched) - self._keep_versions)]
        if not gone:
            return record
        left = {version: card for version, card in record.versions.items() if version not in gone}
        pruned = replace(record, versions=left)
        self._save(pruned, record.adapter_id)
        self._drop(record, gone)
        return pruned

    def _drop(self, record: Record, versions: Sequence[str]) -> None:
        """Let the store forget versions, and delete those that were fetched."""
        for version in versions:
            self._store.unregister(key_of(record.adapter_id, version))
            if (card := record.versions.get(version)) is not None and card.source:
                self._ledger.discard(record.adapter_id, version)

    def _refuse(self, name: str, refusal: Refusal) -> None:
        """List why what lies in the folder is not served; what was served before still is, as far as it is there."""
        name = printable(name)
        with self._lock:
            record = self._catalog.get(name) or Record(name)
            self._catalog.put(replace(record, refusal=refusal))
        logs.event("adapter_refused", adapter_id=name, code=refusal.code, reason=refusal.reason)


def _taking_over(record: Record, card: AdapterCard) -> Record:
    """A record in which the folder's version is a new one; an id that stood for the old one alone goes along."""
    versions: Mapping[str, AdapterCard] = {
        version: one for version, one in record.versions.items() if version != record.followed or one.source
    }
    goes_along = all(target.version == record.followed for target in record.alias)
    versions = {**versions, card.version: card}
    alias = (Target(card.version),) if goes_along else record.alias
    alias = tuple(target for target in alias if target.version in versions) or (Target(card.version),)
    return replace(record, versions=versions, alias=alias, followed=card.version, refusal=None)


def _card(folder: AdapterFolder, source: str | None) -> AdapterCard:
    return AdapterCard(
        adapter_id=folder.adapter_id,
        version=folder.version,
        manifest=folder.manifest,
        num_bytes=folder.weights.num_bytes,
        warnings=folder.warnings,
        source=source,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
