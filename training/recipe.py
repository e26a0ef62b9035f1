"""How one adapter is trained: everything that can change the result, beside data and seed."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.errors import RecipeError
from server.families import Family
from server.manifest import Pooling
from server.methods import Method
from training.options import DEFAULT_MAX_LENGTH, HasOptions, options_of

# About 190 steps of 32 rows: what the methods' learning rates were found with (docs/log.md)
SAMPLES = 6000
MIN_EPOCHS, MAX_EPOCHS = 3, 20

Quantization = Literal["nf4"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe with nothing left open; the manifest records it."""

    options: Mapping[str, float]
    learning_rate: float
    head_learning_rate: float
    epochs: float
    batch_size: int
    weight_decay: float
    warmup: float
    max_grad_norm: float
    dropout: float | None
    max_length: int
    pooling: Pooling
    precision: str
    quantize: Quantization | None
    gradient_checkpointing: bool


class Trainable(HasOptions, Protocol):
    """What a recipe asks of whatever is trained: a `server.methods.Method`, or the whole base."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def head_learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    def num_virtual_tokens(self, options: Mapping[str, float]) -> int: ...


class Recipe(BaseModel):
    """Settings of a training run; null takes the default of the method, the family or the data."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    options: dict[str, float] = Field(default_factory=dict)
    """The method's own options, such as {"rank": 8, "alpha": 16} for LoRA."""
    learning_rate: float | None = Field(None, gt=0)
    """For the adapter; null takes the method's own."""
    head_learning_rate: float | None = Field(None, gt=0)
    """For the classification head; null takes the method's own."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the training rows; null aims at 6,000 samples, within 3 to 20 passes."""
    batch_size: int = Field(32, ge=1)
    weight_decay: float | None = Field(None, ge=0)
    """For the adapter; null takes the method's own."""
    warmup: float = Field(0.06, ge=0, lt=1)
    """Share of the steps over which the learning rates rise; they fall linearly to 0 afterwards."""
    max_grad_norm: float = Field(1.0, gt=0)
    dropout: float | None = Field(None, ge=0, lt=1)
    """In the base and before the head, in training; null keeps the base's own."""
    max_length: int | None = Field(None, ge=2)
    """Tokens a text is cut to; null takes what the base model can read, at most 512."""
    pooling: Pooling | None = None
    """null takes the family's default: mean for encoders, last for decoders."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto computes in bfloat16 where the device multiplies it faster."""
    quantize: Quantization | None = None
    """nf4 holds the frozen linear layers in 4 bits while training (Dettmers et al. 2023)."""
    gradient_checkpointing: bool = False
    """Computes each layer's activations again for the backward pass: less memory, about a third more time."""

    def settle(self, method: Trainable, family: Family, num_rows: int, length_limit: int) -> Plan:
        """Fill in the defaults of the method, the family and the data. Raises RecipeError.

        length_limit: tokens that the base model can read.
        """
        options = options_of(method, self.options)
        length_limit -= method.num_virtual_tokens(options)
        if self.max_length is not None and self.max_length > length_limit:
            raise RecipeError(f"`max_length` is {self.max_length}, the base model reads at most {length_limit} tokens")
        if self.quantize is not None and not isinstance(method, Method):
            raise RecipeError(f"`quantize` is for a base that stays frozen, not for `{method.name}`; leave it out")
        if self.gradient_checkpointing and method.num_virtual_tokens(options):
            raise RecipeError(
                f"`gradient_checkpointing` does not go with method {method.name}: layers that are computed again lose "
                "the keys and values in front of a text; leave it out"
            )
        return Plan(
            options=options,
            learning_rate=self.learning_rate or method.learning_rate,
            head_learning_rate=self.head_learning_rate or method.head_learning_rate,
            epochs=self.epochs or min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(SAMPLES / num_rows))),
            batch_size=self.batch_size,
            weight_decay=method.weight_decay if self.weight_decay is None else self.weight_decay,
            warmup=self.warmup,
            max_grad_norm=self.max_grad_norm,
            dropout=self.dropout,
            max_length=self.max_length or min(length_limit, DEFAULT_MAX_LENGTH),
            pooling=self.pooling or family.default_pooling,
            precision=self.precision,
            quantize=self.quantize,
            gradient_checkpointing=self.gradient_checkpointing,
        )


def read_recipe(path: Path) -> Recipe:
    """Read a TOML or JSON file; raises RecipeError naming the field that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
        record = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        return Recipe.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        near = difflib.get_close_matches(name, Recipe.model_fields, n=1)
        hint = f"; did you mean `{near[0]}`?" if first["type"] == "extra_forbidden" and near else ""
        raise RecipeError(f"recipe `{path}`: `{name}`: {first['msg']}{hint}") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe `{path}` cannot be read: {error}") from error
