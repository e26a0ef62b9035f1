"""The engine thread: take jobs, run them, answer them."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from torch import Tensor

from server import logs
from server.batching import BatchBudget, Waiting, WaitingLine
from server.errors import AdapterFailed, AdapterRefused, EngineStopped, ForwardFailed, ServiceError
from server.forward import Forward
from server.jobs import Answer, EngineHealth, Job
from server.loaded_adapter import LoadedAdapter
from server.store import Store


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one batch was made of, for metrics."""

    num_texts: int
    num_tokens: int
    num_adapters: int
    compute_s: float
    failed: bool


class ThreadEngine:
    """`server.jobs.Engine` on a thread of this process.

    The forward pass belongs to the engine thread. A batch that raises answers all its jobs with the
    error and the thread goes on; only the end of the thread itself makes the engine unhealthy.
    on_batch is called on the engine thread after every batch.
    """

    def __init__(
        self,
        forward: Forward,
        store: Store,
        max_waiting: int = 4096,
        max_batch_tokens: int = 8192,
        batch_ms: float = 25,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
    ) -> None:
        self._forward = forward
        self._store = store
        self._line = WaitingLine(max_waiting)
        self._budget = BatchBudget(max_batch_tokens, batch_ms / 1e3)
        self._on_batch = on_batch
        self._thread = threading.Thread(target=self._run, name="adaptermux-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> Future[Answer]:
        answer, since = Future[Answer](), time.monotonic()
        self._line.enter()
        try:
            loading = self._store.acquire(job.adapter_id, job.version)
        except BaseException:
            self._line.leave()
            raise
        answer.add_done_callback(lambda _: loading.cancel())  # nobody waits for the adapter any more
        loading.add_done_callback(lambda loaded: self._admit(job, answer, since, loaded))
        return answer

    def _admit(self, job: Job, answer: Future[Answer], since: float, loaded: Future[LoadedAdapter]) -> None:
        """Queue a job once its adapter is in memory. The adapter is released when the job is answered or cancelled."""
        error = None if loaded.cancelled() else loaded.exception()
        if not loaded.cancelled() and error is None:
            adapter = loaded.result()
            answer.add_done_callback(lambda _: self._store.release(adapter))
            try:
                self._line.put(Waiting(job, adapter, answer, since))
                return
            except EngineStopped as stopped:
                error = stopped
        self._line.leave()
        if answer.set_running_or_notify_cancel():
            if isinstance(error, AdapterRefused):
                error = AdapterFailed(f"adapter `{job.adapter_id}` was refused when it was loaded: {error}")
            answer.set_exception(error or EngineStopped("the adapter was given up"))

    def health(self) -> EngineHealth:
        return EngineHealth(self._thread.is_alive(), len(self._line))

    def close(self) -> None:
        self._line.close()
        if self._thread.ident is not None:
            self._thread.join()
        self._refuse_waiting()

    def _run(self) -> None:
        try:
            while self._step():
                pass
        finally:
            self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        """Answer what no batch will take any more: the thread ended early, or never began."""
        for waiting in self._line.drain():
            waiting.future.set_exception(EngineStopped("the engine thread has ended; restart the server"))

    def _step(self) -> bool:
        """Take a batch, run it, answer it. Returns False once there is nothing more to do."""
        taken = self._line.take(self._budget.tokens())
        if not taken:
            return False
        began = time.monotonic()
        outcome: Sequence[Tensor] | ServiceError = EngineStopped("the engine was stopped within the batch")
        try:
            outcome = self._forward.run([(waiting.job, waiting.adapter) for waiting in taken])
        except Exception as error:
            outcome = ForwardFailed(f"the forward pass failed with {type(error).__name__}; the server goes on")
            logs.event("batch_failed", num_texts=len(taken), trace=traceback.format_exception(error))
        finally:
            ended = time.monotonic()
            _answer(taken, outcome, began, ended)
        failed = isinstance(outcome, ServiceError)
        if not failed:
            self._budget.learn(sum(waiting.num_tokens for waiting in taken), ended - began)
        self._report(taken, ended - began, failed)
        return True

    def _report(self, taken: list[Waiting], compute_s: float, failed: bool) -> None:
        """Tell of a batch; a listener that raises must not end the engine."""
        try:
            self._on_batch(
                BatchReport(
                    num_texts=len(taken),
                    num_tokens=sum(waiting.job.num_tokens for waiting in taken),
                    num_adapters=len({waiting.adapter.key for waiting in taken}),
                    compute_s=compute_s,
                    failed=failed,
                )
            )
        except Exception as error:
            logs.event("report_failed", trace=traceback.format_exception(error))


def _answer(taken: list[Waiting], outcome: Sequence[Tensor] | ServiceError, began: float, ended: float) -> None:
    """Resolve every future exactly once. A text whose logits are not finite fails alone."""
    for index, waiting in enumerate(taken):
        if isinstance(outcome, ServiceError):
            waiting.future.set_exception(outcome)
            continue
        logits = tuple(outcome[index].tolist())
        if all(map(math.isfinite, logits)):
            waiting.future.set_result(Answer(logits, (began - waiting.since) * 1e3, (ended - began) * 1e3))
        else:
            waiting.future.set_exception(
                ForwardFailed(f"adapter `{waiting.job.adapter_id}` gave logits that are not finite")
            )
