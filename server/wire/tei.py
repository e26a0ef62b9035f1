"""text-embeddings-inference's `/predict` and `/info`. Its servers hold one model, ours many: see `_adapter`.

Scores come from the adapter's own activation; theirs is a softmax whatever the problem.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from server import __version__, classification
from server.classification import Classified, Question
from server.desk import InVisit, Needs, Visit
from server.errors import AdaptermuxError, EngineStopped, InvalidInput, LoadFailed, Overloaded
from server.input_checks import by_hand, check_count, check_text, kind_of
from server.problems import headers_of
from server.schemas import Score
from server.tokenizer import Side
from server.wire.responses import BODY, CLASSIFYING, DENIED, errors

SHAPES = 'a text, a pair ["a", "b"], or a batch [["a"], ["b", "c"]]'


class PredictRequest(BaseModel):
    """Fields that are not known change nothing."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"inputs": [["Cuff fits well."], ["Is it loud?", "No."]], "truncate": True}]},
    )

    inputs: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=2)]
        | Annotated[list[Annotated[list[str], Field(min_length=1, max_length=2)]], Field(min_length=1)]
    )
    """A text, ONE PAIR of texts, or a batch whose items are lists of one text or of a pair."""
    truncate: Annotated[bool, Field(strict=True)] | None = None
    """Cut texts that are longer than the adapter takes; otherwise they are refused."""
    truncation_direction: Literal["Right", "right", "Left", "left"] = "Right"
    """The end that is cut off."""
    raw_scores: Annotated[bool, Field(strict=True)] = False
    """Give the logits."""

    @field_validator("inputs", mode="before")
    @classmethod
    def _inputs_are_texts(cls, value: object) -> object:
        return by_hand(lambda: _questions(value), value)


class Classifier(BaseModel):
    id2label: dict[str, str]
    label2id: dict[str, int]


class ModelType(BaseModel):
    classifier: Classifier


class Info(BaseModel):
    """What TEI tells of its model, told of an adapter."""

    model_id: str
    model_sha: str
    model_dtype: str
    served_model_name: str
    model_type: ModelType
    max_input_length: int
    max_client_batch_size: int
    auto_truncate: bool = False
    version: str = __version__


class TeiError(BaseModel):
    error: str
    error_type: Literal["unhealthy", "backend", "overloaded", "validation"]


AdapterHeader = Annotated[
    str | None,
    Header(alias="X-Adapter-Id", max_length=256, description="The adapter, where there are several"),
]
INFO = errors(TeiError, *DENIED, 404, 409, 422)
PREDICT = errors(TeiError, *DENIED, *BODY, *(set(CLASSIFYING) - {500}), 422, 424)

router = APIRouter(tags=["text-embeddings-inference"], dependencies=[Depends(Needs("classify"))])


@router.post("/predict", operation_id="tei_predict", responses=PREDICT)
async def predict(
    body: PredictRequest, visit: InVisit, response: Response, adapter_id: AdapterHeader = None
) -> list[Score] | list[list[Score]]:
    """Classify with the adapter of `X-Adapter-Id`, or with the only one there is."""
    return await _predict(_adapter(visit, adapter_id), body, visit, response)


@router.post("/tei/{adapter_id}/predict", operation_id="tei_predict_with", responses=PREDICT)
async def predict_with(
    adapter_id: str, body: PredictRequest, visit: InVisit, response: Response
) -> list[Score] | list[list[Score]]:
    """The same with the adapter in the address, for clients that know an address only."""
    return await _predict(adapter_id, body, visit, response)


@router.get("/info", operation_id="tei_info", responses=INFO)
async def info(visit: InVisit, adapter_id: AdapterHeader = None) -> Info:
    """What the adapter of `X-Adapter-Id` is, or the only one there is."""
    return _info(_adapter(visit, adapter_id), visit)


@router.get("/tei/{adapter_id}/info", operation_id="tei_info_of", responses=INFO)
async def info_of(adapter_id: str, visit: InVisit) -> Info:
    """The same with the adapter in the address."""
    return _info(adapter_id, visit)


def problem(error: AdaptermuxError) -> Response:
    status, kind = error.status, "validation"
    if isinstance(error, Overloaded) or error.status == 429:
        status, kind = 429, "overloaded"
    elif isinstance(error, EngineStopped | LoadFailed):
        kind = "unhealthy"
    elif error.status >= 500:
        status, kind = 424 if error.status == 500 else error.status, "backend"
    return JSONResponse({"error": str(error), "error_type": kind}, status_code=status, headers=headers_of(error))


def _adapter(visit: Visit, named: str | None) -> str:
    """The adapter that is meant where the address names none."""
    if named is not None:
        return named
    served = [one.adapter_id for one in visit.desk.catalog.all(visit.caller.sees) if one.status != "failed"]
    if len(served) == 1:
        return served[0]
    raise InvalidInput(
        "X-Adapter-Id",
        f"there are {len(served)} adapters here: name one in the header X-Adapter-Id, or in the address as in "
        "/tei/ADAPTER/predict; GET /v1/adapters lists them",
    )


async def _predict(
    adapter_id: str, body: PredictRequest, visit: Visit, response: Response
) -> list[Score] | list[list[Score]]:
    side: Side = "left" if body.truncation_direction.lower() == "left" else "right"
    questions, is_batch = _questions(body.inputs)
    classified = await classification.classify(visit, adapter_id, questions, body.truncate or False, side=side)
    response.headers.update(_times(classified))
    predictions = [
        [
            Score(label=label, score=score)
            for label, score in classified.ranked(answer, "none" if body.raw_scores else None)
        ]
        for answer in classified.answers
    ]
    return predictions if is_batch else predictions[0]


def _info(adapter_id: str, visit: Visit) -> Info:
    card = visit.desk.catalog.resolve(adapter_id, visit.caller.sees, visit.routing_key)
    labels = card.manifest.labels
    return Info(
        model_id=card.adapter_id,
        model_sha=card.version,
        model_dtype=visit.desk.base.dtype,
        served_model_name=card.adapter_id,
        model_type=ModelType(
            classifier=Classifier(
                id2label={str(index): label for index, label in enumerate(labels)},
                label2id={label: index for index, label in enumerate(labels)},
            )
        ),
        max_input_length=card.manifest.max_length,
        max_client_batch_size=visit.desk.max_inputs,
    )


def _questions(inputs: object) -> tuple[list[Question], bool]:
    """The texts, and whether they came as a batch. Raises InvalidInput."""
    if isinstance(inputs, str):
        return [Question("inputs", check_text("inputs", inputs))], False
    if not isinstance(inputs, list):
        raise InvalidInput("inputs", f"`inputs` must be {SHAPES}, not {kind_of(inputs)}")
    check_count("inputs", inputs)
    if not isinstance(inputs[0], list):
        return [_text_or_pair("inputs", inputs)], False
    return [_text_or_pair(f"inputs[{index}]", one) for index, one in enumerate(inputs)], True


def _text_or_pair(path: str, parts: object) -> Question:
    if not isinstance(parts, list):
        raise InvalidInput(path, f"`{path}` must be a list of one text or of a pair, not {kind_of(parts)}")
    if not 1 <= len(parts) <= 2:
        raise InvalidInput(path, f"`{path}` is a list of {len(parts)}, neither one text nor a pair; send {SHAPES}")
    texts = [check_text(f"{path}[{index}]", one) for index, one in enumerate(parts)]
    return Question(path, texts[0], texts[1] if len(texts) == 2 else None)


def _times(classified: Classified) -> dict[str, str]:
    """Whole milliseconds, as TEI counts them."""
    return {
        "x-compute-tokens": str(classified.num_tokens),
        "x-tokenization-time": str(round(classified.tokenize_ms)),
        "x-queue-time": str(round(classified.queue_ms)),
        "x-inference-time": str(round(classified.compute_ms)),
    }
