"""The Open Inference Protocol, version 2, as Triton and KServe speak it, and KServe's `:predict` of version 1.

A model is an adapter, its versions are the adapter's. Errors of the caller are 400, as theirs are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Message

from server import classification
from server.activation import Activation
from server.classification import Classified, Question
from server.desk import InVisit, Needs, Visit
from server.errors import AdaptermuxError, ClientLeft, InvalidInput
from server.problems import headers_of
from server.schemas import texts_at
from server.wire import binary_tensors
from server.wire.open_inference_bodies import (
    InferRequest,
    InferResponse,
    InputTensor,
    LabelledPrediction,
    Live,
    ModelMetadata,
    ModelNames,
    ModelParameters,
    ModelReady,
    OpenInferenceError,
    Output,
    OutputTensor,
    PredictRequest,
    PredictResponse,
    Ready,
    RequestedOutput,
    ServerMetadata,
    TensorShape,
    flat_texts,
)
from server.wire.responses import BODY, CHANGING, CLASSIFYING, DENIED, errors

DEFAULT_OUTPUTS: tuple[Output, ...] = ("label", "score", "probabilities")
TEXT, TEXT_PAIR = "text", "text_pair"


class _TensorRoute(APIRoute):
    """Takes tensors as bytes behind the JSON, and JSON that is not declared as such: Triton's client declares none."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            length = request.headers.get(binary_tensors.HEADER)
            if request.method != "POST" or (length is None and "content-type" in request.headers):
                return await handle(request)
            try:
                body = await request.body()
            except ClientDisconnect as error:
                raise ClientLeft("the client closed the connection before its body was whole") from error
            if length is not None:
                body = binary_tensors.with_texts(body, length)
            return await handle(_as_json(request, body))

        return handle_json


READING = [Depends(Needs("classify"))]
CHANGES = [Depends(Needs("admin"))]
FIND = errors(OpenInferenceError, *DENIED, 400, 404, 409)
INFER = errors(OpenInferenceError, *DENIED, *BODY, *CLASSIFYING)
CHANGED = errors(OpenInferenceError, *DENIED, 400, *CHANGING)

router = APIRouter(tags=["Open Inference Protocol"], route_class=_TensorRoute)


@router.get("/v2", operation_id="v2_server", dependencies=READING, responses=errors(OpenInferenceError, *DENIED))
async def show_server() -> ServerMetadata:
    """Name, version and extensions."""
    return ServerMetadata()


@router.get("/v2/health/live", operation_id="v2_live", responses={503: {"model": Live}})
async def live(request: Request, response: Response) -> Live:
    """Whether the engine works, or is being started again."""
    is_well = not request.app.state.desk.engine.health().needs_help
    response.status_code = 200 if is_well else 503
    return Live(live=is_well)


@router.get("/v2/health/ready", operation_id="v2_ready", responses={503: {"model": Ready}})
async def ready(request: Request, response: Response) -> Ready:
    """Whether requests are answered."""
    is_alive = request.app.state.desk.engine.health().alive
    response.status_code = 200 if is_alive else 503
    return Ready(ready=is_alive)


@router.get(
    "/v2/models", operation_id="v2_models", dependencies=READING, responses=errors(OpenInferenceError, *DENIED, 400)
)
async def list_models(visit: InVisit) -> ModelNames:
    """The adapters that you may ask."""
    records = visit.desk.catalog.all(visit.caller.sees)
    return ModelNames(models=[record.adapter_id for record in records if record.status != "failed"])


@router.get("/v2/models/{model}", operation_id="v2_model", dependencies=READING, responses=FIND)
async def show_model(model: str, visit: InVisit) -> ModelMetadata:
    """What an adapter takes and gives."""
    return _metadata(model, visit)


@router.get("/v2/models/{model}/versions/{version}", operation_id="v2_version", dependencies=READING, responses=FIND)
async def show_version(model: str, version: str, visit: InVisit) -> ModelMetadata:
    """What one version of an adapter takes and gives."""
    return _metadata(f"{model}@{version}", visit)


@router.get("/v2/models/{model}/ready", operation_id="v2_model_ready", dependencies=READING, responses=FIND)
async def model_ready(model: str, visit: InVisit) -> ModelReady:
    """Whether an adapter is served; it is an error if not."""
    return _ready(model, visit)


@router.get(
    "/v2/models/{model}/versions/{version}/ready",
    operation_id="v2_version_ready",
    dependencies=READING,
    responses=FIND,
)
async def version_ready(model: str, version: str, visit: InVisit) -> ModelReady:
    """Whether a version of an adapter is served; it is an error if not."""
    return _ready(f"{model}@{version}", visit)


@router.post(
    "/v2/models/{model}/infer",
    operation_id="v2_infer",
    dependencies=READING,
    responses=INFER,
    response_model=InferResponse,
    response_model_exclude_none=True,
)
async def infer(model: str, body: InferRequest, visit: InVisit) -> InferResponse | Response:
    """Classify with an adapter."""
    return await _infer(model, body, visit)


@router.post(
    "/v2/models/{model}/versions/{version}/infer",
    operation_id="v2_version_infer",
    dependencies=READING,
    responses=INFER,
    response_model=InferResponse,
    response_model_exclude_none=True,
)
async def infer_with(model: str, version: str, body: InferRequest, visit: InVisit) -> InferResponse | Response:
    """Classify with one version of an adapter."""
    return await _infer(f"{model}@{version}", body, visit)


@router.post("/v2/repository/models/{model}/load", operation_id="v2_load", dependencies=CHANGES, responses=CHANGED)
async def load(model: str, visit: InVisit) -> ModelReady:
    """Bring an adapter into memory and keep it there."""
    return await _pin(model, True, visit)


@router.post("/v2/repository/models/{model}/unload", operation_id="v2_unload", dependencies=CHANGES, responses=CHANGED)
async def unload(model: str, visit: InVisit) -> ModelReady:
    """Let an adapter leave memory when others want the room; it is loaded again when it is asked for."""
    return await _pin(model, False, visit)


@router.post("/v1/models/{model}:predict", operation_id="v1_predict", dependencies=READING, responses=INFER)
async def predict(model: str, body: PredictRequest, visit: InVisit) -> PredictResponse:
    """Classify with an adapter, in KServe's version 1."""
    questions = [Question(path, one.text, one.text_pair) for path, one in texts_at("instances", body.instances)]
    classified = await classification.classify(visit, model, questions)
    predictions = []
    for answer in classified.answers:
        ranked = classified.ranked(answer)
        label, score = ranked[0]
        predictions.append(LabelledPrediction(label=label, score=score, probabilities=dict(ranked)))
    return PredictResponse(predictions=predictions)


def problem(error: AdaptermuxError) -> Response:
    status = 400 if error.status == 422 else error.status
    return JSONResponse({"error": str(error)}, status_code=status, headers=headers_of(error))


def _metadata(reference: str, visit: Visit) -> ModelMetadata:
    card = visit.desk.catalog.resolve(reference, visit.caller.sees, visit.routing_key)
    manifest = card.manifest
    return ModelMetadata(
        name=card.adapter_id,
        versions=list(visit.desk.catalog.find(card.adapter_id, visit.caller.sees).versions),
        inputs=[TensorShape(name=name, datatype="BYTES", shape=[-1]) for name in (TEXT, TEXT_PAIR)],
        outputs=[
            TensorShape(name="label", datatype="BYTES", shape=[-1]),
            TensorShape(name="score", datatype="FP32", shape=[-1]),
            TensorShape(name="probabilities", datatype="FP32", shape=[-1, len(manifest.labels)]),
            TensorShape(name="logits", datatype="FP32", shape=[-1, len(manifest.labels)]),
        ],
        parameters=ModelParameters(
            labels=list(manifest.labels), problem_type=manifest.problem_type, max_length=manifest.max_length
        ),
    )


def _ready(reference: str, visit: Visit) -> ModelReady:
    card = visit.desk.catalog.resolve(reference, visit.caller.sees, visit.routing_key)
    return ModelReady(name=card.adapter_id, ready=True)


async def _pin(adapter_id: str, is_pinned: bool, visit: Visit) -> ModelReady:
    visit.desk.catalog.find(adapter_id, visit.caller.sees)
    await visit.desk.change(visit.desk.lifecycle.put, adapter_id, None, None, is_pinned)
    return ModelReady(name=adapter_id, ready=True)


async def _infer(reference: str, body: InferRequest, visit: Visit) -> InferResponse | Response:
    classified = await classification.classify(visit, reference, _questions(body.inputs), body.parameters.truncate)
    wanted = body.outputs or [RequestedOutput(name=name) for name in DEFAULT_OUTPUTS]
    answer = InferResponse(
        model_name=classified.card.adapter_id,
        model_version=classified.card.version,
        id=body.id,
        outputs=[_tensor(classified, one.name) for one in wanted],
    )
    all_binary = body.parameters.binary_data_output and body.outputs is None
    tail = b""
    for tensor, one in zip(answer.outputs, wanted, strict=True):
        if all_binary or one.parameters.binary_data:
            data = binary_tensors.packed(tensor.data or [])
            tensor.data, tensor.parameters = None, {"binary_data_size": len(data)}
            tail += data
    if not tail:
        return answer
    head = answer.model_dump_json(exclude_none=True).encode()
    headers = {binary_tensors.HEADER: str(len(head))}
    return Response(head + tail, media_type="application/octet-stream", headers=headers)


def _questions(inputs: Sequence[InputTensor]) -> list[Question]:
    """The texts and their second texts. Raises InvalidInput."""
    names = [one.name for one in inputs]
    if len(inputs) == 2 and set(names) != {TEXT, TEXT_PAIR}:
        raise InvalidInput("inputs", f"`inputs` are named {names[0]!a} and {names[1]!a}, not {TEXT} and {TEXT_PAIR}")
    if names == [TEXT_PAIR]:
        raise InvalidInput("inputs", f"`inputs` has {TEXT_PAIR} without {TEXT}")
    texts: list[tuple[str, str]] = []
    pairs: list[tuple[str, str]] = []
    for index, tensor in enumerate(inputs):
        path = f"inputs[{index}]"
        data = flat_texts(f"{path}.data", tensor.data)
        if math.prod(tensor.shape) != len(data):
            raise InvalidInput(
                f"{path}.shape", f"`{path}.shape` is {tensor.shape}, `{path}.data` has {len(data)} texts"
            )
        if tensor.name == TEXT_PAIR:
            pairs = data
        else:
            texts = data
    if pairs and len(pairs) != len(texts):
        raise InvalidInput("inputs", f"`inputs` has {len(texts)} texts, but {len(pairs)} second texts")
    if not pairs:
        return [Question(path, text) for path, text in texts]
    return [Question(path, text, second) for (path, text), (_, second) in zip(texts, pairs, strict=True)]


def _tensor(classified: Classified, name: Output) -> OutputTensor:
    num_texts, num_labels = len(classified.answers), len(classified.card.manifest.labels)
    if name in ("label", "score"):
        best = [classified.ranked(answer)[0] for answer in classified.answers]
        if name == "label":
            return OutputTensor(name=name, datatype="BYTES", shape=[num_texts], data=[label for label, _ in best])
        return OutputTensor(name=name, datatype="FP32", shape=[num_texts], data=[score for _, score in best])
    activation: Activation | None = "none" if name == "logits" else None
    rows = [classified.scores(answer, activation) for answer in classified.answers]
    numbers = [number for row in rows for number in row]
    return OutputTensor(name=name, datatype="FP32", shape=[num_texts, num_labels], data=numbers)


def _as_json(request: Request, body: bytes) -> Request:
    """The same request with another body, declared as JSON."""
    headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
    scope = {**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}
    unread: list[Message] = [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        return unread.pop() if unread else await request.receive()

    return Request(scope, receive)
