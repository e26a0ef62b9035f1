"""What a team asks: its task, its data, and what serving must hold to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from decision.base_shape import BaseShape, bases, nearest
from decision.errors import QuestionError

MISTAKE = "invalid_input"
"""The type of what is wrong of a question and pydantic does not see by itself; its context holds `field`."""


class Question(BaseModel):
    """Everything that an answer depends on, beside the evidence and the prices."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    task_type: str = Field(min_length=1, max_length=64)
    """topic, intent, sentiment, pair; long_text, generation, domain_shift (from literature); or of your own rows."""
    train_rows: int = Field(ge=1, le=100_000_000)
    """Labelled rows that there are to train on."""
    num_labels: int | None = Field(None, ge=2, le=100_000)
    """Labels of the task; as many as the measured one has if not given."""
    adapters: int = Field(1, ge=1, le=10_000_000)
    """Tasks that are registered, each with an adapter."""
    hot: int | None = Field(None, ge=1, le=10_000_000)
    """Adapters among which the requests of some minutes choose; all if not given."""
    rps: float = Field(1.0, gt=0, le=1e9)
    """Requests a second, of all adapters together."""
    p95_ms: float | None = Field(None, gt=0)
    """Limit of the 95th percentile of latency; none if not given."""
    memory_gib: float | None = Field(None, gt=0)
    """Memory of a replica: the host's, or the card's; no limit if not given."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where the base model computes."""
    base: str = "minilm"
    """Base model, by its name in decision/bases.toml."""
    base_parameters: float | None = Field(None, ge=1e6, le=1e13)
    """Parameters of a base that is not there; the rest of its shape is the nearest known one's."""
    swaps_per_hour: float = Field(0.0, ge=0, le=1e9)
    """Adapters that are loaded, replaced or removed while requests come in."""
    serving: Literal["mixed", "merged"] = "mixed"
    """mixed: all adapters on one base; merged: each is added to the weights of a copy of its own."""
    locked_base: bool = False
    """The base's weights may not be changed, as those of a certified artefact."""
    quantised_base: bool = False
    """The base's weights are kept in 4 bits."""
    mean_tokens: float | None = Field(None, gt=0, le=1_000_000)
    """Of a text; as those of the measured workload if not given."""
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    """Of the longest text that must not be cut."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.hot is not None and self.hot > self.adapters:
            raise _mistake("hot", f"`hot` is {self.hot}, more than the {self.adapters} `adapters` that are registered")
        if self.base not in bases():
            known = ", ".join(bases())
            raise _mistake("base", f"`base` is `{self.base}`, it must be one of {known}; or give base_parameters")
        if self.mean_tokens is not None and self.max_tokens is not None and self.mean_tokens > self.max_tokens:
            text = f"`mean_tokens` is {self.mean_tokens:g}, more than `max_tokens`, {self.max_tokens}"
            raise _mistake("mean_tokens", text)
        return self

    @property
    def num_hot(self) -> int:
        return self.adapters if self.hot is None else self.hot

    @property
    def shape(self) -> BaseShape:
        """Of the base model."""
        return bases()[self.base] if self.base_parameters is None else nearest(self.base_parameters)

    @property
    def base_name(self) -> str:
        return self.base if self.base_parameters is None else f"{self.base_parameters:g} parameters"

    @property
    def kind_of_base(self) -> str:
        """What the tree asks for: decoder or encoder."""
        return self.shape.kind


def ask(values: Mapping[str, Any]) -> Question:
    """A question from flags, a query or JSON. Raises QuestionError naming the field."""
    try:
        return Question.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == MISTAKE:
            raise QuestionError(first["msg"], first["ctx"]["field"]) from error
        field = ".".join(map(str, first["loc"]))
        shown = f", not {first['input']!r:.60}" if first["type"] != "missing" else ""
        raise QuestionError(f"`{field}`: {first['msg']}{shown}", field) from error


def _mistake(field: str, message: str) -> PydanticCustomError:
    """Of a field that does not fit the others."""
    return PydanticCustomError(MISTAKE, "{message}", {"message": message, "field": field})
