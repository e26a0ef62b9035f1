"""A bucket of S3 or Google Cloud Storage, through obstore.

Endpoint, credentials and time limits come from the environment variables of either cloud (AWS_*, GOOGLE_*), which
obstore reads itself. Its messages may hold endpoints and answers, so ours are written here from what kind of error it
was, and nothing of its own is passed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.adapter_files import ADAPTER_FILES, PICKLE_FILES, WEIGHTS_FILE, FileState, Look
from server.errors import SourceForbidden, SourceNotFound, SourceUnreachable

if TYPE_CHECKING:
    from obstore import ObjectMeta

SCHEMES = ("s3", "gs")
PART_BYTES = 8 << 20
"""Read by one request, which has obstore's 30 s (AWS_TIMEOUT): 280 KB/s are enough, and no more is in memory."""
MAX_RETRIES = 3
RETRY_TIMEOUT = timedelta(seconds=30)
MAX_KEYS = 200_000
NO_TAG = "modified "


class Bucket:
    """One bucket; any thread may use it. Raises SourceForbidden where obstore is not installed."""

    def __init__(self, scheme: str, name: str) -> None:
        try:
            import obstore
            from obstore import exceptions
            from obstore.store import from_url
        except ModuleNotFoundError:
            raise SourceForbidden(
                f"`{scheme}://` is not enabled on this server; it needs `pip install 'adaptermux[cloud]'`"
            ) from None
        self.url = f"{scheme}://{name}"
        self._obstore, self._errors = obstore, exceptions
        retries: Any = {"max_retries": MAX_RETRIES, "retry_timeout": RETRY_TIMEOUT}
        try:
            # client options given here would replace all of those that the environment holds
            self._store: Any = from_url(self.url, retry_config=retries)
        except (ValueError, exceptions.BaseError):
            raise SourceUnreachable(
                f"`{self.url}` cannot be opened; check the variables AWS_* or GOOGLE_* of this server"
            ) from None

    def look(self, prefix: str) -> Look:
        """What of an adapter's files lies below a prefix."""
        found = self._states(prefix, ADAPTER_FILES)
        return found if WEIGHTS_FILE in found else found | self._states(prefix, PICKLE_FILES)

    def looks(self, prefix: str) -> dict[str, Look]:
        """The same of every folder below a prefix, hidden ones left out; pickles are not looked for."""
        found: dict[str, dict[str, FileState]] = {}
        start, num_keys = len(prefix) + 1 if prefix else 0, 0
        with self._telling(f"{self.url}/{prefix}"):
            for page in self._obstore.list(self._store, prefix or None, chunk_size=1000):
                num_keys += len(page)
                if num_keys > MAX_KEYS:
                    raise SourceUnreachable(
                        f"`{self.url}/{prefix}` holds more than {MAX_KEYS} objects; keep adapters below a prefix "
                        "of their own"
                    )
                for meta in page:
                    name, slash, file = meta["path"][start:].partition("/")
                    if slash and not name.startswith("."):
                        folder = found.setdefault(name, {})
                        if file in ADAPTER_FILES:
                            folder[file] = _state_of(meta)
        return dict(found)

    def files(self, prefix: str) -> dict[str, FileState]:
        """What lies right below a prefix, by name."""
        start = len(prefix) + 1 if prefix else 0
        with self._telling(f"{self.url}/{prefix}"):
            listed = self._obstore.list_with_delimiter(self._store, prefix or None)
        return {meta["path"][start:]: _state_of(meta) for meta in listed["objects"]}

    def read(self, key: str, state: FileState) -> Iterator[bytes]:
        """The object that was seen, part by part. Raises SourceUnreachable once it was replaced."""
        condition = {} if state.tag.startswith(NO_TAG) else {"if_match": state.tag}
        for start in range(0, state.num_bytes, PART_BYTES):
            stop = min(start + PART_BYTES, state.num_bytes)
            with self._telling(f"{self.url}/{key}"):
                options: Any = {"range": (start, stop), **condition}
                data = bytes(self._obstore.get(self._store, key, options=options).bytes())
            yield data

    def write(self, key: str, path: Path) -> None:
        """Put a file of this machine under a key, whole or not at all."""
        with self._telling(f"{self.url}/{key}", "written"):
            self._obstore.put(self._store, key, path)

    def _states(self, prefix: str, names: tuple[str, ...]) -> dict[str, FileState]:
        found = {}
        for name in names:
            key = f"{prefix}/{name}"
            try:
                with self._telling(f"{self.url}/{key}"):
                    found[name] = _state_of(self._obstore.head(self._store, key))
            except SourceNotFound:
                continue
        return found

    @contextmanager
    def _telling(self, url: str, done: str = "read") -> Iterator[None]:
        """Turn an error of obstore into one of ours."""
        try:
            yield
        except FileNotFoundError:
            raise SourceNotFound(f"there is no `{url}`") from None
        except (self._errors.PermissionDeniedError, self._errors.UnauthenticatedError):
            raise SourceUnreachable(
                f"`{url}` may not be {done} with the credentials at hand; they need leave to list it and have it {done}"
            ) from None
        except self._errors.PreconditionError:
            raise SourceUnreachable(f"`{url}` was replaced while it was read; try again") from None
        except self._errors.BaseError as error:
            raise SourceUnreachable(f"`{url}` cannot be {done}: {_cause(str(error))}") from None


def _state_of(meta: ObjectMeta) -> FileState:
    return FileState(meta["size"], meta.get("e_tag") or f"{NO_TAG}{meta['last_modified'].isoformat()}")


def _cause(text: str) -> str:
    """What went wrong, in words that hold nothing of the endpoint or its answer."""
    status = re.search(r"status code: (\d{3})", text)
    if status is not None:
        return f"the store answered {status[1]}"
    if "TimedOut" in text or "timed out" in text:
        return "the store did not answer in time"
    if "Connect" in text:
        return "the store cannot be connected to"
    return "the connection failed"
