"""The way of a request, whatever route it came by: adapter, tokens, engine, answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from server.activation import Activation, activate
from server.desk import Visit
from server.errors import (
    AdaptermuxError,
    AdapterNotFound,
    ClientLeft,
    DeadlineExceeded,
    EngineStopped,
    InvalidInput,
    LoadFailed,
    Overloaded,
    TooManyInputs,
)
from server.jobs import Answer, Engine, Job
from server.record import AdapterCard
from server.tokenizer import Encoded, Side, Text, Tokenizer

NUM_ATTEMPTS = 3
"""A version may be removed between the moment it is chosen and the moment it is used; then another is chosen."""

NOT_CLASSIFIED = (AdapterNotFound, EngineStopped, LoadFailed, Overloaded)
"""What the engine says of texts that it has done nothing for: they cost their tenant no tokens."""

FEW_CHARACTERS = 1000
"""So many are tokenised on the spot: going to another thread and back takes longer (docs/log.md)."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Question:
    """A text or pair to classify, or a text as token ids. field: its path in the request, for errors."""

    field: str
    text: Text
    text_pair: str | None = None


@dataclass(frozen=True, slots=True)
class Classified:
    """The answers to some questions, in their order, by one version of one adapter."""

    card: AdapterCard
    answers: Sequence[Answer]
    num_tokens: int
    tokenize_ms: float

    @property
    def queue_ms(self) -> float:
        return max(answer.queue_ms for answer in self.answers)

    @property
    def compute_ms(self) -> float:
        return max(answer.compute_ms for answer in self.answers)

    def labels(self) -> list[str]:
        """What the questions were classified as: all labels at or above the adapter's threshold, or the best one."""
        manifest, found = self.card.manifest, []
        for answer in self.answers:
            if manifest.problem_type == "multi_label":
                scores = zip(manifest.labels, self.scores(answer), strict=True)
                found += [label for label, score in scores if score >= manifest.threshold]
            else:
                found.append(manifest.labels[max(range(len(answer.logits)), key=answer.logits.__getitem__)])
        return found

    def scores(self, answer: Answer, activation: Activation | None = None) -> list[float]:
        """An answer after the adapter's own activation, or the one that is named, in the order of its labels."""
        manifest = self.card.manifest
        return activate(answer.logits, manifest.problem_type, manifest.temperature, activation)

    def ranked(self, answer: Answer, activation: Activation | None = None) -> list[tuple[str, float]]:
        """Every label with its score, from high to low."""
        scores = self.scores(answer, activation)
        # logits decide between scores that have become equal
        ranked = sorted(zip(self.card.manifest.labels, scores, answer.logits, strict=True), key=lambda one: one[1:])
        return [(label, score) for label, score, _ in reversed(ranked)]


class Tokens:
    """The questions of a request as tokens, each made once however many adapters read it.

    max_tokens: the length to which texts are cut if the adapter takes as much. side: the end that is cut off.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        questions: Sequence[Question],
        truncate: bool,
        max_tokens: int | None = None,
        side: Side = "right",
    ) -> None:
        self._tokenizer, self._questions, self._truncate = tokenizer, questions, truncate
        self._max_tokens, self._side = max_tokens, side
        self._whole: list[Encoded] | None = None
        self._making = threading.Lock()

    def __len__(self) -> int:
        return len(self._questions)

    @property
    def num_characters(self) -> int:
        return sum(len(one.text) + len(one.text_pair or "") for one in self._questions)

    def fitted(self, max_length: int) -> list[Encoded]:
        """For an adapter that takes so many tokens. Raises TextTooLong, InvalidInput."""
        encode, fit = self._tokenizer.encode_whole, self._tokenizer.fit
        with self._making:  # the adapters of a fan-out come on many threads at the same time
            if self._whole is None:
                self._whole = [encode(one.text, one.text_pair, one.field) for one in self._questions]
        length = max_length if self._max_tokens is None else min(max_length, self._max_tokens)
        return [
            fit(whole, one.text, one.text_pair, length, self._truncate, one.field, self._side)
            for whole, one in zip(self._whole, self._questions, strict=True)
        ]


async def classify(
    visit: Visit,
    reference: str,
    questions: Sequence[Question],
    truncate: bool = False,
    threshold: float | None = None,
    max_tokens: int | None = None,
    side: Side = "right",
) -> Classified:
    """Classify with the adapter that `id` or `id@version` stands for. What becomes of it is counted.

    threshold: the one asked for, which only multi-label adapters have. truncate, max_tokens, side: see `Tokens`.
    """
    await check_count(visit, len(questions))
    tokens = Tokens(visit.desk.tokenizer, questions, truncate, max_tokens, side)
    return await until_left(visit, classify_tokens(visit, reference, tokens, threshold))


async def check_count(visit: Visit, num_texts: int, num_adapters: int = 1) -> None:
    """Of every request, once: raises TooManyInputs, and QuotaExceeded."""
    most = visit.desk.max_inputs
    if num_texts * num_adapters > most:
        asked = f"{num_texts} texts" if num_adapters == 1 else f"{num_texts} texts for {num_adapters} adapters"
        raise TooManyInputs("inputs", f"`inputs` has {asked}, at most {most} are taken in one request")
    await visit.desk.quotas.count_request(visit.caller, num_texts * num_adapters)


async def until_left(visit: Visit, work: Coroutine[None, None, Result]) -> Result:
    """Do the work, and drop it where it waits once the client has closed the connection or its time is up."""
    task = asyncio.current_task()
    assert task is not None, "requests are served by tasks; this is a bug"
    leaving, is_working = asyncio.create_task(_left(visit.request)), True

    def leave(left: asyncio.Task[None]) -> None:
        if is_working and not left.cancelled():
            task.cancel()

    leaving.add_done_callback(leave)
    try:
        async with asyncio.timeout(_time_left(visit)):
            return await work
    except TimeoutError:
        raise DeadlineExceeded(
            f"the request was not answered within {visit.timeout_s:g} s, as X-Request-Timeout-Ms asks"
        ) from None
    except asyncio.CancelledError:
        if not leaving.done():
            raise  # the server stops
        task.uncancel()
        raise ClientLeft("the client closed the connection before it was answered") from None
    finally:
        is_working = False  # one that leaves from now on must not hit what comes after
        leaving.cancel()


async def classify_tokens(visit: Visit, reference: str, tokens: Tokens, threshold: float | None = None) -> Classified:
    """`classify`, for what is already being watched by `until_left`."""
    began, code, known = time.perf_counter(), "internal_error", ""
    metrics = visit.desk.metrics
    try:
        for attempt in range(1, NUM_ATTEMPTS + 1):
            card = visit.desk.catalog.resolve(reference, visit.caller.sees, visit.routing_key)
            known = card.adapter_id
            if threshold is not None and card.manifest.problem_type != "multi_label":
                kind = card.manifest.problem_type
                raise InvalidInput("threshold", f"`threshold` is for multi-label adapters; `{known}` is {kind}")
            try:
                async with visit.desk.quotas.in_flight(visit.caller, len(tokens)):
                    classified = await _classify(visit, card, tokens)
                break
            except AdapterNotFound:
                if attempt == NUM_ATTEMPTS:
                    raise
        code = "ok"
        return classified
    except asyncio.CancelledError:
        code = ClientLeft.code if _time_left(visit) != 0 else DeadlineExceeded.code
        raise
    except AdaptermuxError as error:
        code = error.code
        raise
    finally:
        metrics.request_answered(known, code, time.perf_counter() - began)


async def _classify(visit: Visit, card: AdapterCard, tokens: Tokens) -> Classified:
    began = time.perf_counter()
    if tokens.num_characters <= FEW_CHARACTERS:
        encoded = tokens.fitted(card.manifest.max_length)
    else:
        encoded = await run_in_threadpool(tokens.fitted, card.manifest.max_length)
    tokenize_s = time.perf_counter() - began
    jobs = [Job(card.adapter_id, card.version, one.token_ids, one.type_ids, visit.deadline) for one in encoded]
    num_tokens = sum(job.num_tokens for job in jobs)
    await visit.desk.quotas.count_tokens(visit.caller, num_tokens)
    try:
        answers = await _run(visit.desk.engine, jobs)
    except NOT_CLASSIFIED:
        visit.desk.quotas.give_back_tokens(visit.caller, num_tokens)
        raise
    classified = Classified(card, answers, num_tokens, tokenize_s * 1e3)
    _note(visit, classified)
    return classified


def _note(visit: Visit, classified: Classified) -> None:
    """Count what was classified, and write it on the request's trail."""
    num_texts, num_tokens = len(classified.answers), classified.num_tokens
    tokenize_ms, queue_ms = classified.tokenize_ms, classified.queue_ms
    visit.desk.metrics.texts_classified(num_texts, num_tokens, tokenize_ms / 1e3, queue_ms / 1e3)
    if classified.card.manifest.problem_type != "regression":
        visit.desk.metrics.predicted(classified.card.adapter_id, classified.labels())
    if visit.caller.tenant is not None:
        visit.desk.metrics.tenant_classified(visit.caller.tenant, num_texts, num_tokens)
    visit.trail.classified(classified.card, num_texts, num_tokens, tokenize_ms, queue_ms, classified.compute_ms)


async def _run(engine: Engine, jobs: list[Job]) -> list[Answer]:
    """Submit all jobs and wait; when one fails, or the client leaves, the others are dropped from the queue."""
    futures: list[Future[Answer]] = []
    try:
        for job in jobs:
            futures.append(engine.submit(job))
        if len(futures) == 1:
            return [await asyncio.wrap_future(futures[0])]
        return await asyncio.gather(*map(asyncio.wrap_future, futures))
    except BaseException:
        for future in futures:
            future.cancel()
        raise


async def _left(request: Request) -> None:
    """Wait until the client closes the connection. The body has been read: nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _time_left(visit: Visit) -> float | None:
    return None if visit.deadline is None else max(0.0, visit.deadline - time.monotonic())
