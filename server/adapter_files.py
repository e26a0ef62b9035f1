"""The files of an adapter folder: what they are called, how large they may be, and what can be seen of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass

from server.manifest import FILE_NAME as MANIFEST_FILE

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)
PICKLE_FILES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
MAX_TEXT_BYTES = 16 << 20
MAX_WEIGHTS_BYTES = 4 << 30

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG}


@dataclass(frozen=True, slots=True)
class FileState:
    """What can be seen of a file without reading it. tag: differs once the file was replaced or written to."""

    num_bytes: int
    tag: str


Look = Mapping[str, FileState]
"""What of an adapter's files can be seen, by name; one that is not there is left out."""


def look(folder: str) -> Look:
    """Look at a folder on disk, through links; pickles are looked for where there are no weights.

    Raises OSError where the disk itself fails, so that this is not taken for a file that has gone.
    """
    found = _states(folder, ADAPTER_FILES)
    return found if WEIGHTS_FILE in found else found | _states(folder, PICKLE_FILES)


def state_of(status: os.stat_result) -> FileState:
    """The state of a file on disk: a new inode, or another time or size, is another state."""
    return FileState(status.st_size, f"{status.st_ino} {status.st_mtime_ns}")


def is_absent(error: OSError) -> bool:
    """Whether an error says that there is nothing to read at a path, rather than that the disk fails."""
    return error.errno in _ABSENT


def _states(folder: str, names: tuple[str, ...]) -> dict[str, FileState]:
    found = {}
    for name in names:
        try:
            found[name] = state_of(os.stat(f"{folder}/{name}"))
        except OSError as error:
            if not is_absent(error):
                raise
    return found
