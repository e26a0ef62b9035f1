"""The measurements that decisions rest on: one JSON object a line, each with where it comes from.

Whoever measures writes these rows; whoever decides reads them. Units stand in the names.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

LABEL_TYPE = np.dtype("<u2")
"""Predicted labels are kept as these, by the label's index."""
MAJORITY, WORDS, PROBE, FULL = "majority", "words", "probe", "full"
BASELINES = (MAJORITY, WORDS, PROBE, FULL)
"""Methods that make no adapter: the commonest label, logistic regressions on TF-IDF of words and on the frozen base's
embeddings, full fine-tuning."""


class RowsError(Exception):
    """A file of measurements cannot be read; the message names the line and the field."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Provenance(_Record):
    """Where a row comes from."""

    machine: str
    """Processor, cores and, if there is one, the accelerator."""
    versions: dict[str, str]
    """Of Python and the libraries that matter."""
    commit: str
    """Of this project; ends in `+changes` where files differed from it, and is `unknown` outside a checkout."""
    command: str
    created: str
    """ISO 8601, UTC."""


class Predictions(_Record):
    """What was answered for each row of the test split, in its order, packed."""

    num_rows: int = Field(ge=1)
    truth_sha256: str
    """Of the true labels' indices: rows with the same one were measured on the same test."""
    hits: str
    """Base64 of one bit a row, first row in the highest bit: whether the answer was right."""
    predicted: str
    """Base64 of the zlib-compressed label indices, little-endian, 16 bits each."""

    @staticmethod
    def pack(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> Predictions:
        """truth, predicted [rows]: indices of labels."""
        indices = predicted.astype(LABEL_TYPE).tobytes()
        return Predictions(
            num_rows=len(truth),
            truth_sha256=hashlib.sha256(truth.astype(LABEL_TYPE).tobytes()).hexdigest(),
            hits=base64.b64encode(np.packbits(truth == predicted).tobytes()).decode(),
            predicted=base64.b64encode(zlib.compress(indices, 9)).decode(),
        )

    def right(self) -> NDArray[np.bool_]:
        """Whether each row was right. [rows]"""
        bits = np.frombuffer(base64.b64decode(self.hits), dtype=np.uint8)
        return np.unpackbits(bits, count=self.num_rows).astype(np.bool_)

    def labels(self) -> NDArray[np.int64]:
        """The label that was answered for each row. [rows]"""
        indices = zlib.decompress(base64.b64decode(self.predicted))
        return np.frombuffer(indices, dtype=LABEL_TYPE).astype(np.int64)


class _TrainingRow(_Record):
    schema_number: Literal[1] = 1
    plan: str
    """Name of the plan that asked for it."""
    cell: str
    """Short digest of all that fixes the result; a plan that asks for the same again finds it by this."""
    task: str
    candidate: str
    """What is compared: a method with its options, by the name it has in the plan."""
    method: str
    """The PEFT method, or one of `BASELINES`."""
    train_rows: int = Field(ge=1)
    seed: int
    """Fixes the training rows, their order and the initial weights, the same for every candidate."""
    data_sha256: str | None = None
    """Of all its rows, texts and labels: runs of one seed are compared only if they saw the same."""
    recipe: dict[str, Any]
    """Every setting of the training run."""
    validation_accuracy: float = Field(ge=0, le=1)
    validation_nll: float | None
    """Mean negative log-likelihood of the true labels; null where training diverged."""
    train_cpu_s: float = Field(ge=0)
    """CPU seconds of the training with the validations along it; of a logistic regression, with the features of every
    split. On a shared machine they say more than the clock."""
    train_s: float = Field(ge=0)
    peak_memory_bytes: int | None = None
    """The highest of the process, or of the accelerator where there is one; null where it had other work too."""
    provenance: Provenance


class TrialRow(_TrainingRow):
    """One trial of tuning: measured on validation rows, never on test."""

    kind: Literal["trial"] = "trial"
    failure: str | None = None
    """Why there is no figure, where training diverged; the accuracy is then 0."""


class QualityRow(_TrainingRow):
    """One final run, measured once on test."""

    kind: Literal["quality"] = "quality"
    num_labels: int = Field(ge=2)
    is_pair: bool
    """Whether the task is about pairs of texts."""
    test_accuracy: float = Field(ge=0, le=1)
    test_macro_f1: float = Field(ge=0, le=1)
    test_ece: float = Field(ge=0, le=1)
    """Expected calibration error in 15 bins (Guo et al. 2017) of the scores as they come out of training."""
    test_ece_calibrated: float = Field(ge=0, le=1)
    """The same with the temperature that was fitted on validation rows."""
    temperature: float = Field(gt=0)
    num_adapter_parameters: int = Field(ge=0)
    """Trained, without the head."""
    num_head_parameters: int = Field(ge=0)
    adapter_bytes: int = Field(ge=0)
    """Of the weights file, head included."""
    num_steps: int = Field(ge=0)
    curve: list[tuple[int, float]]
    """Step and validation accuracy, some times during training."""
    predictions: Predictions
    failure: str | None = None
    """Why it has no answers of its own, where training diverged: those here are the commonest training label."""


class Served(_Record):
    """What was asked of a service, and of which service."""

    schema_number: Literal[1] = 1
    scenario: str
    case: str
    """Which of the scenario's cases, by what sets it apart."""
    repeat: int = Field(0, ge=0)
    """Cases take turns; figures of one turn were measured next to each other."""
    target: str
    """What was asked: `adaptermux`, or the name of another service."""
    base: str
    dtype: str
    device: str
    service: dict[str, Any] = {}
    """The settings of the service that were not its defaults."""
    methods: dict[str, int]
    """Hot adapters by PEFT method; the weights are random where `has_random_weights`."""
    has_random_weights: bool
    num_registered: int = Field(ge=0)
    num_hot: int = Field(ge=0)
    """Adapters among which the requests choose."""
    hot_bytes: int | None = None
    """Of the hot adapters' weights, where the service tells."""
    workload: dict[str, Any]
    """Every setting of the stream of requests, its seed included."""
    provenance: Provenance

    @property
    def adapters(self) -> tuple[str, int]:
        """What sets runs of one case apart whose scenario was given other adapters: methods, and bytes of the hot."""
        return "+".join(sorted(self.methods)), self.hot_bytes or 0


class Spread(_Record):
    """Of one figure over the requests of a run."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class LatencyRow(Served):
    """How fast a service answered one stream of requests."""

    kind: Literal["latency"] = "latency"
    part: str = "all"
    """Of which requests, where some are told apart from the others."""
    num_users: int | None = None
    """Closed loop: clients that each wait for an answer before they ask again."""
    rate_per_s: float | None = None
    """Open loop: requests a second that arrive whatever becomes of them."""
    duration_s: float = Field(gt=0)
    """Without the warm-up."""
    num_requests: int = Field(ge=0)
    """All that were sent."""
    num_errors: int = Field(ge=0)
    errors: dict[str, int] = {}
    """By kind: an error's code, or what the connection died of."""
    throughput_per_s: float = Field(ge=0)
    """Requests that were answered rightly, a second."""
    texts_per_s: float = Field(ge=0)
    tokens_per_s: float | None = None
    latency_ms: Spread | None
    """As the client sees it, of requests answered rightly; open loop: from when each was due. null: none were."""
    queue_ms: Spread | None = None
    """As the service tells with each answer, like the next three."""
    compute_ms: Spread | None = None
    tokenize_ms: Spread | None = None
    service_ms: Spread | None = None
    """From the request's head to its answer, with all of these."""
    send_delay_ms: Spread | None = None
    """From when a request was due until the load generator sent it: its own share of the latency."""
    batch: dict[str, float] = {}
    """Means a forward pass: texts, tokens, adapters, methods."""
    adapter_loads: int | None = None
    adapter_misses: int | None = None
    server_cpu_s: float | None = None
    client_cpu_s: float | None = None
    limit_p95_ms: float | None = None
    """Where the highest rate within a limit is looked for: the limit."""
    changes: dict[str, int] = {}
    """What was done to adapters meanwhile, by kind."""


class MemoryRow(Served):
    """What a service held in memory, by tier, during one case."""

    kind: Literal["memory"] = "memory"
    moment: Literal["idle", "load"]
    """Before the first request, or under the load; the highest of it."""
    rss_bytes: int | None = None
    """Resident in the process, files that it maps included."""
    anonymous_bytes: int | None = None
    """Of these, what is no file's."""
    device_bytes: int | None = None
    """Of the accelerator: the whole process, or, in scenario `engine`, its tensors."""
    resident_adapters: int | None = None
    resident_adapter_bytes: int | None = None
    """Where the base model computes."""
    host_adapter_bytes: int | None = None
    """Kept by the host for the accelerator."""
    growth_bytes_per_h: float | None = None
    """Of resident memory, a straight line through the second half of the run."""


TrainedRow = TrialRow | QualityRow
Row = TrialRow | QualityRow | LatencyRow | MemoryRow
_ROW: TypeAdapter[Row] = TypeAdapter(Annotated[Row, Field(discriminator="kind")])


def read(path: Path) -> list[Row]:
    """Every row of a file; a last line that was cut off is left out. Raises RowsError."""
    try:
        *lines, _ = path.read_bytes().split(b"\n")  # a character may be cut off too
    except OSError as error:
        raise RowsError(f"`{path}` cannot be read: {error}") from error
    return [_parse(path, number, line) for number, line in enumerate(lines, 1)]


def read_trained(path: Path) -> list[TrainedRow]:
    """The training runs of a file. Raises RowsError."""
    return [row for row in read(path) if isinstance(row, TrainedRow)]


class Writer:
    """Appends rows so that each is there after a crash; a last line that was cut off is removed first.

    One process writes a file at a time: a second one gets RowsError, and so does one whose disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise RowsError(f"`{path}` cannot be written: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise RowsError(
                f"`{path}` is being written by another process; wait for it, or take another file"
            ) from error
        _cut_torn_line(self._file.fileno())

    def write(self, row: Row) -> None:
        """Add one row, and wait until it is on the disk."""
        line = row.model_dump_json().encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RowsError(f"`{self._path}` cannot be written: {error}; what was finished before is kept") from error

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def quality(rows: Sequence[Row]) -> list[QualityRow]:
    """The final runs among them."""
    return [row for row in rows if isinstance(row, QualityRow)]


def _parse(path: Path, number: int, line: bytes) -> Row:
    try:
        return _ROW.validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "the line"
        raise RowsError(f"`{path}`, line {number}: `{name}`: {first['msg']}") from error


def _cut_torn_line(handle: int) -> None:
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        os.ftruncate(handle, os.pread(handle, size, 0).rfind(b"\n") + 1)
