"""What many adapters do at the sites of one pass on a GPU, as tables in its memory: no loop over them at any site.

Every adapter has one table of its own, made when it is first used. A pass uploads which rows are whose, once; at a
site, each group of adapters is one or two launches (`server.triton_kernels`), whatever its ranks and methods.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from server.loaded_adapter import LoadedAdapter
from server.methods.base import ATTENTION
from server.products import ACTIVATIONS, Operation, TorchProducts
from server.segments import Segments, Span

FIELDS = 8
"""Whole numbers of a table at one site, which are, for a low-rank update: rank, addresses of down, up, down_bias and
up_bias (0: none), activation, the bits of the scale. For a vector: its kind and its address. All 0: nothing acts."""
VECTOR_KINDS: Mapping[str, int] = {"scale": 1, "shift": 2, "scale_input": 3}
ACTIVATION_CODES: Mapping[str | None, int] = {None: 0, **{name: code for code, name in enumerate(ACTIVATIONS, 1)}}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MIN_RANK, MAX_RANK = 16, 128
"""Smaller ranks are multiplied as if they were 16; larger ones are torch's."""
FEW_ROWS, MANY_ROWS = 16, 64
"""Rows of one program, by how many an adapter has in the mean."""


class DeviceKernels(Protocol):
    """`server.triton_kernels`, which is imported where there is Triton only."""

    def add_low_rank(
        self,
        x: Tensor,
        y: Tensor,
        tiles: Tensor,
        addresses: Tensor,
        site: int,
        rows: int,
        rank: int,
        dtype: torch.dtype,
    ) -> None: ...

    def change(
        self, x: Tensor, tiles: Tensor, addresses: Tensor, site: int, rows: int, dtype: torch.dtype, on_input: bool
    ) -> None: ...


class Group(NamedTuple):
    """What adapters have in common that share a launch. rank: a power of two; 0 where they have vectors only."""

    reads_output: bool
    rank: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """One adapter's operations. numbers [sites, FIELDS]; inputs, outputs: the sites where it changes these."""

    group: Group
    numbers: Tensor
    inputs: frozenset[int]
    outputs: frozenset[int]


class Part(NamedTuple):
    """The rows of one group in a pass. tiles [tiles, 3], of at most `rows` rows each."""

    group: Group
    rows: int
    tiles: Tensor
    inputs: frozenset[int]
    outputs: frozenset[int]


class Draft(NamedTuple):
    """A `Part` before it is in the device's memory. tiles: three whole numbers each, one behind the other."""

    group: Group
    rows: int
    tiles: Sequence[int]
    inputs: frozenset[int]
    outputs: frozenset[int]


Rows = tuple[int, int, Table]
"""The first row of an adapter, the row behind its last, and its table."""


def draft(spans: Sequence[Rows], rows: int | None = None) -> list[Draft]:
    """What each group of adapters does in a pass; an adapter's place among the addresses is that among the spans.

    rows: of one program; None chooses by how many an adapter has.
    """
    groups: dict[Group, list[int]] = {}
    for number, (_, _, table) in enumerate(spans):
        groups.setdefault(table.group, []).append(number)
    drafts = []
    for group, members in groups.items():
        step = rows or _rows_of(group, [spans[number][:2] for number in members])
        tiles: list[int] = []
        for number in members:
            start, stop, _ = spans[number]
            for begin in range(start, stop, step):
                tiles += (number, begin, min(begin + step, stop))
        inputs = frozenset[int]().union(*(spans[number][2].inputs for number in members))
        outputs = frozenset[int]().union(*(spans[number][2].outputs for number in members))
        drafts.append(Draft(group, step, tiles, inputs, outputs))
    return drafts


def batch_of(kernels: DeviceKernels, spans: Sequence[Rows], device: torch.device) -> Batch:
    """A batch of these adapters, all of its numbers uploaded at once."""
    drafts = draft(spans)
    numbers = [table.numbers.data_ptr() for _, _, table in spans]
    for one in drafts:
        numbers += one.tiles
    sizes = [len(spans), *(len(one.tiles) for one in drafts)]
    addresses, *tiles = torch.split(upload(numbers, device), sizes)
    parts = [
        Part(one.group, one.rows, some.view(-1, 3), one.inputs, one.outputs)
        for one, some in zip(drafts, tiles, strict=True)
    ]
    return Batch(kernels, addresses, parts)


class Batch:
    """Which rows belong to which tables; changes what goes into a site and what comes out of it.

    addresses: of the tables, which somebody else keeps until the pass is over.
    """

    def __init__(self, kernels: DeviceKernels, addresses: Tensor, parts: Sequence[Part]) -> None:
        self._kernels, self._addresses, self._parts = kernels, addresses, parts

    def change_input(self, site: int, x: Tensor, is_shared: bool) -> Tensor:
        """x [rows, d_in]; changed in place unless others read it too."""
        for part in self._parts:
            if site in part.inputs:
                x, is_shared = x.clone() if is_shared else x, False
                self._change(part, site, x, on_input=True)
        return x

    def change_output(self, site: int, x: Tensor, y: Tensor) -> None:
        """x [rows, d_in], y [rows, d_out]; in place."""
        for part in self._parts:
            if site in part.outputs:
                reads_output, rank, dtype = part.group
                if rank:
                    source = y if reads_output else x
                    self._kernels.add_low_rank(source, y, part.tiles, self._addresses, site, part.rows, rank, dtype)
                else:
                    self._change(part, site, y, on_input=False)

    def _change(self, part: Part, site: int, x: Tensor, on_input: bool) -> None:
        self._kernels.change(x, part.tiles, self._addresses, site, part.rows, part.group.dtype, on_input)


class GroupedSegments(Segments):
    """Lets methods act as `Segments` does; what has no table is left to that. Owned by the engine thread."""

    def __init__(self, kernels: DeviceKernels, sites: Iterable[str], device: torch.device) -> None:
        super().__init__(TorchProducts())
        self.kernels, self._device = kernels, device
        self._numbers = {site: number for number, site in enumerate(sites)}
        self.num_sites = len(self._numbers)
        self._tables: Any = WeakIdKeyDictionary()  # by an adapter's first row, with which it goes
        self._batch: Batch | None = None

    def move(self, starts: Sequence[int]) -> None:
        super().move(starts)
        grouped = []
        for method, spans in self._spans.items():
            others: list[Span] = []
            for span in spans:
                table = self.table(span.adapter)
                if table is None:
                    others.append(span)
                elif table.inputs or table.outputs:
                    grouped.append((span.start, span.stop, table))
            self._spans[method] = others
        self._spans = {method: spans for method, spans in self._spans.items() if spans}
        self._batch = batch_of(self.kernels, grouped, self._device) if grouped else None

    def use(self, batch: Batch) -> None:
        """A pass in which this batch acts, and nothing else."""
        super().end()
        self._batch = batch

    def end(self) -> None:
        super().end()
        self._batch = None

    def change_input(self, site: str, x: Tensor, is_shared: bool) -> Tensor:
        if self._batch is not None:
            changed = self._batch.change_input(self._numbers[site], x, is_shared)
            x, is_shared = changed, is_shared and changed is x
        return super().change_input(site, x, is_shared)

    def change_output(self, site: str, x: Tensor, y: Tensor) -> None:
        if self._batch is not None:
            self._batch.change_output(self._numbers[site], x, y)
        super().change_output(site, x, y)

    def table(self, adapter: LoadedAdapter) -> Table | None:
        """An adapter's table; None where kernels cannot do all that it does."""
        first = next((row for site, row in adapter.rows.items() if site != ATTENTION), None)
        if first is None:
            return NOTHING
        anchor = adapter.method.operation(first)
        if anchor is None:
            return None
        if anchor.row not in self._tables:
            operations = {
                self._numbers[site]: adapter.method.operation(row)
                for site, row in adapter.rows.items()
                if site != ATTENTION
            }
            self._tables[anchor.row] = table_of(operations, self.num_sites, self._device)
        found: Table | None = self._tables[anchor.row]
        return found


def table_of(operations: Mapping[int, Operation | None], num_sites: int, device: torch.device) -> Table | None:
    """The table of an adapter that does these operations, by number of site; None where kernels cannot do them all."""
    numbers = [0] * (num_sites * FIELDS)
    groups: set[Group] = set()
    inputs: set[int] = set()
    outputs: set[int] = set()
    for site, operation in operations.items():
        described = _describe(operation) if operation is not None else None
        if described is None or operation is None:
            return None
        group, fields = described
        groups.add(group._replace(rank=min(group.rank, 1)))
        numbers[site * FIELDS : site * FIELDS + len(fields)] = fields
        (inputs if operation.kind == "scale_input" else outputs).add(site)
    if len(groups) != 1:
        return None
    (group,) = groups
    if group.rank:
        group = group._replace(rank=_round_up(max(numbers[::FIELDS])))
    return Table(group, upload(numbers, device), frozenset(inputs), frozenset(outputs))


def upload(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers on a device, in one copy that nobody waits for."""
    made = torch.tensor(numbers, dtype=torch.int64)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made


NOTHING = Table(Group(False, 0, torch.float32), torch.empty(0, dtype=torch.int64), frozenset(), frozenset())


def _describe(operation: Operation) -> tuple[Group, list[int]] | None:
    """The group of one operation and its numbers."""
    row = operation.row
    if isinstance(row, Tensor):
        if row.dtype not in DTYPES or not row.is_contiguous():
            return None
        return Group(False, 0, row.dtype), [VECTOR_KINDS[operation.kind], row.data_ptr()]
    d_in, rank = row.down.shape
    tensors = (row.down, row.up, row.down_bias, row.up_bias)
    if (
        rank > MAX_RANK
        or row.down.dtype not in DTYPES
        or any(tensor is not None and tensor.dtype != row.down.dtype for tensor in tensors)
        or row.down.stride() != (1, d_in)
        or row.up.stride() != (1, rank)
    ):
        return None
    places = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
    numbers = [rank, *places, ACTIVATION_CODES[row.activation], _bits(row.scale)]
    return Group(operation.kind == "low_rank_of_output", rank, row.down.dtype), numbers


def _bits(value: float) -> int:
    """A float32 as the whole number of the same bits."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def _round_up(rank: int) -> int:
    return max(MIN_RANK, 1 << (rank - 1).bit_length())


def _rows_of(group: Group, spans: Sequence[tuple[int, int]]) -> int:
    """Rows of one program."""
    mean = sum(stop - start for start, stop in spans) / len(spans)
    return MANY_ROWS if mean > 2 * FEW_ROWS and group.rank < MAX_RANK else FEW_ROWS
