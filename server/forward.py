"""One pass of the frozen base over a batch in which every text may use another adapter and method.

All texts lie behind one another on one token axis, each adapter's together, so that an adapter sees one segment of it
(`server.segments`), and texts of one length together wherever that allows (`server.attention`).
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from server import attention, base_model, device_code, heads, kernels
from server.attention import Attend, Packing, attend
from server.base_model import BaseModel
from server.graphs import Graphs, Runner
from server.grouped import GroupedSegments, upload
from server.grouped_heads import GroupedHeads
from server.heads import Share
from server.jobs import Job
from server.kernels import Kernels
from server.library_encoder import LibraryEncoder, act_at
from server.loaded_adapter import LoadedAdapter
from server.methods.base import ATTENTION
from server.packed_encoder import PackedEncoder
from server.products import TorchProducts
from server.recorder import CudaRecorder, Recorder
from server.segments import Segments, join
from server.varlen_attention import VarlenAttention

Work = tuple[Job, LoadedAdapter]
EncoderName = Literal["auto", "packed", "library"]


class Encoder(Protocol):
    """Whatever runs the layers of the base model."""

    def run(self, inputs: Mapping[str, Tensor], packing: Packing) -> Tensor:
        """inputs [1, tokens] by their name in the model; returns the last layer's output [read rows, hidden]."""


class Forward:
    """Runs batches on one base model. Owned by the engine thread; not safe to share.

    base must have been loaded with `load_base`, and belongs to one Forward only.
    """

    def __init__(
        self,
        base: BaseModel,
        encoder: EncoderName = "auto",
        keeps_weights: bool = True,
        uses_kernels: bool = True,
        uses_graphs: bool = True,
        segments: GroupedSegments | None = None,
        attention: VarlenAttention | None = None,
        recorder: Recorder | None = None,
        grouped_heads: GroupedHeads | None = None,
    ) -> None:
        """keeps_weights: whether the base's own weights stay beside copies of them that multiply faster.

        uses_kernels: whether compiled code runs where it can be had (`server.kernels`, `server.device_code`).
        uses_graphs: whether small passes are recorded where they can be (`server.graphs`).
        segments, attention, recorder, grouped_heads: what runs instead of what suits the device.
        """
        self._base = base
        compiled = kernels.load() if uses_kernels and base.device.type == "cpu" else None
        if uses_kernels and base.device.type == "cuda":
            segments = segments or device_code.grouped_segments(base)
            attention = attention or device_code.varlen_attention(base)
            recorder = recorder or CudaRecorder(base.device)
            grouped_heads = grouped_heads or device_code.grouped_heads(base)
        self._segments: Segments = segments or Segments(compiled or TorchProducts())
        self._logits = heads.logits if grouped_heads is None else grouped_heads.logits
        attending = attend if attention is None else attention.attend
        self._encoder = self._make_encoder(encoder, keeps_weights, compiled, attending)
        self.graphs: Graphs | None = None
        if uses_graphs and recorder and segments and attention:
            self.graphs = Graphs(base, Runner(self._encoder.run, segments, attention), recorder)

    @torch.inference_mode()
    def run(self, work: Sequence[Work]) -> list[Tensor]:
        """Logits of every job, in the order given: float32 on the CPU, one entry per label.

        An adapter's answer does not depend on what else is in the batch.
        """
        order = _sorted(work)
        batch = [work[i] for i in order]
        logits = self._run_sorted(batch)
        answers: list[Tensor] = [logits[0]] * len(work)
        for position, i in enumerate(order):
            answers[i] = logits[position]
        return answers

    def free_memory(self) -> None:
        """Give back what earlier passes left behind, so that a smaller batch finds room."""
        gc.collect()
        if self._base.device.type == "cuda":
            torch.cuda.empty_cache()

    def _make_encoder(
        self, name: EncoderName, keeps_weights: bool, compiled: Kernels | None, attending: Attend
    ) -> Encoder:
        names = self._base.post_norm_layer
        if name == "library" or names is None:
            return LibraryEncoder(self._base, self._segments, attending)
        pooled = {site: layer for site, layer in self._base.layers.items() if self._base.is_pool_site(site)}
        act_at(self._segments, pooled)
        return PackedEncoder(self._base, names, self._segments, keeps_weights, compiled, attending)

    def _run_sorted(self, batch: list[Work]) -> list[Tensor]:
        adapters = [adapter for _, adapter in batch]
        packing = self._pack(batch)
        try:
            inputs, launch = self._inputs(batch), partial(self._launch, adapters, packing)
            if self.graphs is None:
                rows = launch(inputs)  # [read rows, hidden]
            else:
                rows = self.graphs.run(inputs, adapters, packing, partial(launch, inputs))
            pooled = self._pool(rows, batch, packing.read_starts)  # [texts, hidden]
        finally:
            self._segments.end()
        spans = join(adapters, range(len(batch) + 1))
        logits = self._logits(pooled, [Share(start, stop, adapter.head) for start, stop, adapter in spans])
        fetched = logits.cpu()  # one copy: the host waits for the device once
        return list(torch.split(fetched, [adapter.head.num_labels for adapter in adapters]))

    def _launch(
        self, adapters: Sequence[LoadedAdapter], packing: Packing, inputs: Mapping[str, Sequence[int]]
    ) -> Tensor:
        """The layers of the base, launched one by one."""
        self._segments.begin(adapters, packing.starts)
        device = self._base.device
        return self._encoder.run({name: upload(values, device)[None] for name, values in inputs.items()}, packing)

    def _pack(self, batch: list[Work]) -> Packing:
        return Packing(
            lengths=[job.num_tokens for job, _ in batch],
            prefixes=[adapter.row(ATTENTION) for _, adapter in batch],
            reads=[self._read(job, adapter) for job, adapter in batch],
            device=self._base.device,
        )

    def _read(self, job: Job, adapter: LoadedAdapter) -> int | None:
        """The position of the one token that the head reads; None where it reads all."""
        if adapter.pooling == "mean":
            return None
        if adapter.pooling == "native":
            return self._base.family.native_position(job.token_ids, self._base.pad_id)
        return 0 if adapter.pooling == "cls" else job.num_tokens - 1

    def _inputs(self, batch: list[Work]) -> dict[str, list[int]]:
        """What the model takes, by its name there: one number a token."""
        family, pad_id = self._base.family, self._base.pad_id
        inputs = {
            "input_ids": [token for job, _ in batch for token in job.token_ids],
            "position_ids": [
                position
                for job, adapter in batch
                for position in family.positions(job.token_ids, pad_id, adapter.position_offset)
            ],
        }
        if self._base.uses_type_ids:
            inputs["token_type_ids"] = [kind for job, _ in batch for kind in job.type_ids]
        return inputs

    def _pool(self, rows: Tensor, batch: list[Work], starts: tuple[int, ...]) -> Tensor:
        """One row per text, each pooled as its adapter was trained; float32.

        Text i covers rows starts[i] to starts[i + 1].
        """
        lengths = upload([stop - start for start, stop in pairwise(starts)], rows.device)
        # unsafe: lengths are not checked on the device, for which the host would wait
        pooled = torch.segment_reduce(rows.float(), "mean", lengths=lengths, unsafe=True)  # of one row: itself
        native = [i for i, (_, adapter) in enumerate(batch) if adapter.pooling == "native"]
        if native:
            # adapters may act at the base's own pooling layer too: now one row is one text
            self._segments.begin([batch[i][1] for i in native], range(len(native) + 1))
            own = rows[[starts[i] for i in native]]
            pooled[native] = self._base.family.native_pool(own, self._base.pool).float()
        return pooled


def _sorted(work: Sequence[Work]) -> list[int]:
    """Indices so that an adapter's texts are neighbours, and texts of one length too wherever that allows."""
    longest: dict[str, int] = {}
    for job, adapter in work:
        longest[adapter.key] = max(job.num_tokens, longest.get(adapter.key, 0))

    def place(index: int) -> tuple[bool, int, str, int]:
        job, adapter = work[index]
        return ATTENTION in adapter.rows, longest[adapter.key], adapter.key, job.num_tokens

    return sorted(range(len(work)), key=place)


def load_base(spec: str, device: str = "auto", dtype: str = "auto") -> BaseModel:
    """Load a base model for `Forward`."""
    return base_model.load(spec, device, dtype, attention=attention.NAME)
