"""`adaptermux-serve fetch-base`: bring a base model into a folder, whole and checked, before a server starts."""

from __future__ import annotations

import fnmatch
import re
import shutil
import tempfile
from pathlib import Path

from server.base_model import HUB_FILES, family_of_folder, fingerprint
from server.bucket import Bucket
from server.errors import BaseModelError, SettingsError
from server.sources import is_bucket, parse_bucket_url

DIGEST = re.compile(r"[0-9a-f]{64}")


def fetch_base(source: str, into: Path, sha256: str | None) -> int:
    """Fetch it under another name, check it and rename it; a folder that holds it already is left alone."""
    if sha256 is not None and not DIGEST.fullmatch(sha256):
        raise SettingsError(f"--sha256 is `{sha256}`, it must be 64 hexadecimal digits in lower case")
    if into.is_dir():
        _check(into, sha256)
        print(f"{into} is there already")
        return 0
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=into.parent) as place:
            fetched = Path(place) / into.name
            fetched.mkdir()
            _fetch(source, fetched)
            digest = _check(fetched, sha256)
            fetched.rename(into)
    except OSError as error:
        raise BaseModelError(f"base model cannot be written to `{into}`: {error.strerror}") from error
    print(f"{into} fetched, sha256 {digest}")
    return 0


def _fetch(source: str, into: Path) -> None:
    if is_bucket(source):
        scheme, name, prefix = parse_bucket_url(source)
        bucket = Bucket(scheme, name)
        for file, state in bucket.files(prefix).items():
            if _is_wanted(file):
                with (into / file).open("wb") as target:
                    target.writelines(bucket.read(f"{prefix}/{file}" if prefix else file, state))
    elif source.startswith("hf:"):
        _fetch_from_hub(source.removeprefix("hf:"), into)
    else:
        raise SettingsError(f"source `{source}` must be s3://bucket/prefix, gs://bucket/prefix or hf:org/name@revision")


def _fetch_from_hub(spec: str, into: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = spec.partition("@")
    try:
        snapshot = snapshot_download(repository, revision=revision or "main", allow_patterns=list(HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise BaseModelError(f"base model `{spec}` cannot be fetched from the hub: {error}") from error
    for path in Path(snapshot).iterdir():
        if path.is_file() and _is_wanted(path.name):
            shutil.copyfile(path, into / path.name)


def _is_wanted(file: str) -> bool:
    return any(fnmatch.fnmatch(file, pattern) for pattern in HUB_FILES)


def _check(folder: Path, sha256: str | None) -> str:
    """Raises BaseModelError for what is no base model, or another one."""
    family_of_folder(folder)
    digest = fingerprint(folder)
    if sha256 is not None and digest != sha256:
        raise BaseModelError(f"base model in `{folder.name}` has the sha256 {digest}, not {sha256}; is it another one?")
    return digest
