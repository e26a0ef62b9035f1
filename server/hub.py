"""A model repository on a Hugging Face hub, or in its local cache, read through huggingface_hub.

Endpoint, token, cache and offline mode come from the library's own environment variables (HF_*).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.adapter_files import ADAPTER_FILES, PICKLE_FILES, WEIGHTS_FILE, FileState, Look, state_of
from server.errors import SourceNotFound, SourceUnreachable, StorageFailed

TIMEOUT_S = 10.0
"""For an answer of the hub's API; the library bounds the reading of files itself (HF_HUB_DOWNLOAD_TIMEOUT)."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository as it was at one commit."""

    repository: str
    revision: str
    commit: str
    files: Look

    def download(self, name: str) -> Path:
        """The path of a file in the local cache, which is filled where it lacks the file."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

        if not are_progress_bars_disabled():
            disable_progress_bars()  # they would break the lines of the log
        what = f"{self.repository}@{self.revision}"
        with _telling(what):  # asked for by revision, so that the cache knows its commit when there is no hub
            path = Path(hf_hub_download(self.repository, name, revision=self.revision))
        if path.parent.name != self.commit:
            raise SourceUnreachable(f"`{what}` moved to another commit while it was read; try again")
        return path


def resolve(repository: str, revision: str) -> Snapshot:
    """Find out which commit a branch or tag is, and what files it has."""
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        return _cached(repository, revision)
    from huggingface_hub import HfApi

    with _telling(f"{repository}@{revision}"):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    commit = info.sha
    if commit is None:
        raise SourceUnreachable(f"the hub names no commit for `{repository}@{revision}`")
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    names = ADAPTER_FILES if WEIGHTS_FILE in sizes else (*ADAPTER_FILES, *PICKLE_FILES)
    return Snapshot(
        repository, revision, commit, {name: FileState(sizes[name], commit) for name in names if name in sizes}
    )


def _cached(repository: str, revision: str) -> Snapshot:
    from huggingface_hub import try_to_load_from_cache

    paths = {}
    for name in (*ADAPTER_FILES, *PICKLE_FILES):
        path = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(path, str):
            paths[name] = Path(path)
    if not paths:
        raise SourceNotFound(f"`{repository}@{revision}` is not in the local cache, and this server is offline")
    commit = next(iter(paths.values())).parent.name
    return Snapshot(repository, revision, commit, {name: state_of(path.stat()) for name, path in paths.items()})


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """Turn an error of the library into one of ours, with nothing of its own text, which may hold addresses."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except LocalEntryNotFoundError:  # the library's word for a hub that does not answer
        raise SourceUnreachable(f"the hub cannot be reached for `{what}`") from None
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError):
        raise SourceNotFound(
            f"the hub has no model `{what}`, or this server's token (HF_TOKEN) may not see it"
        ) from None
    except HfHubHTTPError as error:
        raise SourceUnreachable(f"the hub answered {error.response.status_code} for `{what}`") from None
    except OSError as error:
        if error.errno is None:
            raise SourceUnreachable(f"the hub cannot be reached for `{what}`") from None
        raise StorageFailed(f"the hub's local cache (HF_HOME) cannot be used: {error.strerror}") from None
    except Exception as error:  # of the HTTP client below the library, which differs from release to release
        raise SourceUnreachable(f"`{what}` cannot be read from the hub: {type(error).__name__}") from None
