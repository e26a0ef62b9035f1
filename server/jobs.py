"""What travels between the HTTP side and the engine: frozen records of ids, strings and numbers.

Nothing here knows torch or HTTP, so that a second process can stand behind `Engine` later.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Job:
    """One text (or pair) to classify with one version of one adapter.

    token_ids and type_ids have the same length, special tokens included. deadline: monotonic seconds after which
    nobody waits for the answer.
    """

    adapter_id: str
    version: str
    token_ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    deadline: float | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Answer:
    """The raw logits of one job, in the order of the adapter's labels, and where the time went.

    queue_ms runs from `submit` to the start of the batch, compute_ms over the batch it was in.
    """

    logits: tuple[float, ...]
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """alive: the engine thread runs, and its forward pass comes back in time (else stalled).

    num_waiting: jobs that are queued and not yet started. num_running: those of the batch that runs.
    recovers: an engine that is not alive is started again without anybody's help.
    """

    alive: bool
    num_waiting: int
    num_running: int = 0
    stalled: bool = False
    recovers: bool = False

    @property
    def needs_help(self) -> bool:
        """Whether the server must be restarted."""
        return not (self.alive or self.recovers)


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one batch was made of, for metrics. failed: some pass of it raised."""

    num_texts: int
    num_tokens: int
    num_adapters: int
    num_methods: int
    num_splits: int
    compute_s: float
    failed: bool


class Engine(Protocol):
    """The seam between the HTTP side and whatever computes. Every method may be called from any thread."""

    def start(self) -> None:
        """Begin to take jobs."""

    def submit(self, job: Job) -> Future[Answer]:
        """Queue a job; the future is always resolved, with an answer or a `ServiceError`.

        A future that is cancelled before its batch starts is dropped from the queue; a job whose deadline passes
        there is answered with DeadlineExceeded.
        Raises Overloaded when the queue is full or the job would wait longer than it may, and EngineStopped after
        `close` or while the engine is stalled.
        """

    def health(self) -> EngineHealth:
        """Tell whether the engine works, without waiting for it."""

    def close(self) -> None:
        """Answer what is queued, then stop; an engine that is stalled is given up."""
