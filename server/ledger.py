"""What must outlive a restart: which versions were fetched, what each id stands for, tags and pins.

The state folder holds `ledger.json` and `versions/ID/VERSION/`, the folders of versions that were fetched.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from server import logs
from server.errors import StorageFailed
from server.record import Alias, Record, Target

SCHEMA = 1
FILE_NAME = "ledger.json"
VERSIONS = "versions"
INCOMING = "incoming-"
LOCK_NAME = ".lock"


@dataclass(frozen=True, slots=True)
class Kept:
    """What the ledger says of one adapter. versions: (source, created) of those that were fetched, oldest first.

    followed, seen: which of them came from the folder or bucket that is followed, and what it looked like there.
    """

    versions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    alias: Alias = ()
    previous: tuple[Alias, ...] = ()
    tags: tuple[str, ...] = ()
    is_pinned: bool = False
    followed: str | None = None
    seen: str | None = None


class Ledger:
    """The state folder. Its caller lets writes take turns, and the changes of one adapter."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: TextIO | None = None
        self._taking = threading.Lock()

    def close(self) -> None:
        """Let another server have the folder."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def read(self) -> dict[str, Kept]:
        """What was last written; raises StorageFailed for a file that is not ours, or is another server's."""
        path = self._folder / FILE_NAME
        try:
            if path.exists():
                with suppress(OSError):  # a folder that cannot be written to
                    self._take()
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["schema"] != SCHEMA:
                raise ValueError(f"schema {record['schema']!r}, this version reads {SCHEMA}")
            return {adapter_id: _kept(one) for adapter_id, one in record["adapters"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.close()
            raise StorageFailed(f"`{path}` cannot be read: {error!r:.200}; move it away to begin anew") from error

    def write(self, records: Iterable[Record]) -> None:
        """Write everything down, at once and for good. Raises StorageFailed; then the old state stands."""
        adapters = {record.adapter_id: entry for record in records if (entry := entry_of(record)) is not None}
        # not indented: a write would take twice as long
        text = json.dumps({"schema": SCHEMA, "adapters": adapters}, ensure_ascii=False)
        with _told("the change could not be written down"):
            self._begin()
            draft = self._folder / f".{FILE_NAME}"
            with draft.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._folder / FILE_NAME)
            _sync(self._folder)

    def _begin(self) -> None:
        """Before the first change: have a folder that nobody has written to since it was read."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._taking:
            if self._lock is not None:
                return
            self._take()
            if (self._folder / FILE_NAME).exists():
                self.close()
                raise StorageFailed(
                    f"`{self._folder}` was written to by another server; restart, or give each its own --state"
                )

    def _take(self) -> None:
        lock = (self._folder / LOCK_NAME).open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise StorageFailed(
                f"`{self._folder}` is in use by another server; stop that one, or give each its own --state"
            ) from error
        except OSError:  # a file system without locks
            logs.event("state_not_locked", folder=str(self._folder))
        self._lock = lock

    def folder_of(self, adapter_id: str, version: str) -> Path:
        """Where a version that was fetched lies."""
        return self._folder / VERSIONS / adapter_id / version

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A new folder to fetch into; what is left in it afterwards is deleted. Raises StorageFailed."""
        with _told("nothing can be fetched: the state folder cannot be written"):
            self._begin()
            place = Path(tempfile.mkdtemp(prefix=INCOMING, dir=self._folder))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def keep(self, fetched: Path, adapter_id: str, version: str) -> Path:
        """Move a fetched folder to its place. Raises StorageFailed.

        What is there already has the same content, or is damaged: each file takes its place at once.
        """
        place = self.folder_of(adapter_id, version)
        with _told(f"version `{version}` could not be kept"):
            place.mkdir(parents=True, exist_ok=True)
            for file in fetched.iterdir():
                file.replace(place / file.name)
            for folder in (place, place.parent, place.parent.parent):
                _sync(folder)
        return place

    def discard(self, adapter_id: str, version: str) -> None:
        """Delete a version's folder; memory that was read from it is not touched."""
        place = self.folder_of(adapter_id, version)
        shutil.rmtree(place, ignore_errors=True)
        try:
            place.parent.rmdir()
        except OSError:
            return  # others are left

    def tidy(self, kept: Mapping[str, Kept]) -> None:
        """Delete what no adapter has: the rest of fetches that a crash cut off."""
        if self._lock is None:
            return  # nothing was ever written here, or it is another server that begins to
        for place in self._folder.glob(f"{INCOMING}*"):
            shutil.rmtree(place, ignore_errors=True)
        for place in self._folder.glob(f"{VERSIONS}/*/*"):
            adapter_id, version = place.parent.name, place.name
            if adapter_id not in kept or version not in kept[adapter_id].versions:
                self.discard(adapter_id, version)


def entry_of(record: Record | None) -> dict[str, object] | None:
    """What is written of a record; None if it holds nothing more than its folder says by itself."""
    if record is None:
        return None
    cards = {card.version: [card.source, card.created] for card in record.versions.values() if card.source}
    fetched = {version: list(one) for version, one in record.lost.items()} | cards
    if not (fetched or record.tags or record.is_pinned):
        return None
    return {
        "versions": fetched,
        "alias": _written(record.alias),
        "previous": [_written(alias) for alias in record.previous],
        "tags": list(record.tags),
        "pinned": record.is_pinned,
        "followed": record.followed,
        "seen": record.seen,
    }


def _kept(entry: Mapping[str, object]) -> Kept:
    versions, previous, tags = entry["versions"], entry["previous"], entry["tags"]
    if not isinstance(versions, dict) or not isinstance(previous, list) or not isinstance(tags, list):
        raise ValueError(f"an adapter is described by {entry!r:.80}")
    return Kept(
        versions={str(version): (str(source), str(created)) for version, (source, created) in versions.items()},
        alias=_read(entry["alias"]),
        previous=tuple(map(_read, previous)),
        tags=tuple(map(str, tags)),
        is_pinned=entry["pinned"] is True,
        followed=str(entry["followed"]) if entry["followed"] is not None else None,
        seen=str(entry["seen"]) if entry["seen"] is not None else None,
    )


def _written(alias: Alias) -> list[list[object]]:
    return [[target.version, target.weight] for target in alias]


def _read(alias: object) -> Alias:
    if not isinstance(alias, list):
        raise ValueError(f"an alias is {alias!r:.80}")
    return tuple(Target(str(version), float(weight)) for version, weight in alias)


def _sync(folder: Path) -> None:
    """Let a rename outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"{what}: {error.strerror or error}; see --state") from error
