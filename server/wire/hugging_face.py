"""Hugging Face's inference routes: `InferenceClient(base_url=".../models/ADAPTER").text_classification(text)`.

The client posts to exactly the address it is given, so every adapter has one. It takes the first of a list of
predictions, so that one text is answered with a list in a list too.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from server import classification
from server.activation import Activation
from server.classification import Question
from server.desk import InVisit, Needs
from server.errors import AdaptermuxError
from server.problems import headers_of
from server.schemas import Score, TextInputs
from server.wire.responses import BODY, CLASSIFYING, DENIED, errors


class Parameters(BaseModel):
    """How texts are read and answers are shown. Parameters of other tasks are refused by name."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    top_k: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Keep only the best k scores; null keeps all."""
    function_to_apply: Activation | None = None
    """What makes scores of the logits; null takes the adapter's own."""
    truncation: Annotated[bool, Field(strict=True)] = False
    """Cut texts that are longer than the adapter takes; otherwise they are refused."""


class TextClassificationRequest(TextInputs):
    """Other fields, such as `options`, change nothing."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"inputs": "Cuff fits well.", "parameters": {"top_k": 2}}]},
    )

    parameters: Parameters | None = None
    """How texts are read and answers are shown."""


class HuggingFaceError(BaseModel):
    error: str


router = APIRouter(tags=["Hugging Face"], dependencies=[Depends(Needs("classify"))])


@router.post(
    "/models/{adapter_id}",
    operation_id="hugging_face_text_classification",
    responses=errors(HuggingFaceError, *DENIED, *BODY, *CLASSIFYING, 422),
)
async def text_classification(adapter_id: str, body: TextClassificationRequest, visit: InVisit) -> list[list[Score]]:
    """Classify as Hugging Face's inference services do; `id@version` asks for one version."""
    options = body.parameters or Parameters()
    questions = [Question(field, one.text, one.text_pair) for field, one in body.texts()]
    classified = await classification.classify(visit, adapter_id, questions, options.truncation)
    return [
        [Score(label=label, score=score) for label, score in classified.ranked(answer, options.function_to_apply)][
            : options.top_k
        ]
        for answer in classified.answers
    ]


def problem(error: AdaptermuxError) -> Response:
    return JSONResponse({"error": str(error)}, status_code=error.status, headers=headers_of(error))
