"""Whether a folder is an adapter, before anything heavy is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from server import manifest as manifest_format
from server.adapter_files import CONFIG_FILE, PICKLE_FILES, WEIGHTS_FILE
from server.errors import AdapterDamaged, DataError, PickleRefused
from server.manifest import ADAPTER_ID, Manifest
from server.manifest import FILE_NAME as MANIFEST_FILE
from server.weights_file import WeightsFile, check_digest, read_header
from training import whole_folder


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse an output that is in the way or could not be served, before any time is spent. Raises DataError."""
    if not ADAPTER_ID.fullmatch(folder.name):
        raise DataError(f"output `{folder.name}` is no adapter name; take 1 to 128 of A-Z a-z 0-9 . _ -")
    whole_folder.check_free(folder, overwrite)


def check_files(folder: Path) -> tuple[dict[str, object], WeightsFile]:
    """The configuration and the weights' header. Raises AdapterRefused, and DataError where there is no folder."""
    if not folder.is_dir():
        raise DataError(f"adapter folder `{folder}` {'is a file' if folder.exists() else 'does not exist'}")
    pickle = next((name for name in PICKLE_FILES if (folder / name).exists()), None)
    if pickle is not None:
        raise PickleRefused(f"`{folder / pickle}` is a pickle file, which can run code; keep {WEIGHTS_FILE} alone")
    if not (folder / CONFIG_FILE).exists():
        raise AdapterDamaged(f"`{folder}` holds no adapter: there is no {CONFIG_FILE}")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterDamaged(f"`{folder / CONFIG_FILE}` cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise AdapterDamaged(f"`{folder / CONFIG_FILE}` holds {type(config).__name__}, not an object")
    return config, read_header(folder / WEIGHTS_FILE)


def read_manifest(folder: Path, weights: WeightsFile) -> Manifest | None:
    """What adapter.json says, its hash of the weights checked; None where there is none. Raises AdapterDamaged."""
    path = folder / MANIFEST_FILE
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterDamaged(f"`{path}` cannot be read: {error}") from error
    manifest = manifest_format.parse(text)
    check_digest(weights, manifest.weights_sha256)
    return manifest
