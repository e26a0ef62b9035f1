"""How adapters come and go while the server runs: versions in, versions out, and what an id stands for."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

from server import adapter_folder, logs, sources
from server.adapter_files import WEIGHTS_FILE
from server.adapter_folder import AdapterFolder
from server.base_model import BaseModel
from server.catalog import Catalog
from server.errors import (
    AdaptermuxError,
    AdapterNotFound,
    AdapterRefused,
    Conflict,
    InvalidInput,
    LoadFailed,
    PathEscape,
    ServiceError,
)
from server.ledger import Kept, Ledger, entry_of
from server.manifest import ADAPTER_ID
from server.record import AdapterCard, Alias, Record, Refusal, Target, printable, refusal_of
from server.residency import key_of
from server.sources import Limits
from server.store import Store
from server.weights_file import check_digest


class Lifecycle:
    """`server.desk.Lifecycle`: keeps store, catalog and ledger in step. Any thread may call it.

    What is fetched is fetched side by side; then the changes of one id take turns, and only they wait for a version to
    be loaded. A lock is held over changes of what is known, never while something is fetched, read or loaded. A change
    is written down before it is seen, and an id is given to a version only once its weights are in memory and checked:
    whatever goes wrong, the id stands for what it stood for.
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
        self._turns: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()  # taken before the lock

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
            with self._turn(adapter_id), self._lock:
                record = self._known(adapter_id)
                if is_pinned is not None and record.refusal is not None and record.refusal.code == LoadFailed.code:
                    record = replace(record, refusal=None)  # it may be of the pin, and is listed again if it holds
                return self._change(record, tags=tags, is_pinned=is_pinned)

        def take(card: AdapterCard) -> Record:
            record = self._catalog.get(adapter_id) or Record(adapter_id)
            alias = (Target(card.version),) if activate or not record.alias else record.alias
            refusal = None if activate else record.refusal
            record = self._change(replace(record.with_version(card), refusal=refusal), alias, tags, is_pinned)
            logs.event("adapter_put", adapter_id=adapter_id, version=card.version, source=card.source)
            return record

        return self._bring(adapter_id, source, self._source_roots, take)

    def remove(self, reference: str) -> None:
        adapter_id, at, version = reference.partition("@")
        with self._turn(adapter_id), self._lock:
            record = self._known(adapter_id)
            if at and version not in record.versions and version not in record.lost:
                raise AdapterNotFound(f"adapter `{adapter_id}` has no version {version[:64]!a}")
            if at and any(target.version == version for target in record.alias):
                raise Conflict(f"`{adapter_id}` stands for version `{version}`; let it stand for another one first")
            if record.followed in record.versions and version in ("", record.followed):
                raise Conflict(f"`{reference}` lies in the folder or bucket that is served; remove it there")
            gone = [version] if at else [*record.versions, *record.lost]
            left = (replace(record, refusal=None) if version in record.lost else record).without(gone)
            self._change(left if left.versions or left.lost else Record(adapter_id))
            logs.event("adapter_removed", adapter_id=adapter_id, versions=gone)

    def set_alias(self, adapter_id: str, alias: Alias) -> Record:
        with self._turn(adapter_id):
            record = self._flip(adapter_id, alias)
        logs.event("alias_set", adapter_id=adapter_id, alias={one.version: one.weight for one in alias})
        return record

    def rollback(self, adapter_id: str) -> Record:
        with self._turn(adapter_id):
            record = self._known(adapter_id)
            last = record.last_that_can_be()
            if last is None:
                raise Conflict(f"`{adapter_id}` has stood for nothing else that is still there")
            alias = record.previous[last]
            record = self._flip(adapter_id, alias, record.previous[:last])
        logs.event("alias_rolled_back", adapter_id=adapter_id, alias={one.version: one.weight for one in alias})
        return record

    def close(self) -> None:
        """Change nothing more."""
        self._ledger.close()

    # -- what lies in the folder that is served --

    def restore(self) -> None:
        """Begin with what the ledger says. A version that is not as it was is listed with the reason.

        What is pinned has its room before anything that is new in the folder, as it had while the server ran.
        """
        kept = self._ledger.read()
        self._ledger.tidy(kept)
        for adapter_id, one in kept.items():
            self._catalog.put(self._restored(adapter_id, one))
        for record in self._catalog.all():
            self._pin_again(record)

    def follow(self, root: Path, name: str) -> bool:
        """Serve what lies in a folder, new or changed, in place of what lay there before.

        What is refused is listed with the reason. Returns False where it is worth trying again later.
        """
        return self._tried(name, lambda: self._take(root, name))

    def follow_source(self, name: str, source: str, seen: str) -> bool:
        """The same for what lies in a bucket: it is fetched. seen: what it looked like there."""
        return self._tried(
            name, lambda: self._bring(name, source, [source], lambda card: self._take_over(name, card, seen))
        )

    def unfollow(self, name: str) -> bool:
        """What lay in the folder or bucket is gone. Returns False where it is worth trying again later."""
        return self._tried(name, lambda: self._let_go(printable(name)))

    def _tried(self, name: str, work: Callable[[], object]) -> bool:
        try:
            work()
        except Exception as error:  # one folder must never stop the others, whatever it holds
            if not isinstance(error, AdaptermuxError):
                logs.event("follow_failed", trace=traceback.format_exception(error))
            self._refuse(name, refusal_of(error))
            return not isinstance(error, ServiceError)
        return True

    def _take(self, root: Path, name: str) -> None:
        """Register a folder where it lies. Where something is served in its place, load it before it takes over."""
        folder = adapter_folder.read(root, name, self._base)
        with self._turn(name), self._forgetting(name, folder.version):
            record = self._catalog.get(name) or Record(name)
            card = record.versions.get(folder.version)
            if card is None or not card.source or card.refusal is not None:  # else it is served from our own copy
                self._register(folder)
                card = _card(folder, None)
            if record.alias:
                self._load(name, folder.version)
            self._take_over(name, card, None)

    def _take_over(self, name: str, card: AdapterCard, seen: str | None) -> Record:
        with self._lock:
            before = self._catalog.get(name) or Record(name)
            record = self._change(replace(before.following(card), seen=seen))
        if card.warnings:
            logs.event("adapter_has_warnings", adapter_id=name, warnings=card.warnings)
        return record

    def _let_go(self, name: str) -> None:
        with self._turn(name), self._lock:
            record = self._catalog.get(name)
            if record is None:
                return
            self._change(record.unfollowed())
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

    def _turn(self, adapter_id: str) -> threading.Lock:
        """Held while what an id has is changed."""
        with self._lock:
            return self._turns.setdefault(adapter_id, threading.Lock())

    def _bring(
        self, adapter_id: str, source: str, allowed: Sequence[str], take: Callable[[AdapterCard], Record]
    ) -> Record:
        """Fetch a version, check it to its last byte and load it; `take` then gives it its place."""
        if not ADAPTER_ID.fullmatch(adapter_id):
            raise PathEscape(f"{adapter_id[:80]!a} is no name for an adapter")
        wanted = sources.parse(source, allowed)
        with self._ledger.incoming() as place:
            source = wanted.fetch(place / adapter_id, Limits()).source
            arrived = adapter_folder.read(place, adapter_id, self._base)
            check_digest(arrived.weights, arrived.manifest.weights_sha256)  # before it takes the place of a good one
            with self._turn(adapter_id), self._forgetting(adapter_id, arrived.version):
                kept = self._ledger.keep(place / adapter_id, adapter_id, arrived.version)
                folder = replace(arrived, weights=replace(arrived.weights, path=kept / WEIGHTS_FILE))
                self._register(folder)
                self._load(adapter_id, folder.version)
                with self._lock:
                    return take(_card(folder, source))

    def _register(self, folder: AdapterFolder) -> None:
        """Make a version known to the store, anew if what it knows turned out to be damaged."""
        record = self._catalog.get(folder.adapter_id)
        known = record.versions.get(folder.version) if record is not None else None
        if known is None or known.refusal is not None or known.num_bytes != folder.weights.num_bytes:
            self._store.unregister(key_of(folder.adapter_id, folder.version))
        self._store.register(folder)

    def _load(self, adapter_id: str, version: str) -> None:
        """Bring a version into memory, or raise what stands against it."""
        self._store.release(self._store.acquire(adapter_id, version).result())

    @contextmanager
    def _forgetting(self, adapter_id: str, version: str) -> Iterator[None]:
        """Forget a version that came to nothing, unless the id has had it before."""
        try:
            yield
        except BaseException:
            record = self._catalog.get(adapter_id)
            if record is None or version not in record.versions:
                self._store.unregister(key_of(adapter_id, version))
                if record is None or version not in record.lost:
                    self._ledger.discard(adapter_id, version)
            raise

    def _flip(self, adapter_id: str, alias: Alias, previous: tuple[Alias, ...] | None = None) -> Record:
        self._check_alias(self._known(adapter_id), alias)
        for target in alias:
            self._load(adapter_id, target.version)
        with self._lock:
            return self._change(self._known(adapter_id), alias, previous=previous)

    def _restored(self, adapter_id: str, kept: Kept) -> Record:
        versions: dict[str, AdapterCard] = {}
        lost: dict[str, tuple[str, str]] = {}
        refusal: Refusal | None = None
        for version, (source, created) in kept.versions.items():
            try:
                place = self._ledger.folder_of(adapter_id, version)
                folder = replace(adapter_folder.read(place.parent, version, self._base), adapter_id=adapter_id)
                if folder.version != version:
                    raise Conflict(f"its folder holds version `{folder.version}`")
                self._register(folder)
                versions[version] = replace(_card(folder, source), created=created)
            except Exception as error:  # one version must never stop the others
                lost[version] = source, created
                found = refusal_of(error)
                refusal = Refusal(found.code, f"version `{version}` is lost: {found.reason}")
                logs.event("adapter_refused", adapter_id=adapter_id, code=refusal.code, reason=refusal.reason)
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
            lost=lost,
        )

    def settle(self) -> None:
        """After `restore` and the first look at the folder: let every id stand for something that is there.

        What cannot be pinned any more is served all the same, and listed with the reason.
        """
        with self._lock:
            for record in self._catalog.all():
                settled = record.settled(self._catalog.trouble)
                if settled.versions or settled.refusal is not None:
                    self._catalog.put(settled)
                    if (refusal := self._pin_again(settled)) is not None:
                        self._refuse(record.adapter_id, refusal)
                else:
                    self._catalog.remove(record.adapter_id)  # only tags were kept of it

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
        """Write a changed record down and let it be seen; what it has no more is forgotten.

        Versions that the id stood for, and does no more, leave memory.
        """
        adapter_id = record.adapter_id
        before = self._catalog.get(adapter_id) or Record(adapter_id)
        alias = record.alias if alias is None else alias
        record = replace(record, alias=before.alias).standing_for(alias)
        record = replace(
            record,
            previous=record.previous if previous is None else previous,
            tags=record.tags if tags is None else tuple(sorted(set(tags))),
            is_pinned=record.is_pinned if is_pinned is None else is_pinned,
        ).pruned(self._keep_versions)
        pinned = self._pin(record, before)
        try:
            self._save(record)
        except BaseException:
            for version in pinned:
                self._store.unpin(key_of(adapter_id, version))
            raise
        if (refusal := self._pin_again(record)) is not None:
            record = self._refuse(adapter_id, refusal)
        served, stood_for = ({target.version for target in one.alias} for one in (record, before))
        for version in served:
            if stood_for and version not in stood_for:
                self._store.prefetch(key_of(adapter_id, version))
            else:  # of an id that is new, nobody has asked for anything: at a start these are all there are
                self._store.keep(key_of(adapter_id, version))
        for target in before.alias:
            if target.version not in served or not record.is_pinned:
                self._store.unpin(key_of(adapter_id, target.version))
            if target.version not in served:
                self._store.retire(key_of(adapter_id, target.version))
        for version in {**before.versions, **before.lost}.keys() - {**record.versions, **record.lost}.keys():
            self._store.unregister(key_of(adapter_id, version))
            if version in before.lost or before.versions[version].source:
                self._ledger.discard(adapter_id, version)
        return record

    def _pin(self, record: Record, before: Record) -> list[str]:
        """Pin what a pinned record stands for, and return what was not before; raises LoadFailed with nothing done."""
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
        return pinned

    def _pin_again(self, record: Record) -> Refusal | None:
        """Pin what is to be pinned already, and is not: of an earlier run, or registered anew after it was damaged.

        Returns why where that cannot be, such as for want of room.
        """
        try:
            for target in record.alias if record.is_pinned else ():
                if target.version in record.versions:
                    self._store.pin(key_of(record.adapter_id, target.version))
        except AdaptermuxError as error:
            return refusal_of(error)
        return None

    def _save(self, record: Record) -> None:
        """Write down a record in place of the one that was, then let it be seen; one that holds nothing is removed."""
        adapter_id = record.adapter_id
        if entry_of(record) != entry_of(self._catalog.get(adapter_id)):
            others = (one for one in self._catalog.all() if one.adapter_id != adapter_id)
            self._ledger.write([*others, record])
        if record.versions or record.lost or record.refusal is not None:
            self._catalog.put(record)
        else:
            self._catalog.remove(adapter_id)

    def _refuse(self, name: str, refusal: Refusal) -> Record:
        """List why what lies in the folder is not served; what was served before still is, as far as it is there."""
        name = printable(name)
        with self._lock:
            record = self._catalog.get(name) or Record(name)
            refused = replace(record, refusal=refusal)
            self._catalog.put(refused)
        if refusal != record.refusal:  # what is tried again and again is told of once
            logs.event("adapter_refused", adapter_id=name, code=refusal.code, reason=refusal.reason)
        return refused


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
