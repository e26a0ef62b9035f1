"""What a folder or a bucket of adapters holds now, and what has changed since the last look.

Looking reads no file. It belongs to whoever calls it how often to look, and what to do about a change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from server import adapter_files
from server.adapter_files import ADAPTER_FILES, Look
from server.adapter_list import SUFFIX, ListRoot
from server.bucket import Bucket
from server.errors import AdaptermuxError, SourceUnreachable
from server.sources import is_bucket, parse_bucket_url

Listing = Mapping[str, Look]
"""What can be seen of the adapters below a root, by name; hidden names are left out."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What is new below a root. error: why it could not be looked at; nothing is known to have changed then."""

    appeared: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    error: AdaptermuxError | None = None


class Root(Protocol):
    """A place whose folders are adapters. is_atomic: a file is seen there only once all of it has been written."""

    is_atomic: bool

    def listing(self) -> Listing:
        """Look at every adapter. Raises AdaptermuxError where the root cannot be looked at, or is not the root."""

    def source(self, name: str) -> str | None:
        """Where an adapter of the last listing is to be fetched from; None where it is served as it lies."""


def open_root(text: str) -> Root:
    """The root that a folder, a `.json` file, or `s3://bucket/prefix` or `gs://...` names. Raises AdaptermuxError."""
    if not is_bucket(text):
        return ListRoot(Path(text)) if text.endswith(SUFFIX) else FolderRoot(Path(text))
    scheme, bucket, prefix = parse_bucket_url(text)
    return BucketRoot(Bucket(scheme, bucket), prefix)


class FolderRoot:
    """A folder of adapter folders. Owned by the thread that asks it for listings."""

    is_atomic = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = (0, 0)
        self._held_some = False

    def listing(self) -> Listing:
        try:
            status = os.stat(self.path)
            with os.scandir(self.path) as entries:
                names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry))
            found = {name: adapter_files.look(f"{self.path}/{name}") for name in names}
        except OSError as error:
            raise SourceUnreachable(f"folder `{self.path}` cannot be read: {error.strerror}") from error
        identity = status.st_dev, status.st_ino
        if self._held_some and not found and identity != self._identity:
            raise SourceUnreachable(f"folder `{self.path}` is empty and another than before; is it mounted?")
        self._identity, self._held_some = identity, bool(found)
        return found

    def source(self, name: str) -> str | None:
        return None


class BucketRoot:
    """A prefix of a bucket, with an adapter below each of its parts. Owned by the thread that asks it for listings."""

    is_atomic = True

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix
        self._held_some = False

    def listing(self) -> Listing:
        found = self.bucket.looks(self.prefix)
        if self._held_some and not found:
            raise SourceUnreachable(f"`{self.bucket.url}/{self.prefix}` held adapters and holds nothing any more")
        self._held_some = bool(found)
        return found

    def source(self, name: str) -> str | None:
        return f"{self.bucket.url}/{self.prefix}/{name}" if self.prefix else f"{self.bucket.url}/{name}"


class Watch:
    """A root, and what has been reported of it so far. Owned by the thread that calls it.

    known: a listing whose adapters need no report, as they were registered after it was taken.
    """

    def __init__(self, root: Root, known: Listing | None = None) -> None:
        self._root = root
        self._reported: dict[str, Look | None] = dict(known or {})
        self._last: Listing = known or {}

    def look(self) -> Changes:
        """What has to be done since the last look, each thing once."""
        try:
            now = self._root.listing()
        except AdaptermuxError as error:
            return Changes(error=error)
        changes = compare(self._reported, self._last, now, self._root.is_atomic)
        self._last = now
        self._reported |= {name: now[name] for name in (*changes.appeared, *changes.changed)}
        for name in changes.gone:
            del self._reported[name]
        return changes

    def seen(self, name: str) -> Look:
        """What an adapter that was reported looked like."""
        return self._reported.get(name) or {}

    def has_reported(self, name: str) -> bool:
        """Whether an adapter that was reported is still there."""
        return name in self._reported

    def report_again(self, name: str) -> None:
        """Report an adapter once more, as changed: what was done about it came to nothing."""
        if name in self._reported:
            self._reported[name] = None


def compare(reported: Mapping[str, Look | None], last: Listing, now: Listing, is_atomic: bool) -> Changes:
    """What is to be reported of two looks, the last and this one, beyond what has been.

    Only what both looks agree on: a folder that is being filled, or replaced by renaming, is between two states.
    A new adapter with all its files is reported at once where files are never seen in part.
    """
    steady = {name for name, look in now.items() if last.get(name) == look}
    whole = {name for name, look in now.items() if is_atomic and look.keys() >= set(ADAPTER_FILES)}
    return Changes(
        appeared=tuple(name for name in now if name not in reported and name in (steady | whole)),
        changed=tuple(name for name in now if name in reported and name in steady and now[name] != reported[name]),
        gone=tuple(name for name in reported if name not in now and name not in last),
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if adapter_files.is_absent(error):  # a loop of links, say
            return False
        raise
