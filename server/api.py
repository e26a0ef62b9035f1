"""The native HTTP routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from server.activation import activate
from server.catalog import AdapterCard, Catalog, RefusedCard
from server.errors import AdaptermuxError, ClientLeft, DeadlineExceeded, InvalidInput, TooManyInputs
from server.jobs import Answer, Engine, Job
from server.manifest import Manifest
from server.metrics import Metrics
from server.schemas import (
    AdapterClassifyRequest,
    AdapterEntry,
    AdapterList,
    BaseInfo,
    ClassifyRequest,
    ClassifyResponse,
    Health,
    Prediction,
    Problem,
    Score,
    Timing,
    Usage,
)
from server.tokenizer import Encoded, Tokenizer

MAX_TIMEOUT_MS = 600_000


@dataclass(frozen=True, slots=True)
class Desk:
    """What the routes work with. Everything in it may be used from any thread."""

    engine: Engine
    catalog: Catalog
    tokenizer: Tokenizer
    metrics: Metrics
    base: BaseInfo
    max_inputs: int


router = APIRouter(
    responses={
        400: {"model": Problem, "description": "The body is not JSON"},
        413: {"model": Problem, "description": "The body is longer than this server takes"},
        415: {"model": Problem, "description": "The body is not declared as JSON"},
        422: {"model": Problem, "description": "A field has a wrong value; `errors` names it"},
    }
)
CLASSIFY_RESPONSES: dict[int | str, dict[str, object]] = {
    404: {"model": Problem, "description": "No such adapter; `detail` names near ones"},
    409: {"model": Problem, "description": "The adapter was refused when it was loaded; `detail` says why"},
    500: {"model": Problem, "description": "The forward pass failed"},
    503: {"model": Problem, "description": "The server is overloaded or stopping; see `Retry-After`"},
    504: {"model": Problem, "description": "The time of `X-Request-Timeout-Ms` was up"},
}


Timeout = Annotated[int | None, Header(alias="X-Request-Timeout-Ms", ge=1, le=MAX_TIMEOUT_MS)]
"""How long the caller waits; texts that are not classified by then are dropped."""


@router.post("/v1/classify", tags=["classify"], responses=CLASSIFY_RESPONSES, response_model_exclude_none=True)
async def classify(body: ClassifyRequest, request: Request, timeout_ms: Timeout = None) -> ClassifyResponse:
    """Classify texts with one adapter."""
    return await _measured(request, body.adapter_id, body, timeout_ms)


@router.post(
    "/v1/adapters/{adapter_id}/classify",
    tags=["classify"],
    responses=CLASSIFY_RESPONSES,
    response_model_exclude_none=True,
)
async def classify_with(
    adapter_id: str, body: AdapterClassifyRequest, request: Request, timeout_ms: Timeout = None
) -> ClassifyResponse:
    """The same with the adapter in the path, so that a load balancer can route on it."""
    return await _measured(request, adapter_id, body, timeout_ms)


@router.get("/v1/adapters", tags=["inspect"])
async def list_adapters(request: Request) -> AdapterList:
    """All adapters of this server, those that were refused included."""
    return AdapterList(adapters=[_entry(card) for card in _desk(request).catalog.all()])


@router.get("/v1/adapters/{adapter_id}", tags=["inspect"], responses={404: CLASSIFY_RESPONSES[404]})
async def show_adapter(adapter_id: str, request: Request) -> AdapterEntry:
    """One adapter."""
    return _entry(_desk(request).catalog.find(adapter_id))


@router.get("/v1/base", tags=["inspect"])
async def show_base(request: Request) -> BaseInfo:
    """The base model."""
    return _desk(request).base


@router.get("/health/live", tags=["operate"], responses={503: {"model": Health}})
async def live(request: Request, response: Response) -> Health:
    """Whether the engine thread runs; a server that fails this must be restarted."""
    health = _desk(request).engine.health()
    response.status_code = 200 if health.alive else 503
    return Health(status="ok" if health.alive else "failed", waiting=health.num_waiting)


@router.get("/health/ready", tags=["operate"], responses={503: {"model": Health}})
async def ready(request: Request, response: Response) -> Health:
    """Whether requests are answered. The server listens only once its adapters are loaded."""
    return await live(request, response)


@router.get("/metrics", tags=["operate"], response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(generate_latest(_desk(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


async def _measured(
    request: Request, adapter_id: str, body: AdapterClassifyRequest, timeout_ms: int | None
) -> ClassifyResponse:
    """Answer a request and count it, whatever becomes of it."""
    desk = _desk(request)
    began, code, known = time.perf_counter(), "internal_error", ""
    try:
        card = desk.catalog.resolve(adapter_id)
        known = card.adapter_id
        timeout_s = timeout_ms / 1e3 if timeout_ms is not None else None
        deadline = time.monotonic() + timeout_s if timeout_s is not None else None
        response = await _in_time(request, _classify(desk, card, body, deadline), timeout_s)
        code = "ok"
        return response
    except AdaptermuxError as error:
        code = error.code
        raise
    finally:
        desk.metrics.request_answered(known, code, time.perf_counter() - began)


async def _in_time(
    request: Request, work: Coroutine[None, None, ClassifyResponse], timeout_s: float | None
) -> ClassifyResponse:
    """Do the work, and drop it where it waits once the client has closed the connection or its time is up."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request))
    try:
        done, _ = await asyncio.wait((working, leaving), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise DeadlineExceeded(f"the request was not answered within {timeout_s:g} s, as X-Request-Timeout-Ms asks")
        if working not in done:
            raise ClientLeft("the client closed the connection before it was answered")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    """Wait until the client closes the connection. The body has been read: nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _classify(
    desk: Desk, card: AdapterCard, body: AdapterClassifyRequest, deadline: float | None
) -> ClassifyResponse:
    if body.threshold is not None and card.manifest.problem_type != "multi_label":
        raise InvalidInput(
            "threshold",
            f"`threshold` is for multi-label adapters; `{card.adapter_id}` is {card.manifest.problem_type}",
        )
    began = time.perf_counter()
    encoded = await run_in_threadpool(_tokenize, desk, card.manifest, body)
    tokenize_s = time.perf_counter() - began
    jobs = [Job(card.adapter_id, card.version, one.token_ids, one.type_ids, deadline) for one in encoded]
    answers = await _run(desk.engine, jobs)
    num_tokens = sum(job.num_tokens for job in jobs)
    queue_ms = max(answer.queue_ms for answer in answers)
    desk.metrics.texts_classified(len(jobs), num_tokens, tokenize_s, queue_ms / 1e3)
    return ClassifyResponse(
        adapter_id=card.adapter_id,
        version=card.version,
        method=card.manifest.method,
        predictions=[_prediction(answer, card.manifest, body) for answer in answers],
        usage=Usage(tokens=num_tokens),
        timing_ms=Timing(
            tokenize=round(tokenize_s * 1e3, 3),
            queue=round(queue_ms, 3),
            compute=round(max(answer.compute_ms for answer in answers), 3),
        ),
    )


def _tokenize(desk: Desk, manifest: Manifest, body: AdapterClassifyRequest) -> list[Encoded]:
    texts = body.texts()
    if len(texts) > desk.max_inputs:
        raise TooManyInputs(
            "inputs", f"`inputs` has {len(texts)} texts, at most {desk.max_inputs} are taken in one request"
        )
    return [
        desk.tokenizer.encode(one.text, one.text_pair, manifest.max_length, body.truncate, field)
        for field, one in texts
    ]


async def _run(engine: Engine, jobs: list[Job]) -> list[Answer]:
    """Submit all jobs and wait; if one cannot be queued or fails, the others are dropped where they wait."""
    futures: list[Future[Answer]] = []
    try:
        for job in jobs:
            futures.append(engine.submit(job))
        return await asyncio.gather(*map(asyncio.wrap_future, futures))
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _prediction(answer: Answer, manifest: Manifest, body: AdapterClassifyRequest) -> Prediction:
    values = activate(answer.logits, manifest.problem_type, manifest.temperature)
    shown = answer.logits if body.output == "logits" else values
    # sorted by what decides: logits and probabilities rank alike
    ranked = sorted(zip(manifest.labels, values, shown, strict=True), key=lambda one: (-one[1], -one[2]))
    scores = [Score(label=label, score=score) for label, _, score in ranked]
    threshold = manifest.threshold if body.threshold is None else body.threshold
    return Prediction(
        label=scores[0].label,
        score=scores[0].score,
        labels=[one[0] for one in ranked if one[1] >= threshold] if manifest.problem_type == "multi_label" else None,
        scores=scores[: body.top_k],
    )


def _entry(card: AdapterCard | RefusedCard) -> AdapterEntry:
    if isinstance(card, RefusedCard):
        return AdapterEntry(adapter_id=card.adapter_id, status="failed", code=card.code, reason=card.reason)
    manifest = card.manifest
    measured = manifest.training.metrics if manifest.training else {}
    return AdapterEntry(
        adapter_id=card.adapter_id,
        status="ready",
        version=card.version,
        method=manifest.method,
        labels=list(manifest.labels),
        problem_type=manifest.problem_type,
        threshold=manifest.threshold if manifest.problem_type == "multi_label" else None,
        pooling=manifest.pooling,
        max_length=manifest.max_length,
        base=manifest.base_name,
        num_bytes=card.num_bytes,
        metrics={name: {"value": m.value, "low": m.low, "high": m.high} for name, m in measured.items()} or None,
        warnings=list(card.warnings),
    )
