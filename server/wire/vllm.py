"""vLLM's `/classify`, `/v1/models` and its two routes that load and unload adapters.

The last three are what AIBrix and the LoRA syncer of the Gateway API Inference Extension drive.
"""

from __future__ import annotations

import calendar
import time
import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from server import classification
from server.activation import Activation
from server.classification import Question
from server.desk import InVisit, Needs, Visit
from server.errors import AdaptermuxError, InvalidInput, SourceNotFound
from server.input_checks import by_hand, check_count, check_text, kind_of
from server.problems import headers_of
from server.tokenizer import Side
from server.wire.lora_adapters import LoadLoraRequest, UnloadLoraRequest, load, root_of, served, unload
from server.wire.responses import BODY, CHANGING, CLASSIFYING, DENIED, errors

SHAPES = "a text, a list of texts, a list of token ids, or a list of such lists"
UNHONOURED = {
    "messages": "chats are not classified; send `input`",
    "normalize": "classes are not normalised; send `use_activation`",
}
TYPES = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}
"""What vLLM calls its errors; others have the names of ours."""

TokenId = Annotated[int, Field(ge=0, strict=True)]
_STARTED = int(time.time())


class VllmClassifyRequest(BaseModel):
    """Fields that are not known change nothing."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"model": "device-reviews", "input": ["Cuff fits well.", "It is loud."]}]},
    )

    model: str | None = None
    """The adapter; `id@version` asks for one version. The base model has no head of its own."""
    input: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
    )
    """A text, a list of texts, the token ids of a text (special tokens included), or a list of such lists."""
    use_activation: Annotated[bool, Field(strict=True)] | None = None
    """false gives the logits."""
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, strict=True)] | None = None
    """Cut texts to so many tokens, or to what the adapter takes if that is less or this is -1; null refuses them."""
    truncation_side: Side | None = None
    """The end that is cut off; `right` if not given."""
    add_special_tokens: Literal[True] = True
    """Texts are always classified with their special tokens, as they were in training."""
    messages: None = None
    normalize: None = None

    @field_validator("input", mode="before")
    @classmethod
    def _input_is_known(cls, value: object) -> object:
        return by_hand(lambda: _questions(value), value)

    @field_validator("messages", "normalize", mode="before")
    @classmethod
    def _is_not_sent(cls, value: object, info: ValidationInfo) -> object:
        return by_hand(lambda: _refuse(str(info.field_name), value), value)


class Classification(BaseModel):
    """probs: in the order of the adapter's labels, of which `label` is the likeliest."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class VllmUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None
    completion_tokens_details: None = None


class VllmClassifyResponse(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classification]
    usage: VllmUsage


class ModelCard(BaseModel):
    """root: where it came from. parent: of an adapter, the base model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["adaptermux"] = "adaptermux"
    root: str
    parent: str | None = None
    max_model_len: int
    permission: list[None] = []


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class VllmErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None
    code: int


class VllmError(BaseModel):
    error: VllmErrorDetails


router = APIRouter(tags=["vLLM"])
READING = [Depends(Needs("classify"))]
CHANGES = [Depends(Needs("admin"))]


@router.post(
    "/classify",
    operation_id="vllm_classify",
    dependencies=READING,
    responses=errors(VllmError, *DENIED, *BODY, *CLASSIFYING),
)
async def classify(
    body: VllmClassifyRequest,
    visit: InVisit,
    request_id: Annotated[str | None, Header(alias="X-Request-Id", max_length=256)] = None,
) -> VllmClassifyResponse:
    """Classify with the adapter that `model` names."""
    reference = _adapter(body.model, visit)
    activation: Activation | None = "none" if body.use_activation is False else None
    classified = await classification.classify(
        visit,
        reference,
        _questions(body.input),
        truncate=body.truncate_prompt_tokens is not None,
        max_tokens=None if body.truncate_prompt_tokens == -1 else body.truncate_prompt_tokens,
        side=body.truncation_side or "right",
    )
    labels, data = classified.card.manifest.labels, []
    for index, answer in enumerate(classified.answers):
        probs = classified.scores(answer, activation)
        best = max(range(len(labels)), key=answer.logits.__getitem__)
        data.append(Classification(index=index, label=labels[best], probs=probs, num_classes=len(labels)))
    return VllmClassifyResponse(
        id=f"classify-{request_id or uuid.uuid4().hex}",
        created=int(time.time()),
        model=reference,
        data=data,
        usage=VllmUsage(prompt_tokens=classified.num_tokens, total_tokens=classified.num_tokens),
    )


@router.get("/v1/models", operation_id="vllm_models", dependencies=READING, responses=errors(VllmError, *DENIED, 400))
async def list_models(visit: InVisit) -> ModelList:
    """The base model and every adapter that is served, in the shape of OpenAI's list."""
    base = visit.desk.base
    cards = [ModelCard(id=base.name, created=_STARTED, root=base.name, max_model_len=base.max_length)]
    for record in served(visit):
        if (card := record.current) is not None:
            cards.append(
                ModelCard(
                    id=record.adapter_id,
                    created=_seconds(card.created),
                    root=root_of(record),
                    parent=base.name,
                    max_model_len=card.manifest.max_length,
                )
            )
    return ModelList(data=cards)


@router.post(
    "/v1/load_lora_adapter",
    operation_id="vllm_load_lora_adapter",
    dependencies=CHANGES,
    response_class=PlainTextResponse,
    responses=errors(VllmError, *DENIED, *BODY, *CHANGING),
)
async def load_lora_adapter(body: LoadLoraRequest, visit: InVisit) -> str:
    """Serve an adapter, of whatever method, under a new id."""
    await load(body, visit)
    return f"Success: LoRA adapter '{body.lora_name}' added successfully."


@router.post(
    "/v1/unload_lora_adapter",
    operation_id="vllm_unload_lora_adapter",
    dependencies=CHANGES,
    response_class=PlainTextResponse,
    responses=errors(VllmError, *DENIED, *BODY, *CHANGING),
)
async def unload_lora_adapter(body: UnloadLoraRequest, visit: InVisit) -> str:
    """Forget an adapter."""
    await unload(body.lora_name, visit)
    return f"Success: LoRA adapter '{body.lora_name}' removed successfully."


def problem(error: AdaptermuxError) -> Response:
    status = 400 if error.status == 422 else error.status
    if isinstance(error, SourceNotFound):
        status = 404
    field = error.field if isinstance(error, InvalidInput) else None
    kind = "InvalidUserInput" if field in LoadLoraRequest.model_fields else TYPES.get(status, type(error).__name__)
    body = VllmErrorDetails(message=str(error), type=kind, param=field, code=status)
    return JSONResponse({"error": body.model_dump()}, status_code=status, headers=headers_of(error))


def _adapter(model: str | None, visit: Visit) -> str:
    if model and model != visit.desk.base.name:
        return model
    said = f"`model` is the base model {model!a}, which" if model else "`model` is missing, and the base model"
    raise InvalidInput("model", f"{said} has no classes of its own; name an adapter, GET /v1/models lists them")


def _questions(value: object) -> list[Question]:
    """The texts. Raises InvalidInput."""
    if not isinstance(value, list) or (value and type(value[0]) is int):
        return [_question("input", value)]
    check_count("input", value)
    return [_question(f"input[{index}]", one) for index, one in enumerate(value)]


def _question(path: str, value: object) -> Question:
    if isinstance(value, str):
        return Question(path, check_text(path, value))
    if isinstance(value, list) and value and all(type(one) is int for one in value):
        return Question(path, tuple(value))
    raise InvalidInput(path, f"`{path}` is {kind_of(value)}; `input` must be {SHAPES}")


def _refuse(name: str, value: object) -> None:
    if value is not None:
        raise InvalidInput(name, f"`{name}`: {UNHONOURED[name]}")


def _seconds(created: str) -> int:
    """Of a time as cards have it, since 1970."""
    return calendar.timegm(time.strptime(created, "%Y-%m-%dT%H:%M:%SZ")) if created else _STARTED
