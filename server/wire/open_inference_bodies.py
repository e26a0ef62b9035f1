"""The bodies of `server.wire.open_inference`."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from server import __version__
from server.errors import InvalidInput
from server.input_checks import by_hand, check_count, check_inputs, check_text, kind_of
from server.schemas import TextInput

Output = Literal["label", "score", "probabilities", "logits"]


class TensorShape(BaseModel):
    """-1 stands for the number of texts."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]


class ServerMetadata(BaseModel):
    name: Literal["adaptermux"] = "adaptermux"
    version: str = __version__
    extensions: list[str] = ["binary_tensor_data"]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ModelReady(Ready):
    name: str


class ModelNames(BaseModel):
    models: list[str]


class ModelParameters(BaseModel):
    """What the numbers mean: `probabilities` and `logits` are in the order of the labels."""

    labels: list[str]
    problem_type: str
    max_length: int


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: Literal["adaptermux"] = "adaptermux"
    inputs: list[TensorShape]
    outputs: list[TensorShape]
    parameters: ModelParameters


class InputTensor(BaseModel):
    """Texts. Their tensor is named `text`; a single one may have any name. Second texts are named `text_pair`."""

    name: str
    datatype: Literal["BYTES"]
    shape: Annotated[list[Annotated[int, Field(ge=1, strict=True)]], Field(min_length=1, max_length=2)]
    data: list[str] | list[list[str]]
    parameters: dict[str, object] | None = None


class OutputParameters(BaseModel):
    """Asked for in one output. classification: Triton's own extension, which is not supported."""

    binary_data: Annotated[bool, Field(strict=True)] = False
    classification: None = None


class RequestedOutput(BaseModel):
    name: Output
    parameters: OutputParameters = OutputParameters()


class InferParameters(BaseModel):
    """Others, such as Triton's `priority`, change nothing."""

    truncate: Annotated[bool, Field(strict=True)] = False
    binary_data_output: Annotated[bool, Field(strict=True)] = False


class InferRequest(BaseModel):
    """Texts, and which outputs are wanted: label, score and probabilities if none are named."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "42",
                    "inputs": [
                        {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["Cuff fits well.", "It is loud."]}
                    ],
                    "outputs": [{"name": "label"}, {"name": "logits"}],
                }
            ]
        }
    )

    id: Annotated[str, Field(max_length=256)] | None = None
    parameters: InferParameters = InferParameters()
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=2)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=len(get_args(Output)))] | None = None

    @field_validator("inputs", mode="before")
    @classmethod
    def _data_are_texts(cls, value: object) -> object:
        return by_hand(lambda: _check_data(value), value)


class OutputTensor(TensorShape):
    """data is flat: the numbers of the first text, of the second, and so on. It stands behind the JSON if asked for."""

    data: list[str] | list[float] | None = None
    parameters: dict[str, int] | None = None


class InferResponse(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class PredictRequest(BaseModel):
    """Version 1."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"instances": ["Cuff fits well.", "It is loud."]}]})

    instances: Annotated[list[str | TextInput], Field(min_length=1)]

    @field_validator("instances", mode="before")
    @classmethod
    def _instances_are_texts(cls, value: object) -> object:
        return by_hand(lambda: check_inputs("instances", value if isinstance(value, list) else [value]), value)


class LabelledPrediction(BaseModel):
    label: str
    score: float
    probabilities: dict[str, float]


class PredictResponse(BaseModel):
    predictions: list[LabelledPrediction]


class OpenInferenceError(BaseModel):
    error: str


def flat_texts(path: str, data: object) -> list[tuple[str, str]]:
    """Every text with its path. Raises InvalidInput."""
    if not isinstance(data, list):
        raise InvalidInput(path, f"`{path}` must be a list of texts, or of lists of texts, not {kind_of(data)}")
    check_count(path, data)
    found = []
    for index, one in enumerate(data):
        if isinstance(one, list):
            found += [(f"{path}[{index}][{inner}]", text) for inner, text in enumerate(one)]
        else:
            found.append((f"{path}[{index}]", one))
    return [(where, check_text(where, text)) for where, text in found]


def _check_data(inputs: object) -> None:
    for index, tensor in enumerate(inputs if isinstance(inputs, list) else []):
        if isinstance(tensor, dict) and "data" in tensor:
            flat_texts(f"inputs[{index}].data", tensor["data"])
