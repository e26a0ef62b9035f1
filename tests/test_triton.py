"""The code for GPUs on a machine without one: Triton's interpreter runs the kernels, torch attends text by text."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

os.environ["TRITON_INTERPRET"] = "1"  # read where the kernels are defined
pytest.importorskip("triton", reason="there is no Triton on this machine")

from server import adapter_folder, device_code, triton_kernels
from server.attention import Heads, Packing, attend
from server.base_model import BaseModel
from server.device_code import TRIED, check
from server.device_trial import NUM_SITES, Drawn, attention_error, operation_error
from server.errors import BaseModelError
from server.forward import Forward, load_base
from server.grouped import MAX_RANK, GroupedSegments, batch_of, table_of
from server.grouped_heads import GroupedHeads
from server.methods.base import KeysValues
from server.products import ACTIVATIONS, LowRank, Operation
from server.store import Store
from server.varlen_attention import BatchLines, VarlenAttention, put_in_front
from tests.seeded import NAMES, Peer, make_adapter, make_base, peft_configs
from tests.taped import flash

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS = ["low_rank", "low_rank_of_output", "scale", "scale_input", "shift"]
HEADS = Heads(4, 2, 16)

drawn_adapters = st.lists(
    st.builds(
        Drawn,
        kind=st.sampled_from(KINDS),
        num_rows=st.sampled_from([0, 1, 3, 16, 17, 70]),
        rank=st.sampled_from([1, 3, 16, 17, 40]),
        activation=st.sampled_from([None, *ACTIVATIONS]),
        has_bias=st.booleans(),
        dtype=st.sampled_from([torch.float32, *DTYPES]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=10, deadline=None)
@given(drawn_adapters, st.sampled_from([16, 40, 600]), st.sampled_from([16, 72, 130]), st.sampled_from(DTYPES))
def test_operations_equal_torch_s(drawn: list[Drawn], d_in: int, d_out: int, dtype: torch.dtype) -> None:
    """Any kinds, ranks and rows side by side, inputs that are multiplied in parts, rows that nobody may change."""
    if any(one.num_rows for one in drawn):
        check(operation_error(triton_kernels, CPU, dtype, d_in, d_out, drawn), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_tried_at_the_start_is_right(dtype: torch.dtype) -> None:
    for drawn in TRIED:
        check(operation_error(triton_kernels, CPU, dtype, 136, 200, drawn), dtype)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, by which the interpreter computes
def test_an_input_that_is_not_finite_spoils_no_other_row() -> None:
    for wrong in (torch.nan, torch.inf):
        x, y = torch.randn(20, 16), torch.zeros(20, 32)
        x[5, 3] = wrong
        rows = [LowRank(torch.randn(9, 16).mT, torch.randn(32, 9).mT, 1.0, activation="gelu") for _ in range(2)]
        tables = [table_of({0: Operation("low_rank", row)}, 1, CPU) for row in rows]
        spans = [(10 * number, 10 * number + 10, table) for number, table in enumerate(tables) if table is not None]
        batch_of(triton_kernels, spans, CPU).change_output(0, x, y)
        assert y.isfinite().all(1).tolist() == [row != 5 for row in range(20)]


@pytest.mark.parametrize("fault", ["rank", "format", "order", "mixture", "unknown"])
def test_what_kernels_cannot_do_has_no_table(fault: str) -> None:
    rank = MAX_RANK + 1 if fault == "rank" else 4
    down, up = torch.randn(rank, 16), torch.randn(24, rank)
    if fault == "format":
        down = down.double()
    if fault == "order":
        up = up.mT.contiguous().mT
    operations: dict[int, Operation | None] = {0: Operation("low_rank", LowRank(down.mT, up.mT, 1.0))}
    if fault == "mixture":
        operations[1] = Operation("shift", torch.randn(24))
    if fault == "unknown":
        operations[1] = None
    assert table_of(operations, NUM_SITES, CPU) is None


@pytest.mark.parametrize("heads", [HEADS, Heads(3, 3, 8)])
@pytest.mark.parametrize("prefix_dtype", DTYPES)
@pytest.mark.parametrize("moving", ["triton", "torch"])
def test_attention_in_one_call_equals_the_plain_one(heads: Heads, prefix_dtype: torch.dtype, moving: str) -> None:
    """With prefixes of any format, causal or not, with a window, and where few rows are read."""
    varlen = VarlenAttention(flash, triton_kernels.put_in_front if moving == "triton" else None).attend
    for is_causal, window, reads_only in [(False, None, False), (True, None, False), (False, 16, False)]:
        error = attention_error(varlen, CPU, torch.float32, heads, is_causal, window, reads_only)
        check(error, torch.float32)
    check(attention_error(varlen, CPU, torch.float32, heads, reads_only=True, prefix_dtype=prefix_dtype), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_prefixes_are_put_in_front_bit_by_bit(dtype: torch.dtype) -> None:
    """By the kernel as by torch, of any formats side by side, and from either way in which a prefix may lie.

    But for the last bit of bfloat16: the interpreter cuts where a card rounds.
    """
    step = 2**-7 if dtype == torch.bfloat16 else 0
    torch.manual_seed(0)
    prefixes: list[KeysValues | None] = [None]
    for stored_dtype in DTYPES:
        stored = (torch.randn(5, 3, 2, 2, 16) * 300).to(stored_dtype)  # [prefix, layers, keys and values, heads, ...]
        by_row = KeysValues(*stored.permute(2, 1, 3, 0, 4).unbind())
        prefixes += [by_row, KeysValues(*(part.contiguous() for part in by_row))]
    packing = Packing([4, 1, 7, 2, 3, 1, 5], prefixes, [None] * 7, CPU)
    keys, values = torch.randn(23, 96).to(dtype).chunk(3, 1)[1:]
    lines = BatchLines(packing, CPU)
    for layer in range(3):
        expected = put_in_front(packing, layer, keys, values)
        found = triton_kernels.put_in_front(keys, values, lines.sources, lines.prefixes, layer, 16)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=step, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_prefixes_of_several_formats_in_one_batch_are_attended_to(dtype: torch.dtype) -> None:
    """Of one length too, where the plain way attends to neighbours at once."""
    torch.manual_seed(0)
    stored = [torch.randn(4, 3, 2, 2, 16).to(some).permute(2, 1, 3, 0, 4) for some in DTYPES]
    prefixes = [KeysValues(*some.unbind()) for some in stored]
    packing = Packing([6, 6, 6], prefixes, [None] * 3, CPU)
    doubled = Packing([6, 6, 6], [KeysValues(*some.double().unbind()) for some in stored], [None] * 3, CPU)
    queries, keys, values = torch.split(torch.randn(18, 128).to(dtype), [64, 32, 32], 1)
    expected = attend(doubled, HEADS, 1, 0.25, queries.double(), keys.double(), values.double())
    for attending in (
        attend,
        VarlenAttention(flash, None).attend,
        VarlenAttention(flash, triton_kernels.put_in_front).attend,
    ):
        found = attending(packing, HEADS, 1, 0.25, queries, keys, values)
        check(float((found.double() - expected).abs().max() / expected.abs().max()), dtype)


@pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term")
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_a_mixed_batch_equals_plain_peft_s(model_type: str, tmp_path: Path) -> None:
    """Every way of every method, in either encoder, an adapter in half precision and one that is left to torch."""
    folder = make_base(tmp_path / "base", model_type)
    configs = peft_configs(model_type)
    names = NAMES[model_type].query_value
    configs["lora-wide"] = LoraConfig(task_type="SEQ_CLS", r=MAX_RANK + 2, target_modules=names)
    oracles = {
        name: make_adapter(tmp_path / name, folder, config, 2 + number % 3, seed=number)
        for number, (name, config) in enumerate(configs.items())
    }
    for name in ("lora-all", "prefix"):
        _halve(tmp_path / name, oracles[name])
    tokens = [list(range(5, 5 + length)) for length in (1, 40)]
    for encoder in ("packed", "library") if model_type == "bert" else ("library",):
        base = load_base(str(folder), "cpu", "float32")
        store = Store(base)
        peers = [
            Peer(store.load(adapter_folder.read(tmp_path, name, base)), oracle) for name, oracle in oracles.items()
        ]
        grouped = GroupedSegments(triton_kernels, base.layers, CPU)
        varlen = VarlenAttention(flash, triton_kernels.put_in_front)
        grouped_heads = GroupedHeads(triton_kernels)
        forward = Forward(
            base, encoder, uses_kernels=False, segments=grouped, attention=varlen, grouped_heads=grouped_heads
        )
        found = forward.run([peer.job(text) for peer in peers for text in tokens])
        expected = [peer.logits(text) for peer in peers for text in tokens]
        for answer, oracle_answer in zip(found, expected, strict=True):
            torch.testing.assert_close(answer, oracle_answer, rtol=1e-4, atol=1e-4)


def _halve(folder: Path, oracle: PeftModel) -> None:
    """Round an adapter to half precision, on both sides."""
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    with torch.no_grad():
        for parameter in oracle.parameters():
            if parameter.requires_grad:
                parameter.copy_(parameter.half())


def test_a_table_is_forgotten_with_its_adapter(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", "bert")
    for name, config in peft_configs("bert").items():
        make_adapter(tmp_path / name, folder, config, 3, seed=0)
    base = load_base(str(folder), "cpu", "float32")
    store = Store(base)
    grouped = GroupedSegments(triton_kernels, base.layers, CPU)
    adapters = [store.load(adapter_folder.read(tmp_path, name, base)) for name in ("lora-qv", "ia3-paper", "prefix")]
    grouped.begin(adapters, range(4))
    grouped.end()
    assert len(grouped._tables) == 2  # the prefix acts at no linear layer
    store.close()
    del adapters, store
    gc.collect()
    assert len(grouped._tables) == 0


@pytest.mark.parametrize("make", [device_code.grouped_segments, device_code.grouped_heads])
@pytest.mark.parametrize("fault", ["absent", "wrong", "raises"])
def test_without_it_torch_does_the_work(
    make: Callable[[BaseModel], object | None],
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No Triton, a kernel that computes something else, one that does not compile."""
    base = load_base(str(make_base(tmp_path / "base", "bert")), "cpu", "float32")
    assert make(base) is not None
    assert "kernels_ready" in capsys.readouterr().err
    broken = ModuleType("server.triton_kernels")
    if fault == "wrong":
        broken.add_low_rank = broken.change = lambda *_, **__: None  # type: ignore[attr-defined]
        broken.apply_head_layer = lambda x, out, *_: out.zero_()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "server.triton_kernels", None if fault == "absent" else broken)
    monkeypatch.delattr(importlib.import_module("server"), "triton_kernels")
    assert make(base) is None
    log = capsys.readouterr().err
    assert "kernels_absent" in log
    assert {"absent": "ModuleNotFoundError", "wrong": "differ from torch", "raises": "AttributeError"}[fault] in log


@pytest.mark.parametrize("fault", ["absent", "wrong", "raises"])
def test_without_its_kernel_prefixes_are_put_in_front_by_torch(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And flash attention attends all the same."""
    base = load_base(str(make_base(tmp_path / "base", "llama")), "cpu", "bfloat16")
    monkeypatch.setattr(device_code, "flash", lambda: flash)
    found = device_code.varlen_attention(base)
    assert found is not None
    assert found.moves_prefixes
    assert "kernels_absent" not in capsys.readouterr().err
    broken = ModuleType("server.triton_kernels")
    if fault == "wrong":
        broken.put_in_front = lambda keys, values, sources, *_: torch.zeros(2, len(sources), keys.shape[1]).to(keys)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "server.triton_kernels", None if fault == "absent" else broken)
    monkeypatch.delattr(importlib.import_module("server"), "triton_kernels")
    found = device_code.varlen_attention(base)
    assert found is not None
    assert not found.moves_prefixes
    assert capsys.readouterr().err.count("kernels_absent") == 1
    heads = device_code.heads_of(base)
    for dtype in DTYPES:
        check(attention_error(found.attend, CPU, base.dtype, heads, reads_only=True, prefix_dtype=dtype), base.dtype)


@pytest.mark.parametrize("part", [device_code.grouped_segments, device_code.varlen_attention])
def test_a_device_that_a_kernel_has_ended_ends_the_start(
    part: Callable[[BaseModel], object], bert_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to fall back on in this process."""

    def fail(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(device_code, "operation_error", fail)
    monkeypatch.setattr(device_code, "does_work", lambda device: False)
    with pytest.raises(BaseModelError, match=r"cpu does nothing more .* failed \(.*start with --kernels off"):
        part(bert_base)


def test_flash_attention_is_not_asked_for_what_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = load_base(str(make_base(tmp_path / "base", "llama")), "cpu", "float32")
    assert device_code.varlen_attention(base) is None
    assert "takes half precision" in capsys.readouterr().err
    narrow = make_base(tmp_path / "narrow", "bert", hidden_size=48, num_attention_heads=4)
    assert device_code.varlen_attention(load_base(str(narrow), "cpu", "bfloat16")) is None
    assert "no heads of 12 numbers" in capsys.readouterr().err
