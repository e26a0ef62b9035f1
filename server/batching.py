"""Which jobs run next: a queue bounded in jobs and time, fair between adapters, no waiting while there is work."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from server.errors import DeadlineExceeded, EngineStopped, Overloaded
from server.jobs import Answer, Job
from server.loaded_adapter import LoadedAdapter

MOST_COUNTERS = 1024
FULL, FASTER = 0.1, 0.5
"""Weights of a batch's speed against what is known. One that is not full is mostly overhead: it tells of the device
only if it was faster than what is known."""
MOST_TIMES_FREE = 7
"""An adapter may have so many times the places that are left: one that floods the line leaves an eighth to the others
(dynamic thresholds, Choudhury and Hahne 1998)."""
HEADROOM = 1.25
"""Nearly all jobs that are taken on have to be in time, not half of them."""
MOST_STRETCH = 16.0
STRETCH_S = 60.0
"""Time in which what was found of a long wait fades."""
MOST_RETRY_S = 600
ALONE_S = 5.0
"""Time without jobs of another adapter after which one has the line to itself."""


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


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """A job in the line, since when, and how long it would have taken had nobody overtaken it (None: unknown)."""

    waiting: Waiting
    since: float
    expected_s: float | None


class WaitingLine:
    """Fair between adapters: the one that was given the fewest tokens so far is served next.

    Virtual token counters (Sheng et al. 2024, "Fairness in Serving Large Language Models"): a job
    charges its tokens to its adapter's counter; an adapter that comes back after a pause is lifted to the lowest
    counter in use, so that nobody saves up. Jobs of one adapter are taken in the order they came.

    Who would wait too long is refused when it comes: beyond its deadline, or max_wait_s where it has none (0: however
    long). The wait follows from the tokens in front, at the speed of late, and is stretched by as much as jobs of that
    adapter have waited longer than that, since others may overtake one that asks for more than its share.
    Any thread puts; only the engine thread takes.
    """

    def __init__(self, max_jobs: int, max_wait_s: float = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_jobs, self._max_wait_s, self._clock = max_jobs, max_wait_s or math.inf, clock
        self._num_jobs = self._num_tokens = 0
        self._jobs: dict[str, deque[_Place]] = {}
        self._counters: dict[str, int] = {}
        self._turns: list[tuple[int, int, str]] = []  # heap of (counter, arrival, adapter), one entry an adapter
        self._arrivals = count()
        self._lowest = 0
        self._held: dict[str, tuple[int, int]] = {}  # adapter -> jobs that have entered, their tokens
        self._stretch: dict[str, tuple[float, float]] = {}  # adapter -> (factor above 1, when it was found)
        self._batch_tokens = self._running_tokens = self._num_batches = 0
        self._latest, self._others_since = "", -math.inf  # the adapter that came last, and since when no other has
        self._tokens_per_s: float | None = None
        self._changed = threading.Condition()
        self._closed = self._drained = False

    def __len__(self) -> int:
        return self._num_jobs

    def adapter_ids(self) -> list[str]:
        """The adapters that have jobs in the line, or wait to be loaded for some."""
        with self._changed:
            return list(self._held)

    def enter(self, job: Job) -> None:
        """Keep a place for a job that will be `put`, or will `leave`.

        Raises Overloaded when the line is full or too slow for the job, EngineStopped once it is closed.
        """
        with self._changed:
            if self._closed:
                raise EngineStopped("the engine has stopped and takes no more requests")
            self._refuse_if_full(job)
            self._refuse_if_slow(job)
            self._count(job.adapter_id, 1, job.num_tokens)

    def leave(self, job: Job) -> None:
        """Give up a place."""
        with self._changed:
            self._count(job.adapter_id, -1, -job.num_tokens)
            self._changed.notify_all()

    def put(self, waiting: Waiting) -> None:
        """Queue a job that has entered. Raises EngineStopped if nobody will take it any more."""
        with self._changed:
            if self._drained:
                raise EngineStopped("the engine thread has ended; restart the server")
            adapter_id = waiting.job.adapter_id
            if adapter_id != self._latest:
                self._latest, self._others_since = adapter_id, self._clock()
            ahead = self._ahead(adapter_id, waiting.job.num_tokens)
            expected_s = self._seconds(ahead + self._batch_tokens)
            self._count(adapter_id, 0, waiting.num_tokens - waiting.job.num_tokens)
            if adapter_id not in self._jobs:
                self._jobs[adapter_id] = deque()
                self._counters[adapter_id] = max(self._lowest, self._counters.get(adapter_id, 0))
                heappush(self._turns, (self._counters[adapter_id], next(self._arrivals), adapter_id))
            self._jobs[adapter_id].append(_Place(waiting, self._clock(), expected_s))
            self._changed.notify()

    def take(self, max_tokens: int, round_tokens: int = 0) -> list[Waiting]:
        """Wait for work, then take as many jobs as have max_tokens together, at least one.

        Adapters that have got less than half of max_tokens then get more, up to round_tokens for all: where many wait,
        a larger batch does more in its time, while one that floods the line still gets no more than max_tokens. So does
        one that has had the line to itself for a while.
        Jobs that were cancelled while they waited are dropped, those whose deadline has passed are answered so.
        Returns an empty list once the line is closed and empty.
        """
        with self._changed:
            while True:
                taken = self._take_now(max_tokens, round_tokens)
                if taken or (self._closed and self._num_jobs == 0):
                    return taken
                self._changed.wait()

    def ran(self, seconds: float) -> None:
        """Note that what was taken last has been answered, and how long that took."""
        with self._changed:
            num_tokens, self._running_tokens = self._running_tokens, 0
            self._num_batches += 1
            rate, known = num_tokens / max(seconds, 1e-6), self._tokens_per_s
            if self._num_batches == 1:
                return  # the first one also prepares much
            if known is None:
                self._tokens_per_s = rate
            elif num_tokens >= self._batch_tokens / 2:
                self._tokens_per_s = known + FULL * (rate - known)
            elif rate > known:
                self._tokens_per_s = known + FASTER * (rate - known)

    def close(self) -> None:
        """Let nobody enter any more; `take` goes on until the line is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drain(self) -> list[Waiting]:
        """Close and hand over everything that waits, for an engine that cannot go on."""
        with self._changed:
            self._closed = self._drained = True
            waiting = [place.waiting for places in self._jobs.values() for place in places]
            self._jobs.clear()
            self._turns.clear()
            for one in waiting:
                self._count(one.job.adapter_id, -1, -one.num_tokens)
            return [one for one in waiting if one.future.set_running_or_notify_cancel()]

    def _take_now(self, max_tokens: int, round_tokens: int) -> list[Waiting]:
        taken: list[Waiting] = []
        self._batch_tokens = max_tokens
        num_tokens = 0
        while self._turns and (not taken or num_tokens + self._cost(self._turns[0]) <= max_tokens):
            self._lowest = self._turns[0][0]
            num_tokens += self._take_turn(heappop(self._turns), taken)
        is_alone = self._clock() - self._others_since > ALONE_S
        num_tokens += self._take_more(taken, round_tokens - num_tokens, round_tokens if is_alone else max_tokens // 2)
        self._running_tokens = num_tokens
        self._forget()
        return taken

    def _take_more(self, taken: list[Waiting], room: int, most_each: int) -> int:
        """Take jobs of adapters that have got less than most_each, or nothing yet; returns their tokens."""
        got = Counter[str]()
        for waiting in taken:
            got[waiting.job.adapter_id] += waiting.num_tokens
        left, num_tokens = [], 0
        while self._turns:
            turn = heappop(self._turns)
            cost, adapter_id = self._cost(turn), turn[2]
            if num_tokens + cost > room:
                left.append(turn)
                break
            if got[adapter_id] and got[adapter_id] + cost > most_each:
                left.append(turn)
                continue
            found = self._take_turn(turn, taken)
            got[adapter_id] += found
            num_tokens += found
        for turn in left:
            heappush(self._turns, turn)
        return num_tokens

    def _cost(self, turn: tuple[int, int, str]) -> int:
        """Tokens of the job whose turn it is."""
        return self._jobs[turn[2]][0].waiting.num_tokens

    def _take_turn(self, turn: tuple[int, int, str], taken: list[Waiting]) -> int:
        """Take an adapter's next job, unless nobody waits for it any more; returns its tokens."""
        counter, _, adapter_id = turn
        places = self._jobs[adapter_id]
        place = places.popleft()
        waiting, num_tokens = place.waiting, 0
        self._count(adapter_id, -1, -waiting.num_tokens)
        self._learn_stretch(place)
        if waiting.future.set_running_or_notify_cancel() and not self._is_late(place):
            taken.append(waiting)
            num_tokens = waiting.num_tokens
            self._counters[adapter_id] = counter + num_tokens
        if places:
            heappush(self._turns, (self._counters[adapter_id], next(self._arrivals), adapter_id))
        else:
            del self._jobs[adapter_id]
        return num_tokens

    def _is_late(self, place: _Place) -> bool:
        """Whether a job's time is up; it is then answered so, before any more is spent on it."""
        deadline, future, now = place.waiting.job.deadline, place.waiting.future, self._clock()
        if deadline is not None and now >= deadline:
            future.set_exception(DeadlineExceeded("the deadline passed while the text waited; it was not classified"))
            return True
        if deadline is None and now - place.since > self._max_wait_s:
            future.set_exception(
                Overloaded(f"the text has waited for {self._max_wait_s:g} s, which is the limit; retry later")
            )
            return True
        return False

    def _learn_stretch(self, place: _Place) -> None:
        """A job's wait is over: compare it with what was expected of it."""
        batch_s = self._seconds(self._batch_tokens)
        if place.expected_s is None or batch_s is None:
            return
        adapter_id, now = place.waiting.job.adapter_id, self._clock()
        known, since = self._stretch.get(adapter_id, (1.0, now))
        known += (1.0 - known) * min(1.0, (now - since) / STRETCH_S)  # what is known fades
        found = max(known, min(MOST_STRETCH, (now - place.since + batch_s) / place.expected_s))
        if found > 1.0:
            self._stretch[adapter_id] = found, now
        else:
            self._stretch.pop(adapter_id, None)

    def _refuse_if_full(self, job: Job) -> None:
        """Raise Overloaded if all places are taken, or the few that are left are not for this adapter."""
        num_free, num_own = self._max_jobs - self._num_jobs, self._held.get(job.adapter_id, (0, 0))[0]
        if num_free > 0 and num_own <= MOST_TIMES_FREE * num_free:
            return
        retry_after_s = _retry_after_s(self._seconds(self._running_tokens + self._num_tokens) or 0)
        whose = f", {num_own} of them for adapter `{job.adapter_id}`" if num_free else ""
        raise Overloaded(
            f"{self._num_jobs} texts wait already{whose}, which is the limit; retry in {retry_after_s} s",
            retry_after_s,
        )

    def _refuse_if_slow(self, job: Job) -> None:
        """Raise Overloaded if a job that comes now would be late. With nothing in front of it, it is taken anyway."""
        ahead = self._ahead(job.adapter_id)
        # those of its batch too, which takes what waits
        needs_s = self._seconds(ahead + max(job.num_tokens, min(ahead, self._batch_tokens)))
        if not ahead or needs_s is None:
            return
        needs_s *= self._stretch.get(job.adapter_id, (1.0, 0.0))[0]
        has_s = self._max_wait_s if job.deadline is None else job.deadline - self._clock()
        if HEADROOM * needs_s > has_s:
            retry_after_s = _retry_after_s(needs_s)
            raise Overloaded(
                f"the text would be classified in about {needs_s:.2g} s, it may take {max(0.0, has_s):.2g} s; "
                f"retry in {retry_after_s} s",
                retry_after_s,
            )

    def _ahead(self, adapter_id: str, own_tokens: int = 0) -> int:
        """Tokens to run before a job that comes now: all that wait, or what its adapter's turns leave to the others.

        By the time it is served, each of them has been given about as much as the adapter will have been then, and one
        job more. own_tokens: those of the job itself, if it has entered already.
        """
        own_ahead = self._held.get(adapter_id, (0, 0))[1] - own_tokens
        lowest = self._turns[0][0] if self._turns else self._lowest
        turn = max(0, self._counters.get(adapter_id, 0) - lowest) + own_ahead
        num_adapters = len(self._jobs) + (adapter_id not in self._jobs)
        one_job = self._num_tokens // max(1, self._num_jobs)
        return self._running_tokens + min(self._num_tokens - own_tokens, num_adapters * (turn + one_job))

    def _seconds(self, num_tokens: int) -> float | None:
        """How long that much takes; None while that is unknown."""
        return num_tokens / self._tokens_per_s if self._tokens_per_s else None

    def _count(self, adapter_id: str, num_jobs: int, num_tokens: int) -> None:
        self._num_jobs += num_jobs
        self._num_tokens += num_tokens
        jobs, tokens = self._held.get(adapter_id, (0, 0))
        if jobs + num_jobs:
            self._held[adapter_id] = jobs + num_jobs, tokens + num_tokens
        else:
            del self._held[adapter_id]

    def _forget(self) -> None:
        """Drop counters that no longer matter: nobody waits, or who comes back would be lifted past them."""
        if not self._jobs:
            self._counters.clear()
            self._stretch.clear()
            self._lowest = 0
        elif len(self._counters) > 2 * len(self._jobs) + MOST_COUNTERS:
            self._counters = {
                adapter_id: counter
                for adapter_id, counter in self._counters.items()
                if adapter_id in self._jobs or counter > self._lowest
            }
            self._stretch = {name: value for name, value in self._stretch.items() if name in self._counters}


def _retry_after_s(wait_s: float) -> int:
    return min(MOST_RETRY_S, max(1, math.ceil(wait_s)))
