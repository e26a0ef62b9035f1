"""A file that is written over a long time: it gets its name when it is whole, and what was interrupted goes on.

Beside `answers.csv.partial`, which holds the rows so far, lies `answers.csv.partial.json`, which says how far they go
and what they were made with. The rows are written first: what is behind the last mark is cut off when the work goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from server.errors import ClassifyFailed, DataError

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the work has come. input_sha256: of the input's rows that are done. num_refused: of those rows.

    versions: of the adapter, in the order in which they first answered.
    """

    num_rows: int = 0
    num_bytes: int = 0
    input_sha256: str = ""
    num_refused: int = 0
    versions: tuple[str, ...] = ()


class PartialFile:
    """The rows so far of a file to be. Use it as a context manager; one process at a time may have it open.

    Opening raises DataError where rows lie there that were made with other options, and ClassifyFailed where nothing
    can be written.
    """

    def __init__(self, path: Path, options: Mapping[str, object]) -> None:
        self.path = path.with_name(f"{path.name}.partial")
        self._final, self._options = path, options
        self._record_path = path.with_name(f"{path.name}.partial.json")
        with writing(self.path):
            self._file = self.path.open("ab")
        try:
            self._lock()
            self.mark = self._read_mark()
            with writing(self.path):
                self._file.truncate(self.mark.num_bytes)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, data: bytes, mark: Mark) -> None:
        """Add whole rows, and then say so. `mark` counts them, and its bytes."""
        with writing(self.path):
            self._file.write(data)
            self._file.flush()
            record = {"schema": SCHEMA, "options": self._options, **asdict(mark)}
            fresh = self._record_path.with_name(f"{self._record_path.name}.new")
            fresh.write_text(json.dumps(record) + "\n", encoding="utf-8")
            fresh.replace(self._record_path)
        self.mark = mark

    def finish(self) -> None:
        """Give the file its name."""
        with writing(self._final):
            os.fsync(self._file.fileno())
            self.path.replace(self._final)
            self._record_path.unlink(missing_ok=True)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ClassifyFailed(f"`{self.path}` is being written by another process; wait for its end") from error

    def _read_mark(self) -> Mark:
        """How far an earlier run came."""
        num_bytes = os.fstat(self._file.fileno()).st_size
        if num_bytes == 0:
            return Mark()
        hint = f"delete `{self.path}` to begin anew"
        try:
            record = json.loads(self._record_path.read_text(encoding="utf-8"))
            schema, options = record.pop("schema"), record.pop("options")
            mark = Mark(**{**record, "versions": tuple(record["versions"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"`{self._record_path}`, which says what the rows are, cannot be read; {hint}") from error
        if schema != SCHEMA:
            raise DataError(f"`{self._record_path}` has schema {schema!r}, this version reads {SCHEMA}; {hint}")
        changed = sorted(name for name in {*options, *self._options} if options.get(name) != self._options.get(name))
        if changed:
            was, now = options.get(changed[0]), self._options.get(changed[0])
            raise DataError(f"`{self.path}` was begun with another {changed[0]}: {was!r}, now {now!r}; {hint}")
        if num_bytes < mark.num_bytes:
            raise DataError(f"`{self.path}` has {num_bytes} bytes, it had {mark.num_bytes}; {hint}")
        return mark


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Tell what the operating system says against writing to it."""
    try:
        yield
    except OSError as error:
        raise ClassifyFailed(f"`{path}` cannot be written: {error.strerror or error}") from error
