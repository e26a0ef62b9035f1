"""A folder that appears under its name once it is whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from server.errors import DataError, StorageFailed


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse an output that is in the way, before any time is spent. Raises DataError."""
    if folder.exists() and not (overwrite and folder.is_dir()):
        raise DataError(f"output `{folder}` exists already; choose another name or pass --overwrite")


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """Where to make the folder; it gets its name, in place of what has it, when the block ends without an error.

    Raises StorageFailed.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise StorageFailed(f"`{folder}` cannot be written: {error.strerror}") from error
    try:
        place = hidden / folder.name
        yield place
        for path in place.iterdir():
            path.chmod(place.stat().st_mode & 0o666)  # safetensors shuts others out, a server among them
        _swap_in(place, folder, hidden / ".old")
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _swap_in(place: Path, folder: Path, old: Path) -> None:
    if not folder.exists():
        os.rename(place, folder)
        return
    os.rename(folder, old)
    try:
        os.rename(place, folder)
    except OSError:
        os.rename(old, folder)
        raise
