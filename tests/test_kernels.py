"""The compiled attention and low-rank updates against torch's, and what happens where it cannot be had."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server import kernels
from server.attention import Heads, Packing, attend
from server.forward import Forward, load_base
from server.frozen_linear import round_up
from server.kernels import Kernels
from server.methods.base import KeysValues, Segment, widened
from server.products import ACTIVATIONS, LowRank, TorchProducts
from tests.seeded import Peer, make_adapter, make_base, peft_configs

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, kernels.COMPILERS)) or not kernels.has_wide_registers(kernels.processor()),
    reason="there is no C compiler on this machine, or no AVX-512",
)


@pytest.fixture(scope="module")
def compiled() -> Kernels:
    found = kernels.load()
    assert found is not None
    return found


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


texts = st.lists(
    st.tuples(st.integers(1, 70), st.sampled_from([0, 0, 1, 5, 20, 33]), st.sampled_from([None, "first", "last"])),
    min_size=1,
    max_size=12,
)


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(
    texts, st.sampled_from([16, 32, 48, 64, 80]), st.integers(1, 3), st.booleans(), st.integers(0, 1), st.integers(0, 9)
)
def test_it_equals_torch_s(
    compiled: Kernels,
    drawn: list[tuple[int, int, str | None]],
    head_dim: int,
    num_heads: int,
    reads_only: bool,
    layer: int,
    seed: int,
) -> None:
    """Any lengths, prefixes of any adapters, all queries or those that are read, rows that lie apart."""
    torch.manual_seed(seed)
    lengths = [length for length, _, _ in drawn]
    prefixes = [
        KeysValues(*torch.randn(2, 2, num_heads, prefix, head_dim)) if prefix else None for _, prefix, _ in drawn
    ]
    for index in range(0, len(prefixes), 3):  # as a file has them: neither heads nor rows lie close together
        if (prefix := prefixes[index]) is not None:
            prefixes[index] = KeysValues(
                *(part.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for part in prefix)
            )
    reads = [None if read is None else 0 if read == "first" else length - 1 for length, _, read in drawn]
    packing = Packing(lengths, prefixes, reads, CPU)
    heads, width = Heads(num_heads, num_heads, head_dim), num_heads * head_dim
    queries, keys, values = torch.randn(sum(lengths), 3 * width).chunk(3, 1)
    if reads_only:
        queries = queries[packing.read_rows]
    scale = head_dim**-0.5
    exact = attend(packing, heads, layer, scale, queries.double(), keys.double(), values.double(), reads_only)
    found = compiled.attend(packing, heads, layer, scale, queries, keys, values, reads_only)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    longer = torch.cat((queries, torch.randn(3, width)))  # rows of no text
    for some in (attend, compiled.attend):
        padded = some(packing, heads, layer, scale, longer, keys, values, reads_only)
        torch.testing.assert_close(padded[:-3], found, rtol=1e-5, atol=1e-5)
        assert not bool(padded[-3:].any())


@needs_compiler
def test_large_and_small_scores_neither_overflow_nor_vanish(compiled: Kernels) -> None:
    packing, heads = Packing([40], [None], [None], CPU), Heads(1, 1, 16)
    for scale in (1e-6, 1.0, 100.0, 1e6):
        queries, keys, values = torch.randn(3, 40, 16, generator=torch.Generator().manual_seed(0))
        exact = attend(packing, heads, 0, scale, queries.double(), keys.double(), values.double())
        found = compiled.attend(packing, heads, 0, scale, queries, keys, values)
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_a_text_that_is_not_finite_spoils_no_other(compiled: Kernels) -> None:
    packing, heads = Packing([5, 7, 5], [None] * 3, [None] * 3, CPU), Heads(1, 1, 16)
    queries, keys, values = torch.randn(3, 17, 16)
    expected = compiled.attend(packing, heads, 0, 1.0, queries, keys, values)
    queries[6], keys[7], values[8] = torch.nan, torch.inf, torch.nan
    found = compiled.attend(packing, heads, 0, 1.0, queries, keys, values)
    assert not bool(found[5:12].isfinite().all())
    for part in (slice(0, 5), slice(12, 17)):
        assert torch.equal(found[part], expected[part])


@needs_compiler
def test_many_threads_answer_as_one_does(compiled: Kernels, threads: int) -> None:
    lengths = [3, 50, 1, 7, 90, 2]
    packing, heads = Packing(lengths, [None] * 6, [None] * 6, CPU), Heads(2, 2, 32)
    queries, keys, values = torch.randn(3, sum(lengths), 64, generator=torch.Generator().manual_seed(1))
    expected = attend(packing, heads, 0, 0.2, queries, keys, values)
    torch.testing.assert_close(compiled.attend(packing, heads, 0, 0.2, queries, keys, values), expected)


updates = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 3, 4, 5, 21, 127, 128, 129]),
        st.integers(0, 2),
        st.sampled_from([1, 2, 7, 8, 16, 24, 33, 63, 64, 65]),
        st.sampled_from([None, *ACTIVATIONS]),
        st.booleans(),
        st.sampled_from([torch.float32, torch.float32, torch.float16]),
    ),
    min_size=1,
    max_size=8,
)


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(updates, st.sampled_from([16, 48, 384]), st.sampled_from([16, 32, 48, 40]), st.booleans(), st.integers(0, 9))
def test_low_rank_updates_equal_torch_s(
    compiled: Kernels,
    drawn: list[tuple[int, int, int, str | None, bool, torch.dtype]],
    d_in: int,
    d_out: int,
    is_same: bool,
    seed: int,
) -> None:
    """Any rows, ranks and activations, rows that nobody changes, rows that lie apart, and what is left to torch."""
    torch.manual_seed(seed)
    segments, place, d_in = [], 0, d_out if is_same else d_in
    for num_rows, gap, rank, activation, has_bias, dtype in drawn:
        down, up = torch.randn(rank, d_in) / d_in**0.5, torch.randn(d_out, rank) / rank**0.5
        down_bias, up_bias = (torch.randn(size) if has_bias else None for size in (rank, d_out))
        row = LowRank(down.mT.to(dtype), up.mT.to(dtype), 0.7, down_bias, up_bias, activation)
        segments.append(Segment(place + gap, place + gap + num_rows, widened(row)))
        place += gap + num_rows
    y = torch.randn(place + 1, 3 * d_out).chunk(3, 1)[1]
    x = y if is_same else torch.randn(place + 1, d_in)
    expected, exact_x = y.double(), x.double()
    doubled = [Segment(start, stop, _doubled(row)) for start, stop, row in segments]
    TorchProducts().add_low_rank(expected if is_same else exact_x, expected, doubled)
    compiled.add_low_rank(x, y, segments)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


def _doubled(row: LowRank) -> LowRank:
    down_bias, up_bias = (None if bias is None else bias.double() for bias in (row.down_bias, row.up_bias))
    return LowRank(row.down.double(), row.up.double(), row.scale, down_bias, up_bias, row.activation)


@needs_compiler
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_an_update_that_is_not_finite_spoils_no_other(compiled: Kernels, activation: str | None) -> None:
    torch.manual_seed(0)
    for wrong in (torch.nan, torch.inf, -torch.inf):
        x, y = torch.randn(12, 16), torch.zeros(12, 32)
        x[5, 3] = wrong
        rows = [LowRank(torch.randn(9, 16).mT, torch.randn(32, 9).mT, 1.0, activation=activation) for _ in range(3)]
        compiled.add_low_rank(x, y, [Segment(4 * index, 4 * index + 4, row) for index, row in enumerate(rows)])
        assert y.isfinite().all(1).tolist() == [index != 5 for index in range(12)]


@needs_compiler
def test_many_threads_update_as_one_does(compiled: Kernels, threads: int) -> None:
    torch.manual_seed(0)
    x, found, expected = torch.randn(60, 32), torch.zeros(60, 16), torch.zeros(60, 16)
    rows = [LowRank(torch.randn(8, 32).mT, torch.randn(16, 8).mT, 0.5) for _ in range(6)]
    segments = [Segment(10 * index, 10 * index + 10 - index, row) for index, row in enumerate(rows)]
    TorchProducts().add_low_rank(x, expected, segments)
    for _ in range(2):  # the second time the rows are known
        found.zero_()
        compiled.add_low_rank(x, found, segments)
        torch.testing.assert_close(found, expected)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [16, 48, 24])  # the last is left to torch
def test_scaling_equals_torch_s_to_the_bit(compiled: Kernels, threads: int, dtype: torch.dtype, width: int) -> None:
    """Rows that nobody changes, rows that lie apart, numbers that are none."""
    torch.manual_seed(0)
    x = torch.randn(40, 3 * width).to(dtype)
    x[3, width], x[4, width + 1], x[5, width + 2] = torch.nan, torch.inf, 3.4e38
    segments = [
        Segment(start, stop, torch.randn(width).to(kind).float())
        for start, stop, kind in [(0, 7, torch.float32), (7, 8, torch.bfloat16), (20, 39, torch.float32)]
    ]
    expected = x.clone()
    TorchProducts().scale(expected.chunk(3, 1)[1], segments)
    compiled.scale(x.chunk(3, 1)[1], segments)
    torch.testing.assert_close(x, expected, rtol=0, atol=0, equal_nan=True)


@needs_compiler
def test_rows_are_forgotten_with_their_adapter(compiled: Kernels) -> None:
    known = len(compiled._updates)
    rows = [LowRank(torch.randn(4, 16).mT, torch.randn(16, 4).mT, 1.0) for _ in range(3)]
    y = torch.zeros(3, 16)
    compiled.add_low_rank(y, y, [Segment(index, index + 1, row) for index, row in enumerate(rows)])
    assert len(compiled._updates) == known + 3
    rows.clear()
    assert len(compiled._updates) == known


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 8))
def test_parts_cover_every_text_once(lengths: list[int], count: int) -> None:
    starts = Packing(lengths, [None] * len(lengths), [None] * len(lengths), CPU).starts
    parts = kernels._parts(starts, count)
    assert [text for first, last in parts for text in range(first, last)] == list(range(len(lengths)))
    assert 1 <= len(parts) <= count


@needs_compiler
def test_a_mixed_batch_is_the_same_with_and_without(tmp_path: Path) -> None:
    """A base whose heads are wide enough for it, every method, and plain peft beside them."""
    folder = make_base(tmp_path / "wide", "bert", hidden_size=64)
    base = load_base(str(folder), "cpu", "float32")
    from server import adapter_folder
    from server.store import Store

    store, peers = Store(base), []
    for index, (name, config) in enumerate(peft_configs("bert").items()):
        oracle = make_adapter(tmp_path / name, folder, config, 3, seed=index)
        peers.append(Peer(store.load(adapter_folder.read(tmp_path, name, base)), oracle))
    tokens = [list(range(5, 5 + length)) for length in (1, 9, 60)]
    work = [peer.job(text) for peer in peers for text in tokens]
    expected = [peer.logits(text) for peer in peers for text in tokens]
    for uses_kernels in (True, False):
        for answer, oracle_answer in zip(Forward(base, uses_kernels=uses_kernels).run(work), expected, strict=True):
            torch.testing.assert_close(answer, oracle_answer, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_it_is_compiled_once(tmp_path: Path) -> None:
    first = kernels.compiled(tmp_path / "cache")
    changed = first.stat().st_mtime_ns
    assert kernels.compiled(tmp_path / "cache") == first
    assert first.stat().st_mtime_ns == changed
    assert list((tmp_path / "cache").iterdir()) == [first]


@needs_compiler
def test_what_an_image_brings_along_needs_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = kernels.compiled(tmp_path / "compiled")
    monkeypatch.setattr(kernels, "SHIPPED", tmp_path / "compiled")
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    assert kernels.load.__wrapped__() is not None
    log = capsys.readouterr().err
    assert "kernels_ready" in log
    assert str(shipped) in log
    shipped.rename(shipped.with_name("kernels-0123456789abcdef.so"))  # of another source
    assert kernels.load.__wrapped__() is None
    assert "there is no C compiler" in capsys.readouterr().err


@needs_compiler
def test_one_library_for_all_processors_computes_what_one_for_this_processor_does(
    compiled: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "FLAGS", ("-O3", "-march=native", "-shared", "-fPIC"))
    native = Kernels(ctypes.CDLL(str(kernels.compiled(tmp_path))))
    torch.manual_seed(0)
    lengths = [3, 50, 1, 7, 90, 2]
    packing, heads = Packing(lengths, [None] * 6, [None] * 6, CPU), Heads(2, 2, 32)
    queries, keys, values = torch.randn(3, sum(lengths), 64)
    rows = [LowRank(torch.randn(9, 64).mT, torch.randn(48, 9).mT, 0.5, activation=kind) for kind in ACTIVATIONS]
    segments = [Segment(20 * index, 20 * index + 20, row) for index, row in enumerate(rows)]
    scales = [Segment(segment.start, segment.stop, torch.randn(48)) for segment in segments]
    found = []
    for some in (compiled, native):
        attended = some.attend(packing, heads, 0, 0.2, queries, keys, values)
        changed = torch.ones(sum(lengths), 48)
        some.add_low_rank(queries, changed, segments)
        rounded = changed.bfloat16()
        some.scale(rounded, scales)
        found.append((attended, changed, rounded))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fault", ["no compiler", "narrow registers", "read-only", "wrong source"])
def test_without_it_torch_does_the_work(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "SHIPPED", tmp_path / "compiled")
    if fault == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif fault == "narrow registers":
        monkeypatch.setattr(kernels, "CPUINFO", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").write_text("flags\t\t: fpu sse2 avx2 fma\n")
    elif fault == "read-only":
        (tmp_path / ".cache").write_text("a file where the folder should be")
    else:
        (tmp_path / "kernels.c").write_text("this is not C")
        monkeypatch.setattr(kernels, "SOURCE", tmp_path / "kernels.c")
    assert kernels.load.__wrapped__() is None
    assert "kernels_absent" in capsys.readouterr().err


def test_products_come_in_few_sizes_that_are_hardly_larger_than_asked() -> None:
    sizes = {num_rows: round_up(num_rows) for num_rows in range(1, 8193)}
    assert all(0 <= size - num_rows <= max(3, num_rows / 8) for num_rows, size in sizes.items())
    assert len(set(sizes.values())) <= 75
    assert round_up(8192) == 8192
