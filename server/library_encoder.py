"""The library's own model code over packed tokens: attention is ours, hooks on the linear sites let the methods act."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from server.attention import Attend, Packing
from server.base_model import BaseModel
from server.segments import Segments


class LibraryEncoder:
    """Runs any base model that was loaded with `attention=server.attention.NAME`. Owned by the engine thread."""

    def __init__(self, base: BaseModel, segments: Segments, attend: Attend) -> None:
        self._backbone, self._attend = base.backbone, attend
        act_at(segments, base.layers)

    def run(self, inputs: Mapping[str, Tensor], packing: Packing) -> Tensor:
        """inputs [1, tokens] by their name in the model; returns the last layer's output [read rows, hidden]."""
        output = self._backbone(**inputs, packing=packing, attending=self._attend, use_cache=False)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden if packing.reads_all else hidden.index_select(0, packing.read_rows)


def act_at(segments: Segments, layers: Mapping[str, nn.Linear]) -> None:
    """Let the methods act at these linear layers, whoever calls them."""
    for site, layer in layers.items():
        layer.register_forward_pre_hook(_Before(segments, site))
        layer.register_forward_hook(_After(segments, site))


class _Before:
    def __init__(self, segments: Segments, site: str) -> None:
        self.segments, self.site = segments, site

    def __call__(self, layer: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        x = args[0].reshape(-1, args[0].shape[-1])  # [rows, d_in]
        return (self.segments.change_input(self.site, x, is_shared=True).view(args[0].shape),)


class _After:
    def __init__(self, segments: Segments, site: str) -> None:
        self.segments, self.site = segments, site

    def __call__(self, layer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        x, y = args[0].reshape(-1, args[0].shape[-1]), output.view(-1, output.shape[-1])  # [rows, d_in], [rows, d_out]
        self.segments.change_output(self.site, x, y)
