"""Which jobs run next: a bounded queue, fair between adapters, a token budget, no waiting while there is work."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from server.errors import DeadlineExceeded, EngineStopped, Overloaded
from server.jobs import Answer, Job
from server.loaded_adapter import LoadedAdapter

MOST_COUNTERS = 1024
FEWEST_TOKENS = 64
MEMORY = 0.9
"""Weight of what is known of the device's speed against the batch that has just run."""


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A queued job, the adapter it holds, the future that must be answered, and when it came (monotonic seconds)."""

    job: Job
    adapter: LoadedAdapter
    future: Future[Answer] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)

    @property
    def num_tokens(self) -> int:
        """What the job costs: its own tokens and those that its adapter puts in front of them."""
        return self.job.num_tokens + self.adapter.num_virtual_tokens


class BatchBudget:
    """How many tokens a batch may have: as many as run in a given time, so that nobody waits long for a running one.

    A large batch hardly runs more tokens a second than a middling one, and who comes while it runs waits for its end
    (docs/log.md). Owned by the engine thread.
    """

    def __init__(self, most_tokens: int, target_s: float) -> None:
        self._most_tokens, self._target_s = most_tokens, target_s
        self._tokens_per_s: float | None = None

    def tokens(self) -> int:
        """What the next batch may have."""
        in_time = round((self._tokens_per_s or 0) * self._target_s)
        return min(self._most_tokens, max(FEWEST_TOKENS, in_time))

    def learn(self, num_tokens: int, compute_s: float) -> None:
        """A batch has run."""
        rate = num_tokens / max(compute_s, 1e-6)
        known = self._tokens_per_s
        if known is None or rate > known:
            self._tokens_per_s = rate
        elif num_tokens >= self.tokens() / 2 or compute_s > self._target_s:
            # smaller ones that are in time are mostly overhead and say nothing of the device
            self._tokens_per_s = MEMORY * known + (1 - MEMORY) * rate


class WaitingLine:
    """Fair between adapters: the one that was given the fewest tokens so far is served next.

    Virtual token counters (Sheng et al. 2024, "Fairness in Serving Large Language Models"): a job
    charges its tokens to its adapter's counter; an adapter that comes back after a pause is lifted to the lowest
    counter in use, so that nobody saves up. Jobs of one adapter are taken in the order they came.
    Any thread puts; only the engine thread takes.
    """

    def __init__(self, max_jobs: int) -> None:
        self._max_jobs = max_jobs
        self._num_jobs = 0
        self._jobs: dict[str, deque[Waiting]] = {}
        self._counters: dict[str, int] = {}
        self._turns: list[tuple[int, int, str]] = []  # heap of (counter, arrival, adapter), one entry an adapter
        self._arrivals = count()
        self._lowest = 0
        self._changed = threading.Condition()
        self._closed = self._drained = False

    def __len__(self) -> int:
        return self._num_jobs

    def enter(self) -> None:
        """Keep a place for a job that will be `put`, or will `leave`.

        Raises Overloaded when the line is full, EngineStopped once it is closed.
        """
        with self._changed:
            if self._closed:
                raise EngineStopped("the engine has stopped and takes no more requests")
            if self._num_jobs >= self._max_jobs:
                raise Overloaded(f"{self._num_jobs} texts wait already, which is the limit; retry later")
            self._num_jobs += 1

    def leave(self) -> None:
        """Give up a place."""
        with self._changed:
            self._num_jobs -= 1
            self._changed.notify_all()

    def put(self, waiting: Waiting) -> None:
        """Queue a job that has entered. Raises EngineStopped if nobody will take it any more."""
        with self._changed:
            if self._drained:
                raise EngineStopped("the engine thread has ended; restart the server")
            adapter_id = waiting.job.adapter_id
            if adapter_id not in self._jobs:
                self._jobs[adapter_id] = deque()
                self._counters[adapter_id] = max(self._lowest, self._counters.get(adapter_id, 0))
                heappush(self._turns, (self._counters[adapter_id], next(self._arrivals), adapter_id))
            self._jobs[adapter_id].append(waiting)
            self._changed.notify()

    def take(self, max_tokens: int) -> list[Waiting]:
        """Wait for work, then take as many jobs as have max_tokens together, at least one.

        Jobs that were cancelled while they waited are dropped, those whose deadline has passed are answered so.
        Returns an empty list once the line is closed and empty.
        """
        with self._changed:
            while True:
                taken = self._take_now(max_tokens)
                if taken or (self._closed and self._num_jobs == 0):
                    return taken
                self._changed.wait()

    def close(self) -> None:
        """Let nobody enter any more; `take` goes on until the line is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drain(self) -> list[Waiting]:
        """Close and hand over everything that waits, for an engine that cannot go on."""
        with self._changed:
            self._closed = self._drained = True
            waiting = [one for jobs in self._jobs.values() for one in jobs]
            self._jobs.clear()
            self._turns.clear()
            self._num_jobs -= len(waiting)
            return [one for one in waiting if one.future.set_running_or_notify_cancel()]

    def _take_now(self, budget: int) -> list[Waiting]:
        taken: list[Waiting] = []
        while self._turns:
            counter, _, adapter_id = self._turns[0]
            jobs = self._jobs[adapter_id]
            if taken and jobs[0].num_tokens > budget:
                break
            heappop(self._turns)
            waiting = jobs.popleft()
            self._num_jobs -= 1
            self._lowest = counter
            if waiting.future.set_running_or_notify_cancel() and not _is_late(waiting):
                taken.append(waiting)
                budget -= waiting.num_tokens
                self._counters[adapter_id] = counter + waiting.num_tokens
            if jobs:
                heappush(self._turns, (self._counters[adapter_id], next(self._arrivals), adapter_id))
            else:
                del self._jobs[adapter_id]
        self._forget()
        return taken

    def _forget(self) -> None:
        """Drop counters that no longer matter: nobody waits, or who comes back would be lifted past them."""
        if not self._jobs:
            self._counters.clear()
            self._lowest = 0
        elif len(self._counters) > 2 * len(self._jobs) + MOST_COUNTERS:
            self._counters = {
                adapter_id: counter
                for adapter_id, counter in self._counters.items()
                if adapter_id in self._jobs or counter > self._lowest
            }


def _is_late(waiting: Waiting) -> bool:
    """Whether a job's deadline has passed; it is then answered so, before any time is spent on it."""
    if waiting.job.deadline is None or time.monotonic() < waiting.job.deadline:
        return False
    waiting.future.set_exception(DeadlineExceeded("the deadline passed while the text waited; it was not classified"))
    return True
