"""Optional compiled code for CPUs with AVX-512: where a C compiler is at hand, `kernels.c` is compiled once and kept.

    python -m server.kernels        compiles it beside the source, for images, which have no compiler

Nothing depends on it: without, torch does the same in more and smaller steps.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import struct
import subprocess
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from server import logs
from server.attention import Heads, Packing
from server.methods.base import Segment
from server.products import ACTIVATIONS, LowRank, TorchProducts

SOURCE = Path(__file__).with_name("kernels.c")
SHIPPED = Path(__file__).with_name("compiled")
"""What an image has compiled while it was made (`server.triton_cache` too)."""
CPUINFO = Path("/proc/cpuinfo")
COMPILERS = ("cc", "gcc", "clang")
EXTENSIONS = ("avx512f", "fma")
"""What the library asks of a processor: with all that the processor has it is no faster (docs/log.md)."""
FLAGS = ("-O3", *(f"-m{extension}" for extension in EXTENSIONS), "-shared", "-fPIC")
LANES, QUERIES, ALIGNMENT = 16, 4, 64
MAX_ROWS, MAX_RANK = 128, 64
"""What a low-rank update may have here; with more, torch's products are as fast (docs/log.md)."""
ACTIVATION_CODES: Mapping[str | None, int] = {None: 0, **{name: code for code, name in enumerate(ACTIVATIONS, 1)}}
UPDATE = struct.Struct("@PPPPqqd")
"""`struct update` of the source."""
COMPILE_LIMIT_S = 60


class Kernels:
    """The compiled functions. Any thread may call them; they let go of the interpreter, and share torch's threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._torch = TorchProducts()
        self._scales = {torch.float32: library.scale, torch.bfloat16: library.scale_rounded}
        self._updates: WeakKeyDictionary[LowRank, _Update] = WeakKeyDictionary()
        self._pool = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="adaptermux-kernel")

    def can_attend(self, heads: Heads) -> bool:
        return heads.num_queries == heads.num_keys and heads.head_dim % LANES == 0

    def attend(
        self,
        packing: Packing,
        heads: Heads,
        layer: int,
        scale: float,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        reads_only: bool = False,
    ) -> Tensor:
        """What `server.attention.attend` does, for encoders without a window, in one call.

        The tensors are float32, their rows may be apart.
        """
        query_starts = packing.read_starts if reads_only else packing.starts
        out = torch.empty(queries.shape)
        out[query_starts[-1] :] = 0
        texts = _texts(packing, layer)
        longest = max(map(sum, zip(texts.lengths, packing.lengths, strict=True)))
        width = -(-longest // LANES) * LANES
        scratch_size = (2 * heads.head_dim + QUERIES) * width + ALIGNMENT
        arguments = (
            ctypes.c_long(heads.num_queries),
            ctypes.c_long(heads.head_dim),
            ctypes.c_float(scale),
            *_rows(queries),
            *_rows(keys),
            *_rows(values),
            *_rows(out),
            *map(_whole, (query_starts, packing.starts, texts.lengths)),
            *map(_whole, (texts.keys, texts.values, texts.head_strides, texts.row_strides)),
        )

        def run(first: int, last: int) -> None:
            scratch = torch.empty(scratch_size)
            aligned = scratch.data_ptr() + -scratch.data_ptr() % ALIGNMENT
            self._library.attend(ctypes.c_long(first), ctypes.c_long(last), *arguments, ctypes.c_void_p(aligned))

        self._share(run, packing.starts)
        return out

    def add_low_rank(self, x: Tensor, y: Tensor, segments: Sequence[Segment[LowRank]]) -> None:
        """What `server.products.TorchProducts` does, in one call for all segments that fit."""
        d_in, d_out = x.shape[1], y.shape[1]
        is_plain = all(
            part.dtype == torch.float32 and part.stride(1) == 1 and part.shape[1] % LANES == 0 for part in (x, y)
        )
        updates: list[bytes] = []
        fitting: list[Segment[LowRank]] = []
        others: list[Segment[LowRank]] = []
        for segment in segments:
            update = self._updates.get(segment.row) or self._describe(segment.row)
            if is_plain and update.sizes == (d_in, d_out) and segment.stop - segment.start <= MAX_ROWS:
                fitting.append(segment)
                updates.append(update.packed)
            else:
                others.append(segment)
        if others:
            self._torch.add_low_rank(x, y, others)
        if not fitting:
            return
        arguments = (
            *_rows(x),
            ctypes.c_long(d_in),
            *_rows(y),
            ctypes.c_long(d_out),
            _whole([segment.start for segment in fitting]),
            _whole([segment.stop for segment in fitting]),
            b"".join(updates),
        )

        def run(first: int, last: int) -> None:
            self._library.add_low_rank(ctypes.c_long(first), ctypes.c_long(last), *arguments)

        self._share(run, (0, *accumulate(segment.stop - segment.start for segment in fitting)))

    def scale(self, x: Tensor, segments: Sequence[Segment[Tensor]]) -> None:
        """What `server.products.TorchProducts` does, in one call for all segments."""
        function = self._scales.get(x.dtype)
        if (
            function is None
            or x.stride(1) != 1
            or x.shape[1] % LANES
            or any(segment.row.dtype != torch.float32 or not segment.row.is_contiguous() for segment in segments)
        ):
            self._torch.scale(x, segments)
            return
        arguments = (
            *_rows(x),
            ctypes.c_long(x.shape[1]),
            _whole([segment.start for segment in segments]),
            _whole([segment.stop for segment in segments]),
            _whole([segment.row.data_ptr() for segment in segments]),
        )

        def run(first: int, last: int) -> None:
            function(ctypes.c_long(first), ctypes.c_long(last), *arguments)

        self._share(run, (0, *accumulate(segment.stop - segment.start for segment in segments)))

    def _describe(self, row: LowRank) -> _Update:
        """Done once for a row that is used again; it takes as long as the product itself."""
        d_in, rank = row.down.shape
        tensors = (row.down, row.up, row.down_bias, row.up_bias)
        fits = (
            rank <= MAX_RANK
            and all(tensor is None or tensor.dtype == torch.float32 for tensor in tensors)
            and row.down.stride() == (1, d_in)
            and row.up.stride() == (1, rank)
        )
        places = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
        packed = UPDATE.pack(*places, rank, ACTIVATION_CODES[row.activation], row.scale)
        update = self._updates[row] = _Update((d_in, row.up.shape[1]) if fits else None, packed)
        return update

    def _share(self, run: Callable[[int, int], None], starts: Sequence[int]) -> None:
        """Let torch's number of threads each run a part; item i covers rows starts[i] to starts[i + 1]."""
        parts = _parts(starts, torch.get_num_threads())
        if len(parts) == 1:
            run(*parts[0])
        else:
            list(self._pool.map(run, *zip(*parts, strict=True)))


class _Update(NamedTuple):
    """A low-rank update as the compiled code reads it. sizes: d_in and d_out, or None where it is left to torch."""

    sizes: tuple[int, int] | None
    packed: bytes


@dataclass(frozen=True, slots=True)
class _Texts:
    """Every text's prefix at one layer: its rows, where its keys and values lie, and how far apart they are."""

    lengths: Sequence[int]
    keys: Sequence[int]
    values: Sequence[int]
    head_strides: Sequence[int]
    row_strides: Sequence[int]


def _texts(packing: Packing, layer: int) -> _Texts:
    rows = []
    for prefix in packing.prefixes:
        if prefix is None:
            rows.append((0, 0, 0, 0, 0))
        else:
            keys, values = prefix.keys, prefix.values  # [layers, heads, prefix, head_dim]
            offset = layer * keys.stride(0) * keys.element_size()
            place = keys.data_ptr() + offset, values.data_ptr() + offset
            rows.append((keys.shape[2], *place, keys.stride(1), keys.stride(2)))
    return _Texts(*zip(*rows, strict=True))


def _parts(starts: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Texts cut into at most `count` ranges of about as many tokens each."""
    num_texts, num_tokens = len(starts) - 1, starts[-1]
    cuts = {bisect_left(starts, num_tokens * part / count) for part in range(1, count)}
    edges = sorted({0, num_texts, *(min(cut, num_texts) for cut in cuts)})
    return list(pairwise(edges))


def _rows(x: Tensor) -> tuple[ctypes.c_void_p, ctypes.c_long]:
    return ctypes.c_void_p(x.data_ptr()), ctypes.c_long(x.stride(0))


def _whole(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


@cache
def load() -> Kernels | None:
    """The compiled functions, or None where they cannot be had; the log says which, and why."""
    try:
        if not has_wide_registers(processor()):
            raise OSError("the processor has no AVX-512, without which the compiled code is slower than torch")
        path = SHIPPED / file_name()
        if not path.exists():
            path = compiled(Path.home() / ".cache" / "adaptermux")
        found = Kernels(ctypes.CDLL(str(path)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logs.event("kernels_absent", reason=str(error))
        return None
    logs.event("kernels_ready", file=path)
    return found


def compiled(folder: Path) -> Path:
    """The shared library of this source in `folder`; compiled where it is not there yet.

    Raises OSError and SubprocessError.
    """
    path = folder / file_name()
    if not path.exists():
        compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
        if compiler is None:
            raise OSError(f"there is no C compiler ({', '.join(COMPILERS)})")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / path.name
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(made), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_LIMIT_S)
            os.replace(made, path)
    return path


def file_name() -> str:
    identity = SOURCE.read_bytes() + repr((platform.machine(), FLAGS)).encode()
    return f"kernels-{hashlib.sha256(identity).hexdigest()[:16]}.so"


def has_wide_registers(processor: str) -> bool:
    """Whether a vector of the source fits one register; compilers take those that do not apart, float by float."""
    return set(EXTENSIONS) <= set(processor.split())


def processor() -> str:
    """What it can do."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    if platform.machine() == "x86_64":
        SHIPPED.mkdir(exist_ok=True)  # for whoever runs the server to read
        print(compiled(SHIPPED))
