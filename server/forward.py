"""One pass of the frozen base over a batch in which every text may use another adapter and method.

All texts lie behind one another on one token axis, sorted by method and adapter, so that each method
sees one contiguous slice and each adapter one segment of it. The library's model code is kept as it
is: attention is ours (`server.attention`), and hooks on the linear sites let the methods act.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, cast

import torch
from torch import Tensor, nn

from server import attention, base_model
from server.attention import Packing
from server.base_model import BaseModel
from server.jobs import Job
from server.methods import Method
from server.methods.base import ATTENTION, KeysValues, Segment
from server.store import LoadedAdapter

Work = tuple[Job, LoadedAdapter]


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `start` to `stop` of an axis (tokens, or texts) belong to one adapter."""

    start: int
    stop: int
    adapter: LoadedAdapter


class Forward:
    """Runs batches on one base model. Owned by the engine thread; not safe to share.

    base must have been loaded with `attention=server.attention.NAME`.
    """

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._spans: list[Span] = []
        for name, layer in base.layers.items():
            layer.register_forward_pre_hook(_Before(self, name))
            layer.register_forward_hook(_After(self, name))

    @torch.inference_mode()
    def run(self, work: Sequence[Work]) -> list[Tensor]:
        """Logits of every job, in the order given: float32 on the CPU, one entry per label.

        An adapter's answer does not depend on what else is in the batch.
        """
        order = sorted(range(len(work)), key=lambda i: (work[i][1].method.name, work[i][1].key, work[i][0].num_tokens))
        batch = [work[i] for i in order]
        logits = self._run_sorted(batch)
        answers: list[Tensor] = [logits[0]] * len(work)
        for position, i in enumerate(order):
            answers[i] = logits[position]
        return answers

    def segments(self, site: str) -> Iterator[tuple[Method[Any], list[Segment[Any]]]]:
        """Which methods act at a site in the batch in flight, and on which rows."""
        for method, spans in groupby(self._spans, key=lambda span: span.adapter.method):
            found = [Segment(s.start, s.stop, s.adapter.rows[site]) for s in spans if site in s.adapter.rows]
            if found:
                yield method, found

    def _run_sorted(self, batch: list[Work]) -> list[Tensor]:
        adapters = [adapter for _, adapter in batch]
        starts = (0, *accumulate(job.num_tokens for job, _ in batch))
        try:
            self._spans = _spans(adapters, starts)
            hidden = self._encode(batch, starts)  # [tokens, hidden]
            pooled = self._pool(hidden, batch, starts)  # [texts, hidden]
        finally:
            self._spans = []
        logits: list[Tensor] = []
        for start, stop, adapter in ((s.start, s.stop, s.adapter) for s in _spans(adapters, range(len(batch) + 1))):
            scores = adapter.head.logits(pooled[start:stop])
            logits.extend(scores.cpu())  # [texts of this adapter, its labels]
        return logits

    def _encode(self, batch: list[Work], starts: tuple[int, ...]) -> Tensor:
        device = self._base.device
        ids = torch.tensor([[token for job, _ in batch for token in job.token_ids]], device=device)  # [1, tokens]
        family, pad_id = self._base.family, self._base.pad_id
        positions = [p for job, a in batch for p in family.positions(job.token_ids, pad_id, a.position_offset)]
        prefixes = tuple(cast("KeysValues | None", adapter.rows.get(ATTENTION)) for _, adapter in batch)
        extra: dict[str, bool | Tensor] = {"use_cache": False}
        if family.uses_type_ids:
            extra["token_type_ids"] = torch.tensor([[t for job, _ in batch for t in job.type_ids]], device=device)
        output = self._base.backbone(
            input_ids=ids,
            position_ids=torch.tensor([positions], device=device),
            packing=Packing(starts, prefixes),
            **extra,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _pool(self, hidden: Tensor, batch: list[Work], starts: tuple[int, ...]) -> Tensor:
        """One row per text, each pooled as its adapter was trained; float32."""
        pooled = torch.empty(len(batch), hidden.shape[1], device=hidden.device)
        for pooling in {adapter.pooling for _, adapter in batch}:
            rows = [row for row, (_, adapter) in enumerate(batch) if adapter.pooling == pooling]
            if pooling == "mean":
                for row in rows:
                    pooled[row] = hidden[starts[row] : starts[row + 1]].float().mean(0)
            elif pooling == "cls":
                pooled[rows] = hidden[[starts[row] for row in rows]].float()
            elif pooling == "last":
                pooled[rows] = hidden[[starts[row + 1] - 1 for row in rows]].float()
            else:
                pooled[rows] = self._native_pool(hidden, [batch[row] for row in rows], [starts[row] for row in rows])
        return pooled

    def _native_pool(self, hidden: Tensor, batch: list[Work], starts: list[int]) -> Tensor:
        """Pool with the base model's own layer, at which adapters may act too: now one row is one text."""
        family, base = self._base.family, self._base
        read = [
            start + family.native_position(job.token_ids, base.pad_id)
            for start, (job, _) in zip(starts, batch, strict=True)
        ]
        self._spans = _spans([adapter for _, adapter in batch], range(len(batch) + 1))
        return family.native_pool(hidden[read], base.pool).float()


def _spans(adapters: Sequence[LoadedAdapter], starts: Sequence[int]) -> list[Span]:
    """Join neighbours that use the same adapter; text i covers starts[i] to starts[i + 1]."""
    spans = []
    for _, group in groupby(range(len(adapters)), key=lambda i: adapters[i].key):
        rows = list(group)
        spans.append(Span(starts[rows[0]], starts[rows[-1] + 1], adapters[rows[0]]))
    return spans


class _Before:
    """Hook in front of a linear site: methods may scale its input."""

    def __init__(self, forward: Forward, site: str) -> None:
        self.forward, self.site = forward, site

    def __call__(self, layer: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        x = args[0].reshape(-1, args[0].shape[-1])  # [rows, d_in]
        for method, segments in self.forward.segments(self.site):
            x = method.scale_input(x, segments)
        return (x.view(args[0].shape),)


class _After:
    """Hook behind a linear site: methods change its output in place."""

    def __init__(self, forward: Forward, site: str) -> None:
        self.forward, self.site = forward, site

    def __call__(self, layer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        x, y = args[0].reshape(-1, args[0].shape[-1]), output.view(-1, output.shape[-1])  # [rows, d_in], [rows, d_out]
        for method, segments in self.forward.segments(self.site):
            method.apply(x, y, segments)


def load_base(spec: str, device: str = "auto", dtype: str = "auto") -> BaseModel:
    """Load a base model for `Forward`."""
    return base_model.load(spec, device, dtype, attention=attention.NAME)
