"""Which jobs run next: a bounded queue and a token budget, with no waiting while there is work."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from server.errors import EngineStopped, Overloaded
from server.jobs import Answer, Job
from server.store import LoadedAdapter


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A queued job, the adapter it holds, the future that must be answered, and when it came (monotonic seconds)."""

    job: Job
    adapter: LoadedAdapter
    future: Future[Answer] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class WaitingLine:
    """First come, first served. Any thread puts; only the engine thread takes."""

    def __init__(self, max_jobs: int, max_batch_tokens: int) -> None:
        self._max_jobs = max_jobs
        self._max_batch_tokens = max_batch_tokens
        self._jobs: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, waiting: Waiting) -> None:
        """Queue a job. Raises Overloaded when the line is full, EngineStopped once it is closed."""
        with self._changed:
            if self._closed:
                raise EngineStopped("the engine has stopped and takes no more requests")
            if len(self._jobs) >= self._max_jobs:
                raise Overloaded(f"{len(self._jobs)} texts wait already, which is the limit; retry later")
            self._jobs.append(waiting)
            self._changed.notify()

    def take(self) -> list[Waiting]:
        """Wait for work, then take as many jobs as the token budget holds, at least one.

        Jobs that were cancelled while they waited are dropped. Returns an empty list once the line is
        closed and empty.
        """
        with self._changed:
            while True:
                taken = self._take_now()
                if taken or self._closed:
                    return taken
                self._changed.wait()

    def close(self) -> None:
        """Take no more jobs; `take` goes on until the line is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drain(self) -> list[Waiting]:
        """Close and hand over everything that waits, for an engine that cannot go on."""
        with self._changed:
            self._closed = True
            waiting = list(self._jobs)
            self._jobs.clear()
            return [one for one in waiting if one.future.set_running_or_notify_cancel()]

    def _take_now(self) -> list[Waiting]:
        taken: list[Waiting] = []
        budget = self._max_batch_tokens
        while self._jobs and (not taken or self._jobs[0].job.num_tokens <= budget):
            waiting = self._jobs.popleft()
            if waiting.future.set_running_or_notify_cancel():
                taken.append(waiting)
                budget -= waiting.job.num_tokens
        return taken
