"""A folder that appears under its name once it is whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from safetensors import SafetensorError

from server.errors import DataError, StorageFailed


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse an output that is in the way or cannot be written, before any time is spent.

    Raises DataError and StorageFailed.
    """
    try:
        is_in_way = folder.exists() and not (overwrite and folder.is_dir())
        above = next(parent for parent in folder.absolute().parents if parent.exists())
    except OSError as error:  # a name that is too long, or a folder that lets nobody look
        raise StorageFailed(f"`{folder}` cannot be written: {error.strerror}") from error
    if is_in_way:
        raise DataError(f"output `{folder}` exists already; choose another name or pass --overwrite")
    if not above.is_dir():
        raise StorageFailed(f"`{folder}` cannot be written: `{above}` is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise StorageFailed(f"`{folder}` cannot be written: `{above}` takes no files from you")


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """Where to make the folder; it gets its name, in place of what has it, when the block ends without an error.

    Raises StorageFailed, also for what the block cannot write. What is not whole is taken away again.
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
    except OSError as error:
        raise StorageFailed(f"`{folder}` cannot be written: {error.strerror or error}") from error
    except SafetensorError as error:  # has the disk's error in words only
        raise StorageFailed(f"`{folder}` cannot be written: {error}") from error
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
