"""Passes of few tokens, recorded once and run again in one call: there the device waits for the host otherwise.

A recorded pass has room for so many tokens, texts and adapters. Which there are is data: adapters come and go without
another recording. Only an adapter that acts in a new way (another rank, format or site than any before it) needs one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from server import logs
from server.attention import Packing
from server.base_model import BaseModel
from server.fixed_batch import FixedBatch, Shape, Sites
from server.grouped import Draft, Group, GroupedSegments, Rows, draft, upload
from server.loaded_adapter import LoadedAdapter
from server.methods.base import ATTENTION, AttentionSite
from server.recorder import Recorder
from server.segments import join
from server.varlen_attention import VarlenAttention, are_known

FEWEST_TOKENS, MOST_TOKENS = 64, 2048
OPERATIONS_A_LAYER = 5e10
"""What a card multiplies while the host launches one layer: 20 launches of 8 us at 3e14 a second. A batch that needs
more does not wait for the host, and would wait for what a recorded pass has too much (docs/log.md)."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
"""The most that a text of a recorded pass may differ from the same one as it was launched, as a part of its largest
number: other numbers of rows are multiplied in another order."""
CLEAR = 8
"""Times the rounding that adapters must change a text for the change to be told from it."""


class Runner(NamedTuple):
    """What runs the layers of the base model, for graphs: `server.forward.Encoder` and what acts within it."""

    run: Callable[[Mapping[str, Tensor], Packing], Tensor]
    segments: GroupedSegments
    attention: VarlenAttention


class Recorded(NamedTuple):
    """A recorded pass over a batch. replay: returns the last layer's output [tokens of the shape, hidden]."""

    batch: FixedBatch
    replay: Callable[[], Tensor]


class Sizes(NamedTuple):
    """How large each text's rows are: their largest number, and the root of the sum of squares; [texts] each."""

    largest: Tensor
    norm: Tensor


class Graphs:
    """The recorded passes of a base model. Owned by the engine thread.

    Each is recorded when the first batch of its size comes, and judged by it: where its result differs from what was
    launched, or memory is short, or anything raises, there are no graphs from then on, and the log says why.
    """

    def __init__(self, base: BaseModel, runner: Runner, recorder: Recorder, most_tokens: int | None = None) -> None:
        """most_tokens: None chooses by the base model's shape."""
        self._device, self._dtype = base.device, base.dtype
        self._runner, self._recorder = runner, recorder
        self._has_prefixes = base.family.takes_prefix and runner.attention.moves_prefixes
        most = bound(base) if most_tokens is None else most_tokens
        counts = [FEWEST_TOKENS << step for step in range(32) if FEWEST_TOKENS << step <= most]
        self._shapes = [Shape(count, min(count, base.max_length)) for count in counts]
        self._slots: dict[Group, Sites] = {}
        self._recorded: dict[Shape, Recorded] = {}
        self._most_bytes: int | None = None
        self._is_full = False
        self.num_recorded = 0

    @property
    def token_counts(self) -> list[int]:
        """Of the passes that are recorded, smallest first."""
        return [shape.num_tokens for shape in self._shapes]

    def held_bytes(self) -> int:
        """What they keep of the device's memory."""
        return self._recorder.held_bytes()

    def keep_within(self, num_bytes: int) -> None:
        """Record no more once recorded passes keep so much."""
        self._most_bytes = num_bytes

    def run(
        self,
        inputs: Mapping[str, Sequence[int]],
        adapters: Sequence[LoadedAdapter],
        packing: Packing,
        launch: Callable[[], Tensor],
    ) -> Tensor:
        """The last layer's output [read rows, hidden], from a recorded pass where there is one for this batch.

        It is to be read before the next pass. launch: runs the same batch without.
        """
        shape = next((shape for shape in self._shapes if shape.holds(packing)), None)
        spans = self._spans(adapters, packing) if shape is not None else None
        if shape is None or spans is None:
            return launch()
        drafts, recorded = draft(spans), self._recorded.get(shape)
        if recorded is not None and recorded.batch.takes(drafts):
            rows = None if packing.reads_all else packing.read_rows  # before the pass: it waits for the device
            recorded.batch.write(inputs, packing, spans)
            return _read(recorded.replay(), packing, rows)
        result = launch()
        if self._has_room() and bool(result.isfinite().all()):  # else it says nothing about a recording
            self._widen(drafts)
            self._record(shape, inputs, packing, spans, result)
        return result

    def give_up(self, reason: str) -> None:
        """No graphs from now on."""
        self._shapes, self._recorded = [], {}
        self._recorder.forget()
        logs.event("kernels_absent", part="CUDA graphs", reason=reason)

    def _has_room(self) -> bool:
        """Whether one more may be recorded; the log says once that batches are launched for want of it."""
        has_room = self._most_bytes is None or self.held_bytes() < self._most_bytes
        if not has_room and not self._is_full:
            self._is_full = True
            logs.event("graphs_full", held_bytes=self.held_bytes(), most_bytes=self._most_bytes)
        return has_room

    def _spans(self, adapters: Sequence[LoadedAdapter], packing: Packing) -> list[Rows] | None:
        """Whose rows are whose; None where the batch holds what no recorded pass can do."""
        if any(packing.prefixes) and not (self._has_prefixes and are_known(packing)):
            return None
        spans = []
        for start, stop, adapter in join(adapters, packing.starts):
            table = self._runner.segments.table(adapter)
            if table is None:
                return None
            if table.inputs or table.outputs:
                spans.append((start, stop, table))
        return spans

    def _widen(self, drafts: Sequence[Draft]) -> None:
        """Let passes that are recorded from now on do this too."""
        for one in drafts:
            known = self._slots.get(one.group, Sites(frozenset(), frozenset()))
            self._slots[one.group] = Sites(known.inputs | one.inputs, known.outputs | one.outputs)

    def _record(
        self,
        shape: Shape,
        inputs: Mapping[str, Sequence[int]],
        packing: Packing,
        spans: Sequence[Rows],
        expected: Tensor,
    ) -> None:
        began, self.num_recorded = time.monotonic(), self.num_recorded + 1
        segments = self._runner.segments
        try:
            batch = FixedBatch(shape, list(inputs), self._slots, segments.kernels, segments.num_sites, self._device)
            batch.write(inputs, packing, spans)
            recorded = Recorded(batch, self._recorder.record(lambda: self._pass(batch)))
            self._judge(recorded, inputs, packing, spans, expected)
        except Exception as error:  # drivers, compilers and libraries each raise their own; what is launched goes on
            self.give_up(f"{type(error).__name__}: {error}")
            return
        self._recorded[shape] = recorded
        seconds = round(time.monotonic() - began, 3)
        logs.event(
            "graph_recorded",
            num_tokens=shape.num_tokens,
            num_groups=len(self._slots),
            held_bytes=self.held_bytes(),
            seconds=seconds,
        )

    def _judge(
        self,
        recorded: Recorded,
        inputs: Mapping[str, Sequence[int]],
        packing: Packing,
        spans: Sequence[Rows],
        expected: Tensor,
    ) -> None:
        """Raise ArithmeticError where the pass does not do with its batch what was launched: `expected`, text by text.

        Adapters may change so little that they could be missing within the tolerance. So both passes run once more
        without adapters: how far these are apart is rounding, and what adapters change beyond `CLEAR` times that must
        be in the recorded pass too, to the half at least. Of what changes less nothing is seen.
        """
        rows = None if packing.reads_all else packing.read_rows
        found = _read(recorded.replay(), packing, rows).clone()  # the next one overwrites it
        apart, size = _by_text(found - expected, packing), _by_text(expected, packing)
        error = float((apart.largest / size.largest).max())
        if not error <= TOLERANCE[self._dtype]:
            raise ArithmeticError(f"a recorded pass differs by {error:.2g} from what was launched")
        if not spans and not any(packing.prefixes):
            return
        bare = Packing(packing.lengths, [None] * len(packing.lengths), [None] * len(packing.lengths), self._device)
        recorded.batch.write(inputs, bare, [])
        replayed = _read(recorded.replay(), packing, rows)
        given = {name: upload(values, self._device)[None] for name, values in inputs.items()}
        launched = _read(self._runner.run(given, bare), packing, rows)
        rounding = _by_text(replayed - launched, packing).norm.clamp(min=torch.finfo(self._dtype).eps * size.norm)
        change = _by_text(expected - launched, packing).norm
        if bool(((change > CLEAR * rounding) & (apart.norm > change / 2)).any()):
            raise ArithmeticError("adapters do not change a recorded pass as they change what is launched")

    def _pass(self, batch: FixedBatch) -> Tensor:
        self._runner.attention.use(batch.packing, batch.lines(self._has_prefixes))
        self._runner.segments.use(batch.batch)
        try:
            return self._runner.run(batch.inputs, batch.packing)
        finally:
            self._runner.segments.end()


def bound(base: BaseModel) -> int:
    """The most tokens of a pass that the device computes faster than the host launches it."""
    linears = [site for name, site in base.sites.items() if name != ATTENTION]
    weights = sum(site.in_features * site.out_features for site in linears)
    attention = base.sites[ATTENTION]
    assert isinstance(attention, AttentionSite), "the attention site tells of layers; this is a bug"
    return min(MOST_TOKENS, int(OPERATIONS_A_LAYER * attention.num_layers / (2 * weights)))


def _by_text(rows: Tensor, packing: Packing) -> Sizes:
    parts = torch.split(rows.float(), [stop - start for start, stop in pairwise(packing.read_starts)])
    return Sizes(torch.stack([part.abs().max() for part in parts]), torch.stack([part.norm() for part in parts]))


def _read(hidden: Tensor, packing: Packing, rows: Tensor | None) -> Tensor:
    """The rows that are read; rows None: of every token."""
    return hidden[: packing.starts[-1]] if rows is None else hidden.index_select(0, rows)
