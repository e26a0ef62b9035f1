"""The HTTP processes as the engine process sees them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from functools import partial
from itertools import count
from pathlib import Path

from prometheus_client import generate_latest

from server import logs
from server.callers import Caller
from server.desk import Desk
from server.errors import AdaptermuxError
from server.jobs import Answer
from server.link import Link
from server.messages import (
    Answered,
    Beat,
    Called,
    Cancelled,
    Changed,
    Counted,
    Failed,
    Hello,
    Landed,
    Marked,
    Message,
    Returned,
    Seen,
    Submitted,
)
from server.metrics import Metrics
from server.quotas import Quotas
from server.record import Record
from server.residency import Tier

SEEN_S = 2.0
"""How long a change of an adapter waits for HTTP processes that have not taken it in."""
COUNTS = ("request_answered", "texts_classified", "predicted", "refused", "tenant_classified")


class Fronts:
    """All of them. What one asks is answered to it; what changes is told to all. Any thread may call it."""

    def __init__(
        self,
        desk: Desk,
        metrics: Metrics,
        quotas: Quotas,
        tiers: Callable[[Sequence[str]], Mapping[str, Tier]],
        folder: Path,
        listener: socket.socket,
    ) -> None:
        """metrics, quotas: those of all. folder: of the base model. listener: where they connect."""
        self.desk, self.metrics, self.quotas, self.tiers, self.folder = desk, metrics, quotas, tiers, folder
        self._listener = listener
        self._lock = threading.Lock()
        self._fronts: set[Front] = set()

    def __len__(self) -> int:
        return len(self._fronts)

    def start(self) -> None:
        threading.Thread(target=self._accept, name="adaptermux-fronts", daemon=True).start()

    def close(self) -> None:
        """Part with all of them."""
        for front in self._all():
            front.link.end()

    def beat(self) -> None:
        """Tell all how the engine is."""
        beat = Beat(self.desk.engine.health(), self.desk.catalog.trouble)
        for front in self._all():
            front.link.send(beat)

    def settle(self, asker: Front) -> None:
        """Wait until all others have taken in what has changed; the asker will have before it gets its answer."""
        deadline = time.monotonic() + SEEN_S
        marks = [front.mark() for front in self._all() if front is not asker]
        if not all(seen.wait(max(0.0, deadline - time.monotonic())) for seen in marks):
            logs.event("change_not_seen", seconds=SEEN_S)

    def _all(self) -> list[Front]:
        with self._lock:
            return list(self._fronts)

    def _accept(self) -> None:
        with suppress(OSError):  # that the listener is shut
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), name="adaptermux-front", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        front = Front(self, Link(connection))
        with self._lock:
            self._fronts.add(front)
        try:
            front.serve()
        finally:
            with self._lock:
                self._fronts.discard(front)


class Front:
    """One HTTP process, served by a thread of its own as long as the link holds."""

    def __init__(self, fronts: Fronts, link: Link) -> None:
        self.link = link
        self._fronts, self._desk = fronts, fronts.desk
        self._jobs: dict[int, Future[Answer]] = {}
        self._flying: dict[int, AbstractContextManager[None]] = {}
        self._marks: dict[int, threading.Event] = {}
        self._numbers = count()
        lifecycle = self._desk.lifecycle
        self._changes: dict[str, Callable[..., object]] = {
            "put": lifecycle.put,
            "remove": lifecycle.remove,
            "set_alias": lifecycle.set_alias,
            "rollback": lifecycle.rollback,
        }
        self._calls: dict[str, Callable[..., object]] = {
            "metrics": self._metrics,
            "tiers": self._fronts.tiers,
            "count_request": self._fronts.quotas.count_request,
            "count_tokens": self._fronts.quotas.count_tokens,
            "give_back_tokens": self._fronts.quotas.give_back_tokens,
            "fly": self._fly,
        }

    def serve(self) -> None:
        catalog, desk = self._desk.catalog, self._desk
        catalog.follow(
            lambda records: self.link.send(Hello(desk.base, str(self._fronts.folder), records)), self._changed
        )
        try:
            for messages in self.link.read():
                for message in messages:
                    self._take(message)
        finally:
            catalog.unfollow(self._changed)
            self._leave()

    def mark(self) -> threading.Event:
        """Set once all that was sent so far is taken in, or the process has gone."""
        number, seen = next(self._numbers), threading.Event()
        self._marks[number] = seen
        self.link.send(Marked(number))
        return seen

    def _take(self, message: Message) -> None:
        if isinstance(message, Submitted):
            self._submit(message)
        elif isinstance(message, Counted):
            assert message.name in COUNTS, f"`{message.name}` counts nothing; this is a bug"
            getattr(self._fronts.metrics, message.name)(*message.values)
        elif isinstance(message, Cancelled):
            if (job := self._jobs.get(message.number)) is not None:
                job.cancel()
        elif isinstance(message, Called):
            self._call(message)
        elif isinstance(message, Landed):
            self._land(message.number)
        elif isinstance(message, Seen) and (seen := self._marks.pop(message.mark, None)) is not None:
            seen.set()

    def _submit(self, message: Submitted) -> None:
        try:
            job = self._desk.engine.submit(message.job())
        except Exception as error:
            self.link.send(Failed(message.number, _ours(error)))
            return
        self._jobs[message.number] = job
        job.add_done_callback(partial(self._answer, message.number))

    def _answer(self, number: int, job: Future[Answer]) -> None:
        self._jobs.pop(number, None)
        if job.cancelled():
            return
        if (error := job.exception()) is not None:
            self.link.send(Failed(number, _ours(error)))
        else:
            answer = job.result()
            self.link.send(Answered(number, answer.logits, answer.queue_ms, answer.compute_ms))

    def _call(self, message: Called) -> None:
        if message.name in self._changes:  # it may take long; each HTTP process asks for a few at a time
            threading.Thread(target=self._return, args=(message,), name="adaptermux-changer", daemon=True).start()
        else:
            self._return(message)

    def _return(self, message: Called) -> None:
        try:
            value = self._value(message)
        except Exception as error:
            self.link.send(Failed(message.number, _ours(error)))
        else:
            self.link.send(Returned(message.number, value))

    def _value(self, message: Called) -> object:
        if (change := self._changes.get(message.name)) is None:
            return self._calls[message.name](*message.values)
        try:
            return change(*message.values)
        finally:
            self._fronts.settle(self)

    def _fly(self, number: int, caller: Caller, num_texts: int) -> None:
        flying = self._fronts.quotas.in_flight(caller, num_texts)
        flying.__enter__()
        self._flying[number] = flying

    def _land(self, number: int) -> None:
        if (flying := self._flying.pop(number, None)) is not None:
            flying.__exit__(None, None, None)

    def _metrics(self, keys: tuple[float, float] | None) -> bytes:
        if keys is not None:
            num_keys, is_fresh = keys
            self._fronts.metrics.watch_keys(lambda: num_keys, lambda: is_fresh)
        return generate_latest(self._fronts.metrics.registry)

    def _changed(self, adapter_id: str, record: Record | None) -> None:
        self.link.send(Changed(adapter_id, record))

    def _leave(self) -> None:
        """Nobody waits for what it has asked any more."""
        for job in list(self._jobs.values()):
            job.cancel()
        for number in list(self._flying):
            self._land(number)
        for seen in list(self._marks.values()):
            seen.set()
        self.link.close()


def _ours(error: BaseException) -> AdaptermuxError:
    """An error as the HTTP process gets it: one of ours with all that it carries, or no more than its name."""
    if isinstance(error, AdaptermuxError):
        return error
    if isinstance(error, Exception):
        logs.bug("call_crashed", error)
    return AdaptermuxError(f"{type(error).__name__} in the engine process; this is a bug")
