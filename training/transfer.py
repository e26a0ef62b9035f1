"""Adapters between this machine and a hub, a bucket or another folder: checked, and whole or not at all.

What is fetched comes through the server's own sources. A bucket has no way to put several files at once: the manifest,
which holds the hash of the weights, goes first and the weights last. Until the end there is either no adapter or one
whose weights are not those of its manifest, and whoever reads it refuses both.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server import sources
from server.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from server.bucket import Bucket
from server.errors import AdapterDamaged, DataError, InvalidInput, SourceForbidden, SourceUnreachable
from server.manifest import FILE_NAME as MANIFEST_FILE
from server.manifest import Manifest
from server.sources import BucketSource, FolderSource, HubSource, Limits, Source
from training import adapter_check, whole_folder
from training.model_card import model_card

CARD = "README.md"
ORDER = (MANIFEST_FILE, CARD, CONFIG_FILE, WEIGHTS_FILE)
"""In which the files of an adapter are put into a bucket."""
ANYWHERE = ("/", "s3:", "gs:", "hf:")


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was put where. destination: of a hub, with the commit. num_bytes: by file."""

    destination: str
    num_bytes: Mapping[str, int]
    weights_sha256: str


@dataclass(frozen=True, slots=True)
class Pulled:
    """What was fetched from where. source: with links and revisions resolved. manifest: None of a foreign folder."""

    source: str
    num_bytes: int
    manifest: Manifest | None


def push(folder: Path, destination: str, public: bool = False, overwrite: bool = False) -> Pushed:
    """Put an adapter of ours at `file:folder`, `s3://bucket/prefix`, `gs://bucket/prefix` or `hf:owner/name@branch`.

    public: of a repository that is made for it. overwrite: replace what lies in a folder or bucket; a hub keeps what
    was. Raises DataError, AdapterRefused, SourceUnreachable, SourceForbidden and StorageFailed.
    """
    place = _place(destination)
    _, weights = adapter_check.check_files(folder)
    manifest = adapter_check.read_manifest(folder, weights)
    if manifest is None:
        raise DataError(
            f"`{folder}` has no {MANIFEST_FILE}, which says what the weights are; push what `run` has written"
        )
    files = {name: folder / name for name in ORDER if (folder / name).is_file()}
    if isinstance(place, BucketSource):
        where = _to_bucket(files, place, overwrite)
    elif isinstance(place, HubSource):
        where = _to_hub(folder, list(files), place, public)
    else:
        assert isinstance(place, FolderSource), "there are three kinds of places"
        where = _to_folder(files, place.path, overwrite)
    num_bytes = {name: path.stat().st_size for name, path in files.items()}
    return Pushed(where, num_bytes, manifest.weights_sha256)


def pull(source: str, folder: Path, overwrite: bool = False, limits: Limits = Limits()) -> Pulled:  # noqa: B008  # frozen
    """Fetch an adapter into a folder, which appears once its weights are known to be those of its manifest.

    Raises DataError, AdapterRefused, SourceNotFound, SourceUnreachable, SourceForbidden and StorageFailed.
    """
    adapter_check.check_target(folder, overwrite)
    place = _place(source)
    with whole_folder.written(folder) as fresh:
        fetched = place.fetch(fresh, limits)
        _, weights = adapter_check.check_files(fresh)
        manifest = adapter_check.read_manifest(fresh, weights)
        if manifest is not None and manifest.training is not None:
            (fresh / CARD).write_text(model_card(manifest, folder.name), encoding="utf-8")
    return Pulled(fetched.source, fetched.num_bytes, manifest)


def _place(text: str) -> Source:
    name = text.removeprefix("file:")
    if name and name != text:  # relative to where the command runs
        text = f"file:{Path(name).expanduser().resolve()}"
    try:
        return sources.parse(text, ANYWHERE)
    except InvalidInput as error:
        raise DataError(str(error)) from error


def _to_bucket(files: Mapping[str, Path], place: BucketSource, overwrite: bool) -> str:
    bucket = Bucket(place.scheme, place.bucket)
    where = f"{bucket.url}/{place.prefix}"
    if bucket.look(place.prefix) and not overwrite:
        raise DataError(f"`{where}` holds an adapter already; choose another prefix or pass --overwrite")
    for name, path in files.items():
        bucket.write(f"{place.prefix}/{name}", path)
    seen = bucket.look(place.prefix)
    different = [name for name in seen if seen[name].num_bytes != files[name].stat().st_size]
    if different:
        raise AdapterDamaged(f"`{where}/{different[0]}` has another size than what was put there; push it again")
    return where


def _to_folder(files: Mapping[str, Path], folder: Path, overwrite: bool) -> str:
    whole_folder.check_free(folder, overwrite)
    with whole_folder.written(folder) as fresh:
        fresh.mkdir()
        for name, path in files.items():
            shutil.copyfile(path, fresh / name)
    return f"file:{folder}"


def _to_hub(folder: Path, names: list[str], place: HubSource, public: bool) -> str:
    """All files in one commit."""
    from huggingface_hub import HfApi, is_offline_mode

    where = f"hf:{place.repository}@{place.revision}"
    if is_offline_mode():
        raise SourceUnreachable(f"`{where}` cannot be pushed to: HF_HUB_OFFLINE is set")
    with _telling(where):
        api = HfApi()
        api.create_repo(place.repository, private=not public, exist_ok=True)
        if place.revision != "main":
            api.create_branch(place.repository, branch=place.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=place.repository,
            folder_path=folder,
            allow_patterns=names,
            revision=place.revision,
            commit_message=f"Upload {folder.resolve().name} with adaptermux",
        )
    return f"hf:{place.repository}@{commit.oid}"


@contextmanager
def _telling(where: str) -> Iterator[None]:
    """Turn an error of the hub's library into one of ours."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    hint = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write there"
    try:
        yield
    except LocalTokenNotFoundError:
        raise SourceForbidden(f"`{where}` needs a login; {hint}") from None
    except HFValidationError as error:
        raise DataError(f"`{where}` is no name on a hub: {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise SourceForbidden(f"the hub does not let this login write to `{where}`; {hint}") from None
        raise SourceUnreachable(f"the hub answered {status} for `{where}`; nothing was committed") from None
    except ValueError as error:
        raise DataError(f"`{where}` does not take the adapter: {error}") from error
    except Exception as error:  # of the HTTP client below the library, which differs from release to release
        raise SourceUnreachable(
            f"`{where}` cannot be pushed to: {type(error).__name__}; nothing was committed"
        ) from None
