"""What must outlive a restart: which versions were fetched, what each id stands for, tags and pins.

The state folder holds `ledger.json` and `versions/ID/VERSION/`, the folders of versions that were fetched.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from server.catalog import Alias, Record, Target
from server.errors import StorageFailed

SCHEMA = 1
FILE_NAME = "ledger.json"
VERSIONS = "versions"
INCOMING = "incoming-"


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
    """The state folder. Its caller holds a lock over every change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> dict[str, Kept]:
        """What was last written; raises StorageFailed for a file that is not ours."""
        path = self._folder / FILE_NAME
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["schema"] != SCHEMA:
                raise ValueError(f"schema {record['schema']!r}, this version reads {SCHEMA}")
            return {adapter_id: _kept(one) for adapter_id, one in record["adapters"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageFailed(f"`{path}` cannot be read: {error!r:.200}; move it away to begin anew") from error

    def write(self, records: Iterable[Record]) -> None:
        """Write everything down, at once and for good. Raises StorageFailed; then the old state stands."""
        adapters = {record.adapter_id: entry for record in records if (entry := entry_of(record)) is not None}
        text = json.dumps({"schema": SCHEMA, "adapters": adapters}, indent=1, ensure_ascii=False)
        with _told("the change could not be written down"):
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = self._folder / f".{FILE_NAME}"
            with draft.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._folder / FILE_NAME)
            _sync(self._folder)

    def folder_of(self, adapter_id: str, version: str) -> Path:
        """Where a version that was fetched lies."""
        return self._folder / VERSIONS / adapter_id / version

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A new folder to fetch into; what is left in it afterwards is deleted. Raises StorageFailed."""
        with _told("nothing can be fetched: the state folder cannot be written"):
            self._folder.mkdir(parents=True, exist_ok=True)
            place = Path(tempfile.mkdtemp(prefix=INCOMING, dir=self._folder))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def keep(self, fetched: Path, adapter_id: str, version: str) -> Path:
        """Move a fetched folder to its place; one that is there already has the same content. Raises StorageFailed."""
        place = self.folder_of(adapter_id, version)
        with _told(f"version `{version}` could not be kept"):
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                shutil.rmtree(place)
            fetched.rename(place)
            _sync(place.parent)
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
    fetched = {card.version: [card.source, card.created] for card in record.versions.values() if card.source}
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
