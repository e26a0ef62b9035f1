"""The engine thread: take jobs, run them, answer them."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from torch import Tensor

from server import logs
from server.batch_budget import BatchBudget
from server.batching import Waiting, WaitingLine
from server.errors import AdapterFailed, AdapterRefused, EngineStopped, ForwardFailed, ServiceError
from server.forward import Forward, Work
from server.jobs import Answer, BatchReport, EngineHealth, Job
from server.loaded_adapter import LoadedAdapter
from server.retries import Outcome, Retries
from server.store import Store

POLL_S = 0.1
FIRST_PATIENCE = 10
"""The first pass may take so many times as long as others: it compiles and prepares what they reuse, and a server that
is restarted in the midst of that would never come up."""


class ThreadEngine:
    """`server.jobs.Engine` on a thread of this process.

    The forward pass belongs to the engine thread. A batch that raises is split (`server.retries`), what really fails is
    answered with the error, and the thread goes on. The engine is unhealthy once the thread has ended or the device has
    failed, or while one pass takes longer than stall_s (0: however long). on_batch is called on the engine thread after
    every batch.
    """

    def __init__(
        self,
        forward: Forward,
        store: Store,
        max_waiting: int = 4096,
        max_batch_tokens: int = 8192,
        batch_ms: float = 25,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        stall_s: float = 60,
        max_wait_s: float = 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._forward = forward
        self._store = store
        self._line = WaitingLine(max_waiting, max_wait_s, clock)
        self._budget = BatchBudget(max_batch_tokens, batch_ms / 1e3)
        self._retries = Retries(self._pass, forward.free_memory, store.memory)
        self._on_batch = on_batch
        self._stall_s, self._clock = stall_s, clock
        self._running: list[Waiting] = []
        self._pass_since: float | None = None
        self._has_passed = False
        self._thread = threading.Thread(target=self._run, name="adaptermux-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> Future[Answer]:
        if self._is_stalled():
            raise EngineStopped("the engine's forward pass does not come back; restart the server")
        if self._store.has_lost_device:
            raise EngineStopped("the device has failed; restart the server")
        answer, since = Future[Answer](), self._clock()
        self._line.enter(job)
        try:
            loading = self._store.acquire(job.adapter_id, job.version)
        except BaseException:
            self._line.leave(job)
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
        self._line.leave(job)
        if answer.set_running_or_notify_cancel():
            if isinstance(error, AdapterRefused):
                error = AdapterFailed(f"adapter `{job.adapter_id}` was refused when it was loaded: {error}")
            answer.set_exception(error or EngineStopped("the adapter was given up"))

    def health(self) -> EngineHealth:
        stalled = self._is_stalled()
        return EngineHealth(
            alive=self._thread.is_alive() and not stalled and not self._store.has_lost_device,
            num_waiting=len(self._line),
            num_running=len(self._running),
            stalled=stalled,
        )

    def waiting_adapters(self) -> list[str]:
        """The adapters for which texts wait."""
        return self._line.adapter_ids()

    def close(self) -> None:
        self._line.close()
        while self._thread.is_alive() and not self._is_stalled():
            self._thread.join(POLL_S)
        if self._thread.is_alive():
            logs.event("engine_given_up", num_texts=len(self._running), seconds=self._stall_s)
            for waiting in self._running:
                _resolve(waiting, EngineStopped("the engine's forward pass did not come back"))
        self._refuse_waiting()

    def _is_stalled(self) -> bool:
        """Whether one forward pass has been running for too long. Any thread may ask."""
        since = self._pass_since
        limit_s = self._stall_s * (1 if self._has_passed else FIRST_PATIENCE)
        return limit_s > 0 and since is not None and self._clock() - since > limit_s

    def _run(self) -> None:
        try:
            self._store.memory.enter()
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
        taken = self._line.take(self._budget.tokens(), self._budget.round_tokens())
        if not taken:
            return False
        self._running, began = taken, self._clock()
        outcome: Outcome | ServiceError = EngineStopped("the engine was stopped within the batch")
        try:
            outcome = self._retries.run(taken)
        except EngineStopped as error:  # the device has failed
            outcome = error
        except Exception as error:
            outcome = ForwardFailed(f"the engine failed with {type(error).__name__}; this is a bug")
            logs.event("batch_failed", num_texts=len(taken), trace=traceback.format_exception(error))
        finally:
            ended = self._clock()
            _answer(taken, outcome, began, ended)
            self._pass_since, self._running = None, []
        self._learn(taken, outcome, ended - began)
        self._report(taken, outcome, ended - began)
        self._line.ran(self._clock() - began)
        return not isinstance(outcome, EngineStopped)

    def _pass(self, work: Sequence[Work]) -> list[Tensor]:
        """One forward pass, with the time at which it began."""
        self._pass_since = self._clock()
        logits = self._forward.run(work)
        self._has_passed = True
        return logits

    def _learn(self, taken: list[Waiting], outcome: Outcome | ServiceError, compute_s: float) -> None:
        if isinstance(outcome, ServiceError):
            return
        if outcome.went_well:
            self._budget.learn(sum(waiting.num_tokens for waiting in taken), compute_s)
        if outcome.fitting_tokens is not None:
            self._budget.shrink(outcome.fitting_tokens)
        if outcome.num_splits or outcome.fitting_tokens is not None:
            logs.event(
                "batch_split",
                num_texts=len(taken),
                num_splits=outcome.num_splits,
                reason="error" if outcome.fitting_tokens is None else "memory",
                next_tokens=self._budget.tokens(),
            )

    def _report(self, taken: list[Waiting], outcome: Outcome | ServiceError, compute_s: float) -> None:
        """Tell of a batch; a listener that raises must not end the engine."""
        try:
            self._on_batch(
                BatchReport(
                    num_texts=len(taken),
                    num_tokens=sum(waiting.job.num_tokens for waiting in taken),
                    num_adapters=len({waiting.adapter.key for waiting in taken}),
                    num_methods=len({waiting.adapter.method.name for waiting in taken}),
                    num_splits=outcome.num_splits if isinstance(outcome, Outcome) else 0,
                    compute_s=compute_s,
                    failed=not isinstance(outcome, Outcome) or outcome.has_failures,
                )
            )
        except Exception as error:
            logs.event("report_failed", trace=traceback.format_exception(error))


def _answer(taken: list[Waiting], outcome: Outcome | ServiceError, began: float, ended: float) -> None:
    """Resolve every future exactly once. A text whose logits are not finite fails alone."""
    for index, waiting in enumerate(taken):
        found = outcome if isinstance(outcome, ServiceError) else outcome.answers[index]
        if isinstance(found, ServiceError):
            _resolve(waiting, found)
            continue
        logits = tuple(found.tolist())
        if all(map(math.isfinite, logits)):
            _resolve(waiting, Answer(logits, (began - waiting.since) * 1e3, (ended - began) * 1e3))
        else:
            _resolve(waiting, ForwardFailed(f"adapter `{waiting.job.adapter_id}` gave logits that are not finite"))


def _resolve(waiting: Waiting, outcome: Answer | ServiceError) -> None:
    """Answer a text, unless a stalled engine was given up and it has been answered then."""
    with suppress(InvalidStateError):
        if isinstance(outcome, ServiceError):
            waiting.future.set_exception(outcome)
        else:
            waiting.future.set_result(outcome)
