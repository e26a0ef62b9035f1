"""The layers of a post-norm encoder (BERT and its kin) over packed tokens, from the same frozen weights.

The library's code (`server.library_encoder`) computes the same and is the oracle of the tests. This one multiplies
query, key and value in one product with reordered weights, and runs the last layer only for the rows that are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from server.attention import Attend, Heads, Packing
from server.base_model import BaseModel
from server.families.base import PostNormLayer
from server.frozen_linear import FrozenLinear, release, round_up
from server.kernels import Kernels
from server.segments import Segments

IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {"gelu": torch.ops.aten.gelu_, "relu": torch.relu_}
"""Activations that need no memory of their own; fresh memory costs as much as the activation itself (docs/log.md)."""


class PackedEncoder:
    """Runs a base model whose family has a `post_norm_layer`. Owned by the engine thread."""

    def __init__(
        self,
        base: BaseModel,
        names: PostNormLayer,
        segments: Segments,
        keeps_weights: bool,
        compiled: Kernels | None,
        attend: Attend,
    ) -> None:
        config: Any = base.backbone.config
        count, width = config.num_attention_heads, config.hidden_size
        self._heads = Heads(count, count, width // count)
        self._scale = self._heads.head_dim**-0.5
        name = getattr(config, "hidden_act", None) or config.activation
        self._activation: Callable[[Tensor], Tensor] = IN_PLACE.get(name) or ACT2FN[name]
        self._attend = compiled.attend if compiled is not None and compiled.can_attend(self._heads) else attend
        self._embed, self._segments = base.backbone.embeddings, segments
        last = config.num_hidden_layers - 1
        self._layers = [_make_layer(base, names, index, index == last) for index in range(last + 1)]
        self._num_rows = round_up if self._layers[0].up.is_reordered else int
        if not keeps_weights:
            for site in {site for layer in self._layers for site in layer.linear_sites}:
                release(base.layers[site])

    def run(self, inputs: Mapping[str, Tensor], packing: Packing) -> Tensor:
        """inputs [1, tokens] by their name in the model; returns the last layer's output [read rows, hidden]."""
        x: Tensor = self._embed(**inputs)[0]  # type: ignore[operator]  # nn.Module types its attributes widely
        x = nn.functional.pad(x, (0, 0, 0, self._num_rows(len(x)) - len(x)))  # by rows that belong to no text
        for index, layer in enumerate(self._layers):
            x = self._run_layer(layer, index, x, packing)
        return x[: packing.read_starts[-1]]

    def _run_layer(self, layer: _Layer, index: int, x: Tensor, packing: Packing) -> Tensor:
        *_, keys, values = outputs = self._project(layer.projection, layer.projected, x)  # [tokens, hidden] each
        reads_only = layer.query is not None and not packing.reads_all
        if layer.query is not None:
            if reads_only:
                rows = packing.read_rows
                x = x.index_select(0, nn.functional.pad(rows, (0, self._num_rows(len(rows)) - len(rows))))
                self._segments.move(packing.read_starts)  # x [read rows, hidden]
            outputs = self._project(layer.query, layer.queried, x)
        context = self._attend(packing, self._heads, index, self._scale, outputs[0], keys, values, reads_only)
        attended = self._change(layer.attention_output, layer.names.attention_output, context, is_shared=False)
        x = layer.attention_norm(attended.add_(x))
        inner = self._activation(self._change(layer.up, layer.names.up, x, is_shared=True))
        out = self._change(layer.down, layer.names.down, inner, is_shared=False)
        result: Tensor = layer.output_norm(out.add_(x))
        return result

    def _change(self, linear: FrozenLinear, site: str, x: Tensor, is_shared: bool) -> Tensor:
        """One product and what the adapters make of it."""
        x = self._segments.change_input(site, x, is_shared)
        y = linear(x)
        self._segments.change_output(site, x, y)
        return y

    def _project(self, linear: FrozenLinear, sites: tuple[str, ...], x: Tensor) -> list[Tensor]:
        """The same where several sites share one product."""
        outputs = list(linear(x).chunk(len(sites), 1))
        for number, site in enumerate(sites):
            changed = self._segments.change_input(site, x, is_shared=True)
            if changed is not x:  # rare: IA3 on the input of a projection
                outputs[number] = linear(changed).chunk(len(sites), 1)[number]
            self._segments.change_output(site, changed, outputs[number])
        return outputs


class _Layer(NamedTuple):
    """The products of one layer. The last has its query by itself, since it may run for fewer rows.

    names: the sites by their part in the layer. projected, queried: the sites of these two products.
    """

    names: PostNormLayer
    projected: tuple[str, ...]
    projection: FrozenLinear
    queried: tuple[str, ...]
    query: FrozenLinear | None
    attention_output: FrozenLinear
    attention_norm: nn.Module
    up: FrozenLinear
    down: FrozenLinear
    output_norm: nn.Module

    @property
    def linear_sites(self) -> tuple[str, ...]:
        return *self.projected, *self.queried, self.names.attention_output, self.names.up, self.names.down


def _make_layer(base: BaseModel, names: PostNormLayer, index: int, is_last: bool) -> _Layer:
    inner = PostNormLayer(*(name.format(index) for name in names))
    sites = PostNormLayer(*(f"{base.family.prefix}.{name}" for name in inner))
    projected = (sites.key, sites.value) if is_last else (sites.query, sites.key, sites.value)

    # on the CPU only the products are in half precision: the rest is as fast, or faster, in float32 (docs/log.md)
    kept = torch.float32 if base.device.type == "cpu" else base.dtype

    def product(*chosen: str, out_dtype: torch.dtype = kept) -> FrozenLinear:
        return FrozenLinear([base.layers[site] for site in chosen], base.dtype, out_dtype)

    return _Layer(
        names=sites,
        projected=projected,
        projection=product(*projected),
        queried=(sites.query,) if is_last else (),
        query=product(sites.query) if is_last else None,
        attention_output=product(sites.attention_output),
        attention_norm=base.backbone.get_submodule(inner.attention_norm),
        up=product(sites.up, out_dtype=base.dtype),  # the widest; the next product would round it anyway
        down=product(sites.down),
        output_norm=base.backbone.get_submodule(inner.output_norm),
    )
