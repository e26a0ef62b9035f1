"""What a PEFT method is to the rest of the code.

A method acts at sites: linear layers of the frozen base. For an adapter it holds one row per site, a
named tuple or data class of views into the adapter's own flat block of memory. In a batch each method sees the
segments of its own adapters and changes what goes into a site, what comes out of it, or both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from math import prod
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, TypeVar

import regex
from torch import Tensor

from server.errors import AdapterDamaged, MethodUnsupported

if TYPE_CHECKING:
    from peft import PeftConfig

    from server.families import Family
    from server.products import Operation, Products

Row = TypeVar("Row")

KEY_PREFIX = "base_model.model."
"""What PEFT puts in front of every module name in `adapter_model.safetensors`."""
SHORT_KEY_PREFIX = "base_model."
"""What it puts in front of the head's name for methods that add no modules."""

MAX_RANK = 4096
PATTERN_LIMIT_S = 0.1


@dataclass(frozen=True, slots=True)
class Site:
    """One linear layer of the base; `name` is its path in the classification model, as in adapter files."""

    name: str
    in_features: int
    out_features: int


ATTENTION = ""
"""Name of the site that stands for the keys and values of every attention layer together."""


@dataclass(frozen=True, slots=True)
class AttentionSite(Site):
    """Keys and values of all attention layers side by side: in_features is 2 x layers x heads x head_dim.

    num_heads counts key and value heads, of which grouped attention has fewer.
    """

    num_layers: int
    num_heads: int
    head_dim: int


class KeysValues(NamedTuple):
    """Row at the attention site: what a text's own keys and values are preceded by.

    keys, values [layers, heads, prefix, head_dim].
    """

    keys: Tensor
    values: Tensor


class Segment(NamedTuple, Generic[Row]):
    """Rows `start` to `stop` of a batch belong to one adapter, which has `row` at this site."""

    start: int
    stop: int
    row: Row


class Method(ABC, Generic[Row]):
    """One PEFT method: its options, tensors, training set-up and its share of the forward pass."""

    name: ClassVar[str]
    peft_type: ClassVar[str]
    at_attention: ClassVar[bool] = False
    """Whether the method acts at the attention site, not at linear layers; its row there is a `KeysValues`."""
    peft_module: ClassVar[str | None] = None
    """Module to import before peft knows this method, where peft does not bring it."""
    learning_rate: ClassVar[float]
    """Default for training; where it comes from stands in `docs/log.md`."""
    head_learning_rate: ClassVar[float] = 1e-2
    """The same for the head, which begins at random."""
    weight_decay: ClassVar[float] = 0.01
    options: ClassVar[Mapping[str, tuple[float, float, float]]] = {}
    """Training options: name -> (default, lowest, highest)."""
    roles: ClassVar[tuple[str, ...]]
    """The tensors an adapter has at each of its sites: what follows the site's name in the file."""
    known_fields: ClassVar[frozenset[str]]
    """Fields of `adapter_config.json` that this method reads, or that only matter in training."""

    def check_config(self, config: Mapping[str, object]) -> None:
        """Refuse every option that would change the result and is not implemented here.

        Fields that are absent, null, false or empty are off. Raises MethodUnsupported naming the field.
        """
        for name, value in config.items():
            if name in COMMON_FIELDS or name in self.known_fields or value in (None, False, "", [], {}):
                continue
            raise MethodUnsupported(f"`{name}: {value!r}` in adapter_config.json is not supported for {self.name}")

    def check_family(self, family: Family) -> None:
        """Refuse an architecture that cannot run this method. Raises MethodUnsupported."""
        if self.at_attention and not family.takes_prefix:
            raise MethodUnsupported(
                f"method {self.name} puts keys and values in front of a text's own, which the library's {family.name} "
                "does not take; take another method or another base"
            )

    @abstractmethod
    def shape(
        self, config: Mapping[str, object], site: Site, role: str, stored: tuple[int, ...] | None
    ) -> tuple[int, ...]:
        """The shape that the tensor `role` must have at a site.

        stored: the shape it has in a file, where a configuration allows several; None asks for what training makes.
        """

    def num_parameters(self, config: Mapping[str, object], sites: Mapping[str, Site]) -> int:
        """Weights that training an adapter of this configuration makes on a base with these sites, without its head."""
        chosen = [
            site
            for name, site in sites.items()
            if (name == ATTENTION) is self.at_attention and (self.at_attention or _leaves_out(config, name) is None)
        ]
        return sum(prod(self.shape(config, site, role, None)) for site in chosen for role in self.roles)

    @abstractmethod
    def bind(self, config: Mapping[str, object], site: Site, tensors: Mapping[str, Tensor]) -> Row:
        """Make the row of one site: views of its tensors by role, and numbers. The tensors stay as they are."""

    def changes_input(self, row: Row) -> bool:
        """Whether an adapter's row changes what goes into its site."""
        return False

    def change_input(self, x: Tensor, segments: Sequence[Segment[Row]], products: Products) -> None:
        """Change what goes into a site, in place. x [tokens, d_in]; only segments whose row does so are given."""

    def apply(self, x: Tensor, y: Tensor, segments: Sequence[Segment[Row]], products: Products) -> None:
        """Change what comes out of a site, in place.

        x [tokens, d_in], y [tokens, d_out]; segments are sorted and do not overlap.
        """

    def operation(self, row: Row) -> Operation | None:
        """What `change_input` and `apply` do with a row; None where that is no operation of `server.products`."""
        return None

    def num_virtual_tokens(self, options: Mapping[str, float]) -> int:
        """Places of the base's length that training options take from a text."""
        return 0

    @abstractmethod
    def peft_config(self, family: Family, options: Mapping[str, float]) -> PeftConfig:
        """The PEFT configuration that trains this method on a base of `family`. Imports peft."""


def widened(row: Row) -> Row:
    """A row whose tensors are float32, for adapters that are stored in half precision."""
    if is_dataclass(row) and not isinstance(row, type):
        parts = {part.name: getattr(row, part.name) for part in fields(row)}
        return replace(row, **{name: part.float() for name, part in parts.items() if isinstance(part, Tensor)})
    assert isinstance(row, tuple), "rows are named tuples or data classes"
    result: Row = type(row)(*(part.float() if isinstance(part, Tensor) else part for part in row))
    return result


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
"""Fields of every PEFT configuration: read elsewhere, or without effect on a loaded adapter."""


def check_target(config: Mapping[str, object], site: str) -> None:
    """Refuse weights at a site that the configuration does not target: plain peft would leave them out."""
    field = _leaves_out(config, site)
    if field is not None:
        raise AdapterDamaged(f"the file has weights for `{site}`, which `{field}` in adapter_config.json leaves out")


def is_named(config: Mapping[str, object], field: str, site: str) -> bool:
    """Whether a field names a site as peft reads it: a regular expression, or a list of names or their ends."""
    value = config[field]
    if isinstance(value, str):
        return matches(value, site, field, whole=True)
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return any(site == name or site.endswith(f".{name}") for name in value)
    raise AdapterDamaged(f"`{field}` in adapter_config.json is {value!r}, it must be a string or a list of them")


def matches(pattern: str, name: str, field: str, whole: bool) -> bool:
    """Whether a regular expression of a configuration matches a site's name: all of it, or its end as peft does it.

    Expressions come from folders that nobody has vouched for: one that is wrong or takes too long is refused.
    """
    expression = pattern if whole else rf"(.*\.)?({pattern})"
    try:
        return regex.fullmatch(expression, name, timeout=PATTERN_LIMIT_S) is not None
    except (regex.error, RecursionError, OverflowError) as error:
        raise AdapterDamaged(f"`{field}` has {pattern!r}, which is no regular expression: {error}") from error
    except TimeoutError as error:
        raise AdapterDamaged(
            f"`{field}` has {pattern!r}, which takes more than {PATTERN_LIMIT_S} s to match"
        ) from error


def _leaves_out(config: Mapping[str, object], site: str) -> str | None:
    """The field of a configuration by which it does not target a site; None where it does."""
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    if targets not in (None, "all-linear") and not is_named(config, "target_modules", site):
        return "target_modules"
    if config.get("exclude_modules") is not None and is_named(config, "exclude_modules", site):
        return "exclude_modules"
    if layers not in (None, []):
        wanted = layers if isinstance(layers, list) else [layers]
        number = next((int(part) for part in site.split(".") if part.isdecimal()), None)
        if number not in wanted:
            return "layers_to_transform"
    return None
