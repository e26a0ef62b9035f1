"""What a CUDA graph does, without a GPU: operations are written down once, and done again at the same places."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

os.environ["TRITON_INTERPRET"] = "1"  # read where the kernels are defined

from server import triton_kernels
from server.base_model import BaseModel
from server.forward import Forward
from server.grouped import GroupedSegments
from server.grouped_heads import GroupedHeads
from server.recorder import Recorder
from server.varlen_attention import VarlenAttention

HOST = ("item", "is_nonzero", "_local_scalar_dense", "resolve_conj", "nonzero", "lift_fresh")
"""What reads the device's memory, or brings numbers there, in the midst of a pass: it cannot be recorded."""


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation, with the tensors themselves and with what is a number by then."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[tuple[Any, Sequence[Any], Mapping[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, kinds: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__ in HOST:
            raise RuntimeError(f"{func} cannot be recorded")
        result = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, result))
        return result

    def play(self) -> None:
        """Do it all again; what was new memory then is the same memory now."""
        for func, args, kwargs, result in self.steps:
            for before, now in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(before, Tensor) and before.data_ptr() != now.data_ptr():
                    before.copy_(now)


class TapeRecorder:
    """`server.recorder.Recorder`. num_recorded, num_replayed: passes."""

    bytes_each = 1000

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = self._held_bytes = 0

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.num_recorded += 1
        run()
        with Tape() as tape:
            result = run()
        self._held_bytes += self.bytes_each

        def replay() -> Tensor:
            self.num_replayed += 1
            tape.play()
            return result

        return replay

    def held_bytes(self) -> int:
        return self._held_bytes

    def forget(self) -> None:
        self._held_bytes = 0


@torch.library.custom_op("adaptermux_tests::add_low_rank", mutates_args={"y"})
def _add_low_rank(
    x: Tensor, y: Tensor, tiles: Tensor, addresses: Tensor, site: int, rows: int, rank: int, dtype: torch.dtype
) -> None:
    triton_kernels.add_low_rank(x, y, tiles, addresses, site, rows, rank, dtype)


@torch.library.custom_op("adaptermux_tests::change", mutates_args={"x"})
def _change(
    x: Tensor, tiles: Tensor, addresses: Tensor, site: int, rows: int, dtype: torch.dtype, on_input: bool
) -> None:
    triton_kernels.change(x, tiles, addresses, site, rows, dtype, on_input)


@torch.library.custom_op("adaptermux_tests::put_in_front", mutates_args=())
def _put_in_front(keys: Tensor, values: Tensor, sources: Tensor, prefixes: Tensor, layer: int, head_dim: int) -> Tensor:
    return torch.stack(triton_kernels.put_in_front(keys, values, sources, prefixes, layer, head_dim))


@torch.library.custom_op("adaptermux_tests::flash", mutates_args=())
def _flash(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    longest_query: int,
    longest_key: int,
    scale: float,
    left: int,
    right: int,
) -> Tensor:
    assert query_starts.dtype == key_starts.dtype == torch.int32
    assert longest_query >= int(query_starts.diff().max())
    assert longest_key >= int(key_starts.diff().max())
    found = []
    for text in range(len(query_starts) - 1):
        q = queries[query_starts[text] : query_starts[text + 1]].transpose(0, 1)  # [heads, rows, head_dim]
        k, v = (part[key_starts[text] : key_starts[text + 1]].transpose(0, 1) for part in (keys, values))
        distance = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1] - torch.arange(k.shape[1])
        before, behind = (reach if reach >= 0 else longest_key for reach in (left, right))
        mask = (distance <= before) & (distance >= -behind)
        found.append(
            scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True).transpose(0, 1)
        )
    return torch.cat(found)


def flash(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    longest_query: int,
    longest_key: int,
    scale: float,
    window: tuple[int, int],
) -> Tensor:
    """What flash attention promises, a text at a time; one operation."""
    found: Tensor = _flash(queries, keys, values, query_starts, key_starts, longest_query, longest_key, scale, *window)
    return found


def put_in_front(
    keys: Tensor, values: Tensor, sources: Tensor, prefixes: Tensor, layer: int, head_dim: int
) -> tuple[Tensor, Tensor]:
    moved = _put_in_front(keys, values, sources, prefixes, layer, head_dim)
    return moved[0], moved[1]


KERNELS = types.SimpleNamespace(add_low_rank=_add_low_rank, change=_change)
"""Triton's kernels, each launch as one operation."""


def recording(base: BaseModel, uses_graphs: bool = True, recorder: Recorder | None = None) -> Forward:
    """A forward pass with all that runs on a GPU."""
    return Forward(
        base,
        uses_kernels=False,
        uses_graphs=uses_graphs,
        segments=GroupedSegments(KERNELS, base.layers, base.device),
        attention=VarlenAttention(flash, put_in_front),
        recorder=recorder or TapeRecorder(),
        grouped_heads=GroupedHeads(triton_kernels),
    )
