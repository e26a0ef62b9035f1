"""What a PEFT method is to the rest of the code.

A method acts at sites: linear layers of the frozen base. For an adapter it holds one row per site, a
named tuple of views into the adapter's own flat block of memory. In a batch each method sees the
segments of its own adapters and changes what goes into a site, what comes out of it, or both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor

from server.errors import MethodUnsupported

if TYPE_CHECKING:
    from peft import PeftConfig

    from server.families import Family

Row = TypeVar("Row")

KEY_PREFIX = "base_model.model."
"""What PEFT puts in front of every module name in `adapter_model.safetensors`."""

MAX_RANK = 4096


@dataclass(frozen=True, slots=True)
class Site:
    """One linear layer of the base; `name` is its path in the classification model, as in adapter files."""

    name: str
    in_features: int
    out_features: int


class Segment(NamedTuple, Generic[Row]):
    """Rows `start` to `stop` of a batch belong to one adapter, which has `row` at this site."""

    start: int
    stop: int
    row: Row


class Method(ABC, Generic[Row]):
    """One PEFT method: its options, tensors, training set-up and its share of the forward pass."""

    name: ClassVar[str]
    peft_type: ClassVar[str]
    learning_rate: ClassVar[float]
    """Default for training, found by a sweep on a validation split; see `docs/log.md`."""
    weight_decay: ClassVar[float] = 0.01
    options: ClassVar[Mapping[str, tuple[float, float, float]]] = {}
    """Training options: name -> (default, lowest, highest)."""
    roles: ClassVar[tuple[str, ...]]
    """The tensors an adapter has at each of its sites: what follows the site's name in the file."""
    inert_fields: ClassVar[frozenset[str]]
    """Fields of `adapter_config.json` that this method reads itself or that cannot change its answers."""

    def check_config(self, config: Mapping[str, object]) -> None:
        """Refuse every option that would change the result and is not implemented here.

        Fields that are absent, null, false or empty are off. Raises MethodUnsupported naming the field.
        """
        for name, value in config.items():
            if name in COMMON_FIELDS or name in self.inert_fields or value in (None, False, "", [], {}):
                continue
            raise MethodUnsupported(f"`{name}: {value!r}` in adapter_config.json is not supported for {self.name}")

    @abstractmethod
    def shape(self, config: Mapping[str, object], site: Site, role: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the tensor `role` must have at a site, given the shape it is stored in."""

    @abstractmethod
    def bind(self, config: Mapping[str, object], site: Site, tensors: Mapping[str, Tensor]) -> Row:
        """Make the row of one site from its tensors by role; they may be changed in place."""

    def scale_input(self, x: Tensor, segments: Sequence[Segment[Row]]) -> Tensor:
        """Change what goes into a site. x [tokens, d_in] is shared: return it or a changed copy."""
        return x

    def apply(self, x: Tensor, y: Tensor, segments: Sequence[Segment[Row]]) -> None:
        """Change what comes out of a site, in place.

        x [tokens, d_in], y [tokens, d_out]; segments are sorted and do not overlap.
        """

    @abstractmethod
    def peft_config(self, family: Family, options: Mapping[str, float]) -> PeftConfig:
        """The PEFT configuration that trains this method on a base of `family`. Imports peft."""


COMMON_FIELDS = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "revision",
        "target_modules",
        "task_type",
    )
)
"""Fields of every PEFT configuration that do not touch the maths of the loaded tensors."""
