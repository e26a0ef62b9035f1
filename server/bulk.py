"""`adaptermux-serve classify`: a file in, the same rows with their answers out, by way of a running server."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from server.asker import Asker, Outcome, Question
from server.client import Client
from server.errors import ClassifyFailed, DataError, SettingsError
from server.partial_file import Mark, PartialFile, writing
from server.rows import Columns, Encoder, Kind, OutputKind, Row, Rows

STANDARD_INPUT = Path("-")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be classified into what. output: None is standard output. overwrite: a finished output."""

    source: Path
    input_kind: Kind
    columns: Columns
    output: Path | None
    output_kind: OutputKind
    overwrite: bool
    question: Question


@dataclass(frozen=True, slots=True)
class Traffic:
    """How the server is asked; what it answers does not depend on it. api_key: shown where there is one."""

    url: str
    api_key: str | None
    batch: int
    concurrency: int
    retry_s: float


def classify_file(order: Order, traffic: Traffic, quiet: bool) -> None:
    """Classify every row. A progress bar shows on a terminal unless `quiet`.

    Raises SettingsError, DataError and ClassifyFailed; what is in the output's partial file then stays, and the same
    call goes on behind it.
    """
    if order.output is not None and order.output.exists() and not order.overwrite:
        raise SettingsError(f"`{order.output}` exists; choose another --output, or say --overwrite")
    with (
        Client(traffic.url, traffic.api_key, traffic.retry_s) as client,
        ThreadPoolExecutor(traffic.concurrency) as pool,
        ExitStack() as stack,
    ):
        stack.callback(client.stop)  # the pool's threads then wait for nothing
        problem_type = client.show_adapter(order.question.adapter_id).problem_type
        asker = Asker(client, order.question, has_labels=problem_type == "multi_label")
        rows = Rows(stack.enter_context(_open(order.source)), str(order.source), order.input_kind, order.columns)
        encoder = Encoder(order.output_kind, rows.names, asker.names)
        sink = _open_sink(order, (*rows.names, *asker.names), stack)
        ledger = _Ledger(encoder, sink)
        left = ledger.skip_done(iter(rows))
        bar = stack.enter_context(tqdm(unit=" rows", initial=sink.mark.num_rows, disable=True if quiet else None))
        if not bar.disable:
            bar.total = _count(order)
        with _telling_how_far(sink):
            batches = iter(lambda: list(islice(left, traffic.batch)), [])
            for batch, outcomes in _in_order(pool, asker.ask, batches, 2 * traffic.concurrency):
                ledger.add(batch, outcomes)
                bar.update(len(batch))
        sink.finish()
    for note in _notes(sink.mark):
        print(f"adaptermux-serve: {note}", file=sys.stderr)


class _StandardOutput:
    """Takes rows as `PartialFile` does; nothing of it can be taken up again."""

    path: Path | None = None

    def __init__(self) -> None:
        self.mark = Mark()

    def append(self, data: bytes, mark: Mark) -> None:
        self.mark, left = mark, memoryview(data)
        with writing("standard output"):
            while left:
                left = left[os.write(sys.stdout.fileno(), left) :]

    def finish(self) -> None:
        """Nothing is kept back."""


class _Ledger:
    """Writes answered rows, and knows which rows of the input they are by a digest that goes along."""

    def __init__(self, encoder: Encoder, sink: PartialFile | _StandardOutput) -> None:
        self._encoder, self._sink, self._digest = encoder, sink, hashlib.sha256()
        header = encoder.header()
        if sink.mark.num_bytes == 0 and header:
            sink.append(header, Mark(num_bytes=len(header)))

    def skip_done(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The rows that an earlier run has not written; raises DataError where those that it has are others now."""
        done = self._sink.mark
        num_rows = self._count(islice(rows, done.num_rows))
        if done.num_rows and (num_rows, self._digest.hexdigest()) != (done.num_rows, done.input_sha256):
            raise DataError(
                f"`{self._sink.path}` was begun with another input, of which {done.num_rows} rows are done; "
                f"delete `{self._sink.path}` to begin anew"
            )
        return rows

    def add(self, batch: Sequence[Row], outcomes: Sequence[Outcome]) -> None:
        """Write a batch and mark it as done."""
        data = self._encoder.encode((row, outcome.values) for row, outcome in zip(batch, outcomes, strict=True))
        done = self._sink.mark
        versions = dict.fromkeys([*done.versions, *(one.version for one in outcomes if one.version is not None)])
        mark = Mark(
            num_rows=done.num_rows + self._count(batch),
            num_bytes=done.num_bytes + len(data),
            input_sha256=self._digest.hexdigest(),
            num_refused=done.num_refused + sum(one.version is None for one in outcomes),
            versions=tuple(versions),
        )
        self._sink.append(data, mark)

    def _count(self, rows: Iterable[Row]) -> int:
        """How many rows these are, now part of the digest."""
        count = 0
        for count, row in enumerate(rows, 1):  # noqa: B007
            self._digest.update(json.dumps(row.cells).encode("ascii") + b"\n")
        return count


def _in_order(
    pool: ThreadPoolExecutor,
    ask: Callable[[list[Row]], list[Outcome]],
    batches: Iterator[list[Row]],
    ahead: int,
) -> Iterator[tuple[list[Row], list[Outcome]]]:
    """Every batch with its outcomes, in order; up to `ahead` of them are under way.

    Where the input turns out to be damaged, what was read before comes first.
    """
    waiting: deque[tuple[list[Row], Future[list[Outcome]]]] = deque()
    fault: DataError | None = None
    while fault is None:
        try:
            batch = next(batches, None)
        except DataError as error:
            fault = error
        else:
            if batch is None:
                break
            waiting.append((batch, pool.submit(ask, batch)))
            if len(waiting) >= ahead:
                batch, future = waiting.popleft()
                yield batch, future.result()
    for batch, future in waiting:
        yield batch, future.result()
    if fault is not None:
        raise fault


def _open(source: Path) -> TextIO:
    """A file of rows, line ends as they are."""
    try:
        if source == STANDARD_INPUT:
            return open(sys.stdin.fileno(), encoding="utf-8-sig", newline="", closefd=False)
        return source.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise DataError(f"`{source}` cannot be read: {error.strerror}") from error


def _open_sink(order: Order, names: Sequence[str], stack: ExitStack) -> PartialFile | _StandardOutput:
    if order.output is None:
        return _StandardOutput()
    # rows that were made with anything else must not be gone on with
    options = {"input_kind": order.input_kind, "output_kind": order.output_kind, "columns": list(names)}
    options |= {**asdict(order.columns), **asdict(order.question)}
    return stack.enter_context(PartialFile(order.output, options))


def _count(order: Order) -> int | None:
    """How many rows a file has."""
    if order.source == STANDARD_INPUT:
        return None
    with suppress(DataError), _open(order.source) as file:  # it will be told when the rows before it are done
        return sum(1 for _ in Rows(file, str(order.source), order.input_kind, order.columns))
    return None


@contextmanager
def _telling_how_far(sink: PartialFile | _StandardOutput) -> Iterator[None]:
    """Say of whatever ends the work how to go on with it."""
    try:
        yield
    except (ClassifyFailed, DataError, KeyboardInterrupt) as error:
        reason = str(error) or "interrupted"
        if sink.path is not None:
            reason += f"; {sink.mark.num_rows} rows are in `{sink.path}`, and the same command goes on behind them"
        raise ClassifyFailed(reason) from error


def _notes(mark: Mark) -> Iterator[str]:
    if mark.num_refused:
        yield f"{mark.num_refused} of {mark.num_rows} rows were not classified; the output says why"
    if len(mark.versions) > 1:
        yield f"{len(mark.versions)} versions of the adapter answered: {', '.join(mark.versions)}"
