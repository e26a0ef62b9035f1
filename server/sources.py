"""Where adapters come from: a folder, a bucket or a hub, named by one line of text.

    file:/folders/reviews            a folder below one of the allowed roots
    s3://bucket/prefix/reviews       objects below a prefix; gs:// for Google Cloud Storage
    hf:organisation/reviews@v2       a model repository on a Hugging Face hub

Only the three files of an adapter folder are ever read. What may be named at all are the things below an allowed root:
a folder, `s3://bucket/prefix`, `hf:organisation`, or a kind alone (`hf:`) for everything of that kind.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from server import adapter_files, hub
from server.adapter_files import (
    CONFIG_FILE,
    MAX_TEXT_BYTES,
    MAX_WEIGHTS_BYTES,
    PICKLE_FILES,
    WEIGHTS_FILE,
    FileState,
    Look,
)
from server.bucket import SCHEMES, Bucket
from server.errors import (
    AdapterDamaged,
    InvalidInput,
    PathEscape,
    PickleRefused,
    SourceForbidden,
    SourceNotFound,
    SourceUnreachable,
    StorageFailed,
)

FIELD = "source"
MAX_CHARACTERS = 1024
CHUNK_BYTES = 1 << 20
KINDS = "file:/folder, s3://bucket/prefix, gs://bucket/prefix or hf:organisation/name@revision"
BUCKET_URL = re.compile(r"(s3|gs)://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(.+))?")
HUB_NAME = re.compile(r"hf:(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?", re.ASCII)
UNCLEAR = re.compile(r"[\\%?#*]")
"""Characters that something on the way might read otherwise than we do."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a source is taken, and how long it may take as a whole."""

    weights_bytes: int = MAX_WEIGHTS_BYTES
    text_bytes: int = MAX_TEXT_BYTES
    fetch_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """An adapter that now lies in a folder of ours. source: with links and revisions resolved, worth recording.

    files: as they were seen at the source, so that a later look tells whether it has changed since.
    """

    folder: Path
    source: str
    files: Look

    @property
    def num_bytes(self) -> int:
        return sum(state.num_bytes for state in self.files.values())


class Source(Protocol):
    """A place that may hold an adapter; nothing of it has been read yet."""

    def fetch(self, into: Path, limits: Limits) -> Fetched:
        """Copy the adapter's files into a new folder, on disk when this returns; on an error nothing is left of it.

        May take minutes; any thread may call it. Raises AdapterRefused, SourceNotFound, SourceUnreachable and
        StorageFailed.
        """


def parse(text: str, allowed_roots: Sequence[str]) -> Source:
    """Read the name of a source. Raises InvalidInput, and SourceForbidden for what is below no allowed root."""
    if len(text) > MAX_CHARACTERS or not text.isprintable():
        raise InvalidInput(FIELD, f"a source has at most {MAX_CHARACTERS} characters, all of them printable")
    if text.startswith("file:"):
        return _parse_folder(text, allowed_roots)
    if is_bucket(text):
        scheme, bucket, prefix = parse_bucket_url(text)
        if not prefix:
            raise InvalidInput(FIELD, f"`{text}` names a whole bucket; an adapter lies below a prefix")
        _check_allowed(text, f"{scheme}://{bucket}/{prefix}", allowed_roots)
        return BucketSource(scheme, bucket, prefix)
    if text.startswith("hf:"):
        return _parse_hub(text, allowed_roots)
    raise InvalidInput(FIELD, f"a source must be {KINDS}")


def is_bucket(text: str) -> bool:
    return text.startswith(tuple(f"{scheme}:" for scheme in SCHEMES))


def parse_bucket_url(text: str) -> tuple[str, str, str]:
    """Scheme, bucket and prefix, which may be empty. Raises InvalidInput."""
    match = BUCKET_URL.fullmatch(text.rstrip("/"))
    scheme, bucket, prefix = match.groups(default="") if match is not None else ("", "", "")
    parts = prefix.split("/") if prefix else []
    if not scheme or UNCLEAR.search(prefix) or {"", ".", ".."} & set(parts):
        raise InvalidInput(  # not shown: someone may have put a key into it
            FIELD,
            "a bucket is named s3://bucket/prefix or gs://bucket/prefix, with no empty part, no `.` or `..`, none of "
            "\\ % ? # * and no key",
        )
    return scheme, bucket, prefix


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder on this machine. path: real, links resolved. homes: the allowed roots, likewise.

    It is copied, not linked: whoever owns it may write to its files at any time, and what is served must not change.
    """

    path: Path
    homes: tuple[Path, ...]

    def fetch(self, into: Path, limits: Limits) -> Fetched:
        return _copy(f"file:{self.path}", self._look, self._read, into, limits)

    def _look(self) -> Look:
        try:
            return adapter_files.look(str(self.path))
        except OSError as error:
            raise SourceUnreachable(f"folder `{self.path}` cannot be read: {error.strerror}") from error

    def _read(self, name: str, state: FileState) -> Iterator[bytes]:
        try:
            real = (self.path / name).resolve(strict=True)
            if not any(real.is_relative_to(home) for home in self.homes):
                raise PathEscape(f"`{name}` leads out of the allowed roots")
            with open(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise AdapterDamaged(f"`{name}` is not a file")
                if adapter_files.state_of(status) != state:
                    raise _changed(f"file:{self.path}")
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            reason = getattr(error, "strerror", None) or error
            raise SourceUnreachable(f"`{name}` in folder `{self.path}` cannot be read: {reason}") from error


@dataclass(frozen=True, slots=True)
class BucketSource:
    """Objects below a prefix of a bucket."""

    scheme: str
    bucket: str
    prefix: str

    def fetch(self, into: Path, limits: Limits) -> Fetched:
        bucket = Bucket(self.scheme, self.bucket)
        return _copy(
            f"{bucket.url}/{self.prefix}",
            lambda: bucket.look(self.prefix),
            lambda name, state: bucket.read(f"{self.prefix}/{name}", state),
            into,
            limits,
        )


@dataclass(frozen=True, slots=True)
class HubSource:
    """A model repository at a branch, tag or commit."""

    repository: str
    revision: str

    def fetch(self, into: Path, limits: Limits) -> Fetched:
        snapshot = hub.resolve(self.repository, self.revision)  # a commit never changes: one look is enough
        return _copy(
            f"hf:{self.repository}@{snapshot.commit}",
            lambda: snapshot.files,
            lambda name, state: _chunks(snapshot.download(name)),
            into,
            limits,
        )


def _parse_folder(text: str, allowed_roots: Sequence[str]) -> FolderSource:
    name = text.removeprefix("file:")
    name = name.removeprefix("//") if name.startswith("///") else name
    if not name or name.startswith("//"):
        raise InvalidInput(FIELD, f"`{text}` must be file:/folder, or file:folder below an allowed root")
    homes = tuple(_real(Path(root.removeprefix("file:"))) for root in allowed_roots if not _is_remote(root))
    places = [_real(home / name) for home in homes]  # an absolute name replaces the home
    allowed = [place for place in places if any(place.is_relative_to(home) for home in homes)]
    if not allowed:
        raise SourceForbidden(f"`{text}` is below no folder that this server may read; --source-root allows one")
    return FolderSource(next((place for place in allowed if os.path.isdir(place)), allowed[0]), homes)


def _parse_hub(text: str, allowed_roots: Sequence[str]) -> HubSource:
    match = HUB_NAME.fullmatch(text)
    if match is None or ".." in text:
        raise InvalidInput(FIELD, "a model on a hub is named hf:organisation/name or hf:organisation/name@revision")
    _check_allowed(text, f"hf:{match['repository']}", allowed_roots)
    return HubSource(match["repository"], match["revision"] or "main")


def _check_allowed(text: str, place: str, allowed_roots: Sequence[str]) -> None:
    kind = place.partition(":")[0] + ":"
    roots = [root.rstrip("/") for root in allowed_roots]
    if not any(root in (kind, place, text) or place.startswith(f"{root}/") for root in roots if root.startswith(kind)):
        raise SourceForbidden(f"`{text}` is below no source that this server may read; --source-root allows one")


def _is_remote(root: str) -> bool:
    return root.startswith(("s3:", "gs:", "hf:"))


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise SourceNotFound(f"folder `{path}` cannot be found: its links form a loop") from error


def _copy(
    source: str,
    look: Callable[[], Look],
    read: Callable[[str, FileState], Iterable[bytes]],
    into: Path,
    limits: Limits,
) -> Fetched:
    """Look, copy what was seen, and look again: where both looks agree, the files belong together."""
    deadline = time.monotonic() + limits.fetch_s
    seen = look()
    _check(source, seen, limits)
    files = {name: state for name, state in seen.items() if name in adapter_files.ADAPTER_FILES}
    try:
        into.mkdir()
    except OSError as error:
        raise StorageFailed(f"folder `{into}` cannot be made: {error.strerror}") from error
    try:
        for name, state in files.items():
            _write(source, into / name, state, read(name, state), deadline)
        _sync_folder(into)
        if look() != seen:
            raise _changed(source)
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise
    return Fetched(into, source, files)


def _check(source: str, seen: Look, limits: Limits) -> None:
    if not seen:
        raise SourceNotFound(f"there is no adapter at `{source}`: neither {CONFIG_FILE} nor {WEIGHTS_FILE}")
    pickle = next((name for name in PICKLE_FILES if name in seen), None)
    if pickle is not None and WEIGHTS_FILE not in seen:
        raise PickleRefused(f"`{pickle}` is a pickle file, which can run code; save the adapter as {WEIGHTS_FILE}")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in seen:
            raise AdapterDamaged(f"`{name}` is missing at `{source}`")
    for name in adapter_files.ADAPTER_FILES:
        limit = limits.weights_bytes if name == WEIGHTS_FILE else limits.text_bytes
        if name in seen and seen[name].num_bytes > limit:
            raise AdapterDamaged(f"`{name}` at `{source}` has {seen[name].num_bytes} bytes, at most {limit} are taken")


def _write(source: str, path: Path, state: FileState, chunks: Iterable[bytes], deadline: float) -> None:
    """Write what a source sends. Its errors are ours already, so that an OSError here is our own disk's."""
    num_bytes = 0
    try:
        with path.open("xb") as file:
            for chunk in chunks:
                num_bytes += len(chunk)
                if num_bytes > state.num_bytes:
                    break
                if time.monotonic() > deadline:
                    raise SourceUnreachable(f"`{source}` takes too long to read; raise the time limit or try again")
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageFailed(f"`{path}` cannot be written: {error.strerror}") from error
    if num_bytes != state.num_bytes:
        raise _changed(source)


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise SourceUnreachable(f"`{path.name}` in the hub's cache cannot be read: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    """Make the names of its files last through a power cut, as their bytes do."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise StorageFailed(f"folder `{folder}` cannot be written: {error.strerror}") from error


def _changed(source: str) -> SourceUnreachable:
    return SourceUnreachable(f"`{source}` changed while it was read; try again")
