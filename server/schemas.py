"""The bodies of the native HTTP routes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from server.input_checks import by_hand, check_adapters, check_inputs


class TextInput(BaseModel):
    """A text, or a pair of texts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str
    text_pair: str | None = None


Output = Literal["probabilities", "logits"]
TAG = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class ClassifyOptions(BaseModel):
    """How texts are read and answers are shown."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    top_k: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Keep only the best k scores of each prediction; null keeps all."""
    output: Output = "probabilities"
    """`probabilities` applies the adapter's own activation; `logits` gives the raw logits."""
    threshold: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None
    """Multi-label adapters only: the score from which on a label counts; null takes the adapter's own."""
    truncate: Annotated[bool, Field(strict=True)] = False
    """Cut texts that are longer than the adapter takes; otherwise they are refused."""


class TextInputs(BaseModel):
    """Texts and pairs."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    inputs: str | TextInput | list[str | TextInput]
    """One text, one pair `{"text", "text_pair"}`, or a list of these."""

    @field_validator("inputs", mode="before")
    @classmethod
    def _inputs_are_texts(cls, value: object) -> object:
        return by_hand(lambda: check_inputs("inputs", value), value)

    def texts(self) -> list[tuple[str, TextInput]]:
        """Every input with the path of its text in the request."""
        return texts_at("inputs", self.inputs)


class AdapterClassifyRequest(ClassifyOptions, TextInputs):
    """Texts for the adapter that the path names."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": ["Cuff fits well, readings match the clinic."], "top_k": 2}]},
    )


class ClassifyRequest(AdapterClassifyRequest):
    """Texts and the adapter that shall classify them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"adapter_id": "device-reviews", "inputs": ["Cuff fits well, readings match the clinic."]}]
        }
    )

    adapter_id: Annotated[str, Field(min_length=1)]
    """Name of the adapter, as `GET /v1/adapters` lists it; `id@version` asks for one version."""


class FanoutRequest(AdapterClassifyRequest):
    """Texts for many adapters."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"adapters": "tag:triage", "inputs": "Refund me, and delete my data.", "top_k": 1}]
        }
    )

    adapters: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | str
    """A list of adapters, or `tag:NAME` for all that carry a tag."""

    @field_validator("adapters", mode="before")
    @classmethod
    def _adapters_are_names(cls, value: object) -> object:
        return by_hand(lambda: check_adapters("adapters", value), value)


class BatchLine(ClassifyRequest):
    """One line of a batch."""

    id: Annotated[str, Field(max_length=256)] | int | None = None
    """Given back with the answer."""


class Score(BaseModel):
    label: str
    score: float


class Prediction(BaseModel):
    """The best label and all scores, from high to low.

    labels: of a multi-label adapter, every label at or above the threshold, from high to low; there may be none.
    Other adapters have no such field. A regression adapter has one label, its score is the number.
    """

    label: str
    score: float
    labels: list[str] | None = None
    scores: list[Score]


class Usage(BaseModel):
    tokens: int


class Timing(BaseModel):
    """Where the time went. queue and compute: the largest over the inputs."""

    tokenize: float
    queue: float
    compute: float


class ClassifyResponse(BaseModel):
    """Predictions in the order of the inputs."""

    adapter_id: str
    version: str
    method: str
    predictions: list[Prediction]
    usage: Usage
    timing_ms: Timing


class FanoutFailure(BaseModel):
    """Why one adapter of many did not answer."""

    adapter_id: str
    status: int
    code: str
    detail: str


class FanoutResponse(BaseModel):
    """One entry for each adapter, in the order they were asked; an entry with `code` is one that failed."""

    results: list[ClassifyResponse | FanoutFailure]


class BatchResult(ClassifyResponse):
    """The answer to one line of a batch."""

    line: int
    id: str | int | None = None


class BatchFailure(BaseModel):
    """Why a line of a batch was not answered."""

    line: int
    id: str | int | None = None
    status: int
    code: str
    detail: str


class Reason(BaseModel):
    """Why something is not served."""

    code: str
    reason: str


class VersionShare(BaseModel):
    """A version and its share of the requests; shares need not sum to anything."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[str, Field(min_length=1, max_length=64)]
    weight: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1.0


class PutAdapterRequest(BaseModel):
    """Where an adapter comes from, and how it is kept."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [{"source": "s3://models/adapters/device-reviews", "tags": ["triage"], "pinned": False}]
        },
    )

    source: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    """`file:/folder`, `s3://bucket/prefix`, `gs://bucket/prefix` or `hf:org/name@revision`; null leaves it."""
    tags: Annotated[list[Annotated[str, Field(pattern=TAG)]], Field(max_length=64)] | None = None
    """Names to find it by, in `GET /v1/adapters` and in a fan-out; null leaves them."""
    pinned: Annotated[bool, Field(strict=True)] | None = None
    """Keep it in memory whoever else wants the room; null leaves that as it is."""
    activate: Annotated[bool, Field(strict=True)] = True
    """Let the id stand for the new version; otherwise it is there as `id@version` only."""


class AliasRequest(BaseModel):
    """What an id stands for: one version, several by weight, or what it was before."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {"version": "0f3a5c7e9b1d"},
                {"versions": [{"version": "0f3a5c7e9b1d", "weight": 95}, {"version": "8c1d2e3f4a5b", "weight": 5}]},
                {"rollback": True},
            ]
        },
    )

    version: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """The one version."""
    versions: Annotated[list[VersionShare], Field(min_length=1, max_length=16)] | None = None
    """Several, each with its weight. Put the new one last, so that callers with a routing key move to it only once."""
    rollback: Literal[True] | None = None
    """Back to what it was before the last change."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> AliasRequest:
        given = [name for name in ("version", "versions", "rollback") if getattr(self, name) is not None]
        if len(given) != 1:
            text = f"send one of `version`, `versions` and `rollback`, not {' and '.join(given) or 'none'}"
            raise PydanticCustomError("invalid_input", "{message}", {"message": text, "field": "version"})
        return self

    def shares(self) -> list[VersionShare]:
        """The versions and their weights."""
        return self.versions or [VersionShare(version=self.version or "")]


class VersionEntry(BaseModel):
    """One immutable version. source: where it was fetched from; null if it lies in the adapters folder.

    tier: where it is now: in the memory of the base model's `device`, of the `host` behind it, or on `disk` only.
    """

    version: str
    method: str
    num_bytes: int
    tier: Literal["device", "host", "disk"]
    source: str | None
    created: str
    refusal: Reason | None = None


class AdapterEntry(BaseModel):
    """An adapter as listed: `ready`, `failed`, or `update_failed`, with the refusal.

    update_failed: an older version is served, or one whose pin finds no room.
    """

    adapter_id: str
    status: Literal["ready", "failed", "update_failed"]
    version: str | None = None
    method: str | None = None
    labels: list[str] | None = None
    problem_type: str | None = None
    threshold: float | None = None
    pooling: str | None = None
    max_length: int | None = None
    base: str | None = None
    num_bytes: int | None = None
    metrics: dict[str, dict[str, float]] | None = None
    warnings: list[str] = []
    versions: list[VersionEntry]
    alias: list[VersionShare]
    tags: list[str]
    pinned: bool
    refusal: Reason | None = None


class AdapterList(BaseModel):
    """trouble: why the folder or bucket of adapters cannot be looked at; what was served still is."""

    adapters: list[AdapterEntry]
    trouble: Reason | None


class BaseInfo(BaseModel):
    """The base model that this server holds."""

    name: str
    family: str
    fingerprint: str
    dtype: str
    device: str
    hidden_size: int
    max_length: int


class Health(BaseModel):
    status: Literal["ok", "failed"]
    waiting: int


class FieldProblem(BaseModel):
    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    errors: list[FieldProblem] | None = None


def texts_at(path: str, inputs: str | TextInput | list[str | TextInput]) -> list[tuple[str, TextInput]]:
    """Every input with the path of its text."""
    if isinstance(inputs, list):
        return [found for index, one in enumerate(inputs) for found in texts_at(f"{path}[{index}]", one)]
    return [(path, TextInput(text=inputs)) if isinstance(inputs, str) else (f"{path}.text", inputs)]
