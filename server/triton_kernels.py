"""What `server.grouped`, `server.grouped_heads` and `server.varlen_attention` compute on a GPU, in Triton.

A few launches do for many adapters. Kernels find an adapter's tensors by the addresses in its table
(`server.grouped.Table`, `server.grouped_heads.HeadTable`): nothing is copied or padded.
Sums are float32. Shapes are tuned once for a width and a rank, and Triton keeps what it found beside its cache.
After Punica (Chen et al. 2023) and S-LoRA (Sheng et al. 2023), which split the product in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import Config, knobs

TYPES: Mapping[torch.dtype, object] = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
FIELDS = tl.constexpr(8)
HEAD_FIELDS = tl.constexpr(8)
COLUMNS, HEAD_COLUMNS, HEAD_BLOCK_IN = 256, 32, 64
WIDTH_A_PART, MAX_PARTS, WIDEST_BLOCK = 512, 8, 128
"""Wide inputs are multiplied in parts at one time, whose sums are added later: always in the same order."""


kernel = triton.jit(
    # for numbers that are 1 or divisible by 16 Triton would compile versions of their own, a stall for each
    do_not_specialize=["num_rows", "site", "layer"],
    do_not_specialize_on_alignment=["tiles", "addresses", "sources", "prefixes"],
)


def _tuned(configs: list[Config], key: list[str], **options: object):
    """Several shapes to choose from; the interpreter has no times to choose by."""
    return triton.autotune(configs[:1] if knobs.runtime.interpret else configs, key, cache_results=True, **options)


@triton.jit
def _tile(tiles, addresses, site):
    """The rows of this program, and where the numbers of its adapter at the site lie."""
    tile = tiles + 3 * tl.program_id(0)
    table = tl.load(addresses + tl.load(tile)).to(tl.pointer_type(tl.int64))
    return tl.load(tile + 1), tl.load(tile + 2), table + site * FIELDS


@_tuned(
    [
        Config({"BLOCK_IN": 64}, num_warps=4, num_stages=3),
        Config({"BLOCK_IN": 128}, num_warps=4, num_stages=3),
        Config({"BLOCK_IN": 32}, num_warps=4, num_stages=4),
    ],
    key=["width", "WEIGHT", "BLOCK_RANK", "BLOCK_ROWS"],
)
@kernel
def _shrink(
    x,
    x_stride,
    width,
    low,
    num_rows,
    tiles,
    addresses,
    site,
    WEIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """low [parts, rows, BLOCK_RANK] = x @ down, each part from its own columns of x."""
    start, stop, numbers = _tile(tiles, addresses, site)
    rank = tl.load(numbers)
    if rank == 0:
        return
    down = tl.load(numbers + 1).to(tl.pointer_type(WEIGHT))  # stored [rank, width]
    rows, ranks = start + tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_RANK)
    part = tl.program_id(1)
    total = tl.full((BLOCK_ROWS, BLOCK_RANK), 0.0, tl.float32)
    for begin in range(0, PART, BLOCK_IN):
        columns = part * PART + begin + tl.arange(0, BLOCK_IN)
        inside = columns < width
        left = tl.load(
            x + rows[:, None] * x_stride + columns[None, :], mask=(rows < stop)[:, None] & inside[None, :], other=0
        )
        right = tl.load(
            down + ranks[None, :] * width + columns[:, None], mask=(ranks < rank)[None, :] & inside[:, None], other=0
        )
        total = tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision=PRECISION)
    place = (part * num_rows + rows)[:, None] * BLOCK_RANK + ranks[None, :]
    tl.store(low + place, total, mask=(rows < stop)[:, None])


@_tuned(
    [
        Config({"BLOCK_OUT": 64}, num_warps=4, num_stages=2),
        Config({"BLOCK_OUT": 128}, num_warps=4, num_stages=2),
        Config({"BLOCK_OUT": 32}, num_warps=4, num_stages=2),
    ],
    key=["width", "WEIGHT", "BLOCK_RANK", "BLOCK_ROWS"],
    restore_value=["y"],
)
@kernel
def _expand(
    low,
    num_rows,
    y,
    y_stride,
    width,
    tiles,
    addresses,
    site,
    WEIGHT: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """y += scale * (activation(sum of low + down_bias) @ up + up_bias), each program for its own columns of y."""
    start, stop, numbers = _tile(tiles, addresses, site)
    rank = tl.load(numbers)
    if rank == 0:
        return
    up = tl.load(numbers + 2).to(tl.pointer_type(WEIGHT))  # stored [width, rank]
    down_bias, up_bias, activation = tl.load(numbers + 3), tl.load(numbers + 4), tl.load(numbers + 5)
    scale = tl.load(numbers + 6).to(tl.int32).to(tl.float32, bitcast=True)
    rows, ranks = start + tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_RANK)
    columns = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inner = tl.full((BLOCK_ROWS, BLOCK_RANK), 0.0, tl.float32)
    for part in range(PARTS):
        place = (part * num_rows + rows)[:, None] * BLOCK_RANK + ranks[None, :]
        inner += tl.load(low + place, mask=(rows < stop)[:, None], other=0)
    if down_bias != 0:
        bias = tl.load(down_bias.to(tl.pointer_type(WEIGHT)) + ranks, mask=ranks < rank, other=0)
        inner += bias.to(tl.float32)[None, :]
    if activation == 1:
        inner = tl.where(inner < 0, 0.0, inner)
    elif activation == 2:
        inner = 0.5 * inner * (1.0 + tl.erf(inner * 0.7071067811865476))
    elif activation == 3:
        inner = inner / (1.0 + tl.exp(-inner))
    inside = columns < width
    right = tl.load(
        up + columns[None, :] * rank + ranks[:, None], mask=(ranks < rank)[:, None] & inside[None, :], other=0
    )
    change = tl.dot(inner, right.to(tl.float32), input_precision=PRECISION)
    if up_bias != 0:
        bias = tl.load(up_bias.to(tl.pointer_type(WEIGHT)) + columns, mask=inside, other=0)
        change += bias.to(tl.float32)[None, :]
    place = y + rows[:, None] * y_stride + columns[None, :]
    mask = (rows < stop)[:, None] & inside[None, :]
    tl.store(place, (tl.load(place, mask=mask, other=0).to(tl.float32) + scale * change).to(y.dtype.element_ty), mask)


@kernel
def _change(
    x,
    x_stride,
    width,
    tiles,
    addresses,
    site,
    WEIGHT: tl.constexpr,
    ON_INPUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x *= vector, or x += vector; the kinds are `server.grouped.VECTOR_KINDS`."""
    start, stop, numbers = _tile(tiles, addresses, site)
    kind = tl.load(numbers)
    if (kind == 0) | ((kind == 3) != ON_INPUT):
        return
    rows, columns = start + tl.arange(0, BLOCK_ROWS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    vector = tl.load(tl.load(numbers + 1).to(tl.pointer_type(WEIGHT)) + columns, mask=columns < width, other=0)
    place = x + rows[:, None] * x_stride + columns[None, :]
    mask = (rows < stop)[:, None] & (columns < width)[None, :]
    before = tl.load(place, mask=mask, other=0).to(tl.float32)
    vector = vector.to(tl.float32)[None, :]
    after = tl.where(kind == 2, before + vector, before * vector)
    tl.store(place, after.to(x.dtype.element_ty), mask)


@kernel
def _front(
    keys,
    key_stride,
    values,
    value_stride,
    out,
    num_rows,
    sources,
    prefixes,
    layer,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [2, rows, WIDTH]: a row of keys and of values, of a token or of a prefix."""
    row = tl.program_id(0).to(tl.int64)
    source, place = tl.load(sources + 2 * row), tl.load(sources + 2 * row + 1)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    kind = out.dtype.element_ty
    if source < 0:
        key = tl.load(keys + place * key_stride + columns, mask=inside, other=0)
        value = tl.load(values + place * value_stride + columns, mask=inside, other=0)
    else:
        numbers = prefixes + source * 6
        offset = layer * tl.load(numbers + 2) + columns // HEAD_DIM * tl.load(numbers + 3)
        offset += place * tl.load(numbers + 4) + columns % HEAD_DIM
        key_place, value_place, stored = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 5)
        if stored == 0:
            key = tl.load(key_place.to(tl.pointer_type(tl.float32)) + offset, mask=inside, other=0).to(kind)
            value = tl.load(value_place.to(tl.pointer_type(tl.float32)) + offset, mask=inside, other=0).to(kind)
        elif stored == 1:
            key = tl.load(key_place.to(tl.pointer_type(tl.bfloat16)) + offset, mask=inside, other=0).to(kind)
            value = tl.load(value_place.to(tl.pointer_type(tl.bfloat16)) + offset, mask=inside, other=0).to(kind)
        else:
            key = tl.load(key_place.to(tl.pointer_type(tl.float16)) + offset, mask=inside, other=0).to(kind)
            value = tl.load(value_place.to(tl.pointer_type(tl.float16)) + offset, mask=inside, other=0).to(kind)
    tl.store(out + row * WIDTH + columns, key, inside)
    tl.store(out + (num_rows + row) * WIDTH + columns, value, inside)


@kernel
def _head_layer(
    x,
    x_stride,
    out,
    tiles,
    WIDTH: tl.constexpr,
    WEIGHT: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """out = (x * scale + shift) @ weight + bias, each program for its own columns of out; 0: no such tensor."""
    tile = tiles + HEAD_FIELDS * tl.program_id(0)
    num_outputs = tl.load(tile + 3)
    if tl.program_id(1) * BLOCK_OUT >= num_outputs:
        return
    start, stop, place = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    weight, bias = tl.load(tile + 4), tl.load(tile + 5)  # stored [num_outputs, WIDTH]
    scale, shift = tl.load(tile + 6), tl.load(tile + 7)
    rows = start + tl.arange(0, BLOCK_ROWS)
    columns = (tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)).to(tl.int64)
    is_row, is_column = rows < stop, columns < num_outputs
    total = tl.full((BLOCK_ROWS, BLOCK_OUT), 0.0, tl.float32)
    for begin in range(0, WIDTH, BLOCK_IN):
        inner = begin + tl.arange(0, BLOCK_IN)
        inside = inner < WIDTH
        left = tl.load(x + rows[:, None] * x_stride + inner[None, :], mask=is_row[:, None] & inside[None, :], other=0)
        factor = tl.load(scale.to(tl.pointer_type(NORM)) + inner, mask=inside & (scale != 0), other=0).to(tl.float32)
        offset = tl.load(shift.to(tl.pointer_type(NORM)) + inner, mask=inside & (shift != 0), other=0).to(tl.float32)
        left = left * tl.where(scale != 0, factor, 1.0)[None, :] + offset[None, :]
        right = tl.load(
            weight.to(tl.pointer_type(WEIGHT)) + columns[None, :] * WIDTH + inner[:, None],
            mask=is_column[None, :] & inside[:, None],
            other=0,
        )
        total = tl.dot(left, right.to(tl.float32), total, input_precision="ieee")
    added = tl.load(bias.to(tl.pointer_type(WEIGHT)) + columns, mask=is_column & (bias != 0), other=0)
    places = place + (rows - start)[:, None] * num_outputs + columns[None, :]
    tl.store(out + places, total + added.to(tl.float32)[None, :], mask=is_row[:, None] & is_column[None, :])


def add_low_rank(
    x: Tensor, y: Tensor, tiles: Tensor, addresses: Tensor, site: int, rows: int, rank: int, dtype: torch.dtype
) -> None:
    """y [rows, d_out] += what the adapters of the tiles make of x [rows, d_in]; y may be x.

    tiles [tiles, 3]: an adapter's place among the addresses, its first row and the row behind its last, at most `rows`
    of them. addresses: of the adapters' tables. rank: the most that an adapter has, rounded up to a power of two.
    dtype: of the adapters' tensors.
    """
    (num_rows, width), num_tiles = x.shape, len(tiles)
    parts = min(MAX_PARTS, triton.cdiv(width, WIDTH_A_PART))
    part = triton.cdiv(triton.cdiv(width, parts), WIDEST_BLOCK) * WIDEST_BLOCK
    low = torch.empty((parts, num_rows, rank), dtype=torch.float32, device=x.device)
    shared = {
        "WEIGHT": TYPES[dtype],
        # what is half precision already loses nothing that matters in TF32; float32 stays exact
        "PRECISION": "ieee" if y.dtype == torch.float32 else "tf32",
        "BLOCK_ROWS": rows,
        "BLOCK_RANK": rank,
    }
    place = (tiles, addresses, site)
    _shrink[(num_tiles, parts)](x, x.stride(0), width, low, num_rows, *place, PART=part, **shared)
    _expand[lambda meta: (num_tiles, triton.cdiv(y.shape[1], meta["BLOCK_OUT"]))](
        low, num_rows, y, y.stride(0), y.shape[1], *place, PARTS=parts, **shared
    )


def change(
    x: Tensor, tiles: Tensor, addresses: Tensor, site: int, rows: int, dtype: torch.dtype, on_input: bool
) -> None:
    """Scale or shift the rows of x [rows, width] by the vectors that the tiles' adapters have at the site."""
    grid = (len(tiles), triton.cdiv(x.shape[1], COLUMNS))
    kind = {"WEIGHT": TYPES[dtype], "ON_INPUT": on_input, "BLOCK_ROWS": rows, "BLOCK": COLUMNS}
    _change[grid](x, x.stride(0), x.shape[1], tiles, addresses, site, **kind)


def put_in_front(
    keys: Tensor, values: Tensor, sources: Tensor, prefixes: Tensor, layer: int, head_dim: int
) -> tuple[Tensor, Tensor]:
    """Keys and values [tokens, width] with every text's prefix in front of them, [prefix + tokens, width] each.

    sources, prefixes: `server.varlen_attention.Lines`.
    """
    num_rows, width = len(sources), keys.shape[1]
    out = torch.empty((2, num_rows, width), dtype=keys.dtype, device=keys.device)
    shape = {"HEAD_DIM": head_dim, "WIDTH": width, "BLOCK": triton.next_power_of_2(width)}
    _front[(num_rows,)](
        keys, keys.stride(0), values, values.stride(0), out, num_rows, sources, prefixes, layer, **shape
    )
    new_keys, new_values = out.unbind()
    return new_keys, new_values


def apply_head_layer(
    x: Tensor, out: Tensor, tiles: Tensor, rows: int, most_outputs: int, dtype: torch.dtype, norm_dtype: torch.dtype
) -> None:
    """Write what one layer of many heads makes of x [texts, width] into out, both float32.

    tiles [tiles, 8]: the first text of a head and the text behind its last, at most `rows` of them; where the first
    one's numbers go in out, and how many a text has; the addresses of weight and bias, and of those of the norm in
    front of them (0: none). most_outputs: that a text has. dtype, norm_dtype: of these tensors.
    """
    _head_layer[(len(tiles), triton.cdiv(most_outputs, HEAD_COLUMNS))](
        x,
        x.stride(0),
        out,
        tiles,
        WIDTH=x.shape[1],
        WEIGHT=TYPES[dtype],
        NORM=TYPES[norm_dtype],
        BLOCK_ROWS=rows,
        BLOCK_OUT=HEAD_COLUMNS,
        BLOCK_IN=HEAD_BLOCK_IN,
    )
