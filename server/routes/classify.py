"""Classify texts: with one adapter, or with many."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Response

from server import classification
from server.classification import Classified, Question, Tokens
from server.desk import InVisit, Needs, Visit
from server.errors import AdaptermuxError, AdapterNotFound, InvalidInput
from server.jobs import Answer
from server.routes.responses import ALWAYS, CLASSIFYING, WITH_BODY
from server.schemas import (
    AdapterClassifyRequest,
    ClassifyOptions,
    ClassifyRequest,
    ClassifyResponse,
    FanoutFailure,
    FanoutRequest,
    FanoutResponse,
    Prediction,
    Score,
    Timing,
    Usage,
)

TAG = "tag:"

router = APIRouter(
    tags=["classify"],
    dependencies=[Depends(Needs("classify"))],
    responses=ALWAYS | WITH_BODY | CLASSIFYING,
)


@router.post("/v1/classify", response_model=ClassifyResponse)
async def classify(body: ClassifyRequest, visit: InVisit) -> Response:
    """Classify texts with one adapter."""
    return await _classify(visit, body.adapter_id, body)


@router.post("/v1/adapters/{adapter_id}/classify", response_model=ClassifyResponse)
async def classify_with(adapter_id: str, body: AdapterClassifyRequest, visit: InVisit) -> Response:
    """The same with the adapter in the path, so that a load balancer can route on it."""
    return await _classify(visit, adapter_id, body)


@router.post("/v1/classify/fanout", response_model_exclude_none=True)
async def fan_out(body: FanoutRequest, visit: InVisit) -> FanoutResponse:
    """Classify the same texts with many adapters, or with all that carry a tag. The texts are tokenised once.

    An adapter that cannot answer is told with the reason and keeps none of the others back.
    """
    references = _references(visit, body.adapters)
    questions = [Question(field, one.text, one.text_pair) for field, one in body.texts()]
    await classification.check_count(visit, len(questions), len(references))
    tokens = Tokens(visit.desk.tokenizer, questions, body.truncate)

    async def one(reference: str) -> ClassifyResponse | FanoutFailure:
        try:
            return respond(await classification.classify_tokens(visit, reference, tokens, body.threshold), body)
        except AdaptermuxError as error:
            return FanoutFailure(adapter_id=reference, status=error.status, code=error.code, detail=str(error))

    async def all_of_them() -> list[ClassifyResponse | FanoutFailure]:
        return await asyncio.gather(*map(one, references))

    return FanoutResponse(results=await classification.until_left(visit, all_of_them()))


async def _classify(visit: Visit, reference: str, body: AdapterClassifyRequest) -> Response:
    questions = [Question(field, one.text, one.text_pair) for field, one in body.texts()]
    native = respond(await classification.classify(visit, reference, questions, body.truncate, body.threshold), body)
    # written here: FastAPI would check our own answer once more
    return Response(native.model_dump_json(exclude_none=True), media_type="application/json")


def respond(classified: Classified, options: ClassifyOptions) -> ClassifyResponse:
    """The native body of an answer."""
    card = classified.card
    return ClassifyResponse(
        adapter_id=card.adapter_id,
        version=card.version,
        method=card.manifest.method,
        predictions=[_prediction(classified, answer, options) for answer in classified.answers],
        usage=Usage(tokens=classified.num_tokens),
        timing_ms=Timing(
            tokenize=round(classified.tokenize_ms, 3),
            queue=round(classified.queue_ms, 3),
            compute=round(classified.compute_ms, 3),
        ),
    )


def _prediction(classified: Classified, answer: Answer, options: ClassifyOptions) -> Prediction:
    manifest = classified.card.manifest
    values = classified.scores(answer)
    shown = answer.logits if options.output == "logits" else values
    # sorted by what decides: logits and probabilities rank alike
    ranked = sorted(zip(manifest.labels, values, shown, strict=True), key=lambda one: (-one[1], -one[2]))
    scores = [Score(label=label, score=score) for label, _, score in ranked]
    threshold = manifest.threshold if options.threshold is None else options.threshold
    return Prediction(
        label=scores[0].label,
        score=scores[0].score,
        labels=[one[0] for one in ranked if one[1] >= threshold] if manifest.problem_type == "multi_label" else None,
        scores=scores[: options.top_k],
    )


def _references(visit: Visit, adapters: list[str] | str) -> list[str]:
    """The adapters that a fan-out asks, each once."""
    if isinstance(adapters, list):
        return list(dict.fromkeys(adapters))
    if not adapters.startswith(TAG):
        raise InvalidInput("adapters", f'`adapters` is {adapters[:80]!a}; send a list of ids, or "tag:NAME"')
    tag = adapters.removeprefix(TAG)
    found = [record.adapter_id for record in visit.desk.catalog.all(visit.caller.sees, tag)]
    if not found:
        raise AdapterNotFound(f"no adapter has the tag {tag[:80]!a}; see GET /v1/adapters")
    return found
