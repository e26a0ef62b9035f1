"""Heads of many adapters at once, by Triton's interpreter; head by head in torch is the oracle."""

from __future__ import annotations

import gc
import os
import types
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu

os.environ["TRITON_INTERPRET"] = "1"  # read where the kernels are defined
pytest.importorskip("triton", reason="there is no Triton on this machine")

from server import adapter_folder, device_code, heads, triton_kernels
from server.device_code import check
from server.device_trial import DrawnHead, head_error
from server.forward import Forward, load_base
from server.grouped import DTYPES
from server.grouped_heads import GroupedHeads, table_of
from server.heads import Head, Layer, Norm, Share, head_shapes
from server.store import Store
from tests.seeded import Peer, make_adapter, make_base, peft_configs
from tests.test_adapter_folder import add_manifest

CPU = torch.device("cpu")
KINDS: list[tuple[Layer, ...]] = [
    (Layer("classifier"),),
    (Layer("score", has_bias=False),),
    (Layer("first", activation=torch.tanh), Layer("last")),
    (Layer("first", False, gelu, Norm("norm", 1e-5, has_bias=False)), Layer("last")),
    (Layer("first", True, gelu, Norm("norm", 1e-5, has_bias=True)), Layer("last", has_bias=False)),
]

drawn_heads = st.lists(
    st.builds(
        DrawnHead,
        layers=st.sampled_from(KINDS),
        num_texts=st.sampled_from([1, 2, 16, 17]),
        num_labels=st.sampled_from([1, 2, 3, 31, 32, 33, 150]),
        dtype=st.sampled_from(DTYPES),
        first_dtype=st.sampled_from(DTYPES),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=10, deadline=None)
@given(drawn_heads, st.sampled_from([16, 48, 72, 130]))
def test_heads_equal_torch_s(drawn: list[DrawnHead], hidden_size: int) -> None:
    """Any kinds, formats and numbers of labels and texts side by side."""
    check(head_error(triton_kernels, CPU, hidden_size, drawn), torch.float32)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "modernbert", "llama"])
def test_every_family_s_heads_are_tried_at_the_start(
    model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_base(str(make_base(tmp_path / "base", model_type)), "cpu", "float32")
    for layers in (base.native_head.layers, base.family.linear_head()):
        assert table_of(make_head(layers, base.hidden_size)) is not None
    assert device_code.grouped_heads(base) is not None
    assert "kernels_ready" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, by which the interpreter computes
def test_a_text_that_is_not_finite_spoils_no_other() -> None:
    for wrong in (torch.nan, torch.inf):
        pooled = torch.randn(20, 48)
        pooled[5, 3] = wrong
        shares = [Share(0, 9, make_head(KINDS[4], 48)), Share(9, 20, make_head(KINDS[4], 48))]
        found = GroupedHeads(triton_kernels).logits(pooled, shares).view(20, 3)
        assert found.isfinite().all(1).tolist() == [row != 5 for row in range(20)]


@pytest.mark.parametrize("fault", ["format", "formats", "norm's formats", "order", "activation", "norm"])
def test_what_kernels_cannot_do_is_torch_s_in_the_same_batch(fault: str) -> None:
    kind = KINDS[4] if fault == "norm's formats" else KINDS[0]
    if fault == "activation":
        kind = (Layer("classifier", activation=torch.tanh),)
    if fault == "norm":
        kind = (Layer("classifier", norm=Norm("norm", 1e-5, has_bias=True)),)
    other = make_head(kind, 48)
    tensors = dict(other.tensors)
    if fault == "format":
        tensors = {name: tensor.double() for name, tensor in tensors.items()}
    if fault == "formats":
        tensors["classifier.bias"] = tensors["classifier.bias"].half()
    if fault == "norm's formats":
        tensors["norm.bias"] = tensors["norm.bias"].half()
    if fault == "order":
        tensors["classifier.weight"] = tensors["classifier.weight"].mT.contiguous().mT
    other = Head(kind, tensors)
    assert table_of(other) is None
    pooled = torch.randn(9, 48)
    shares = [Share(0, 2, make_head(KINDS[0], 48)), Share(2, 5, other), Share(5, 9, make_head(KINDS[2], 48))]
    found = GroupedHeads(triton_kernels).logits(pooled, shares)
    torch.testing.assert_close(found, heads.logits(pooled, shares), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "modernbert"])
def test_a_mixed_batch_launches_a_layer_of_each_kind_of_head_once(model_type: str, tmp_path: Path) -> None:
    """Adapters behind the architecture's own pooling and behind ours, against plain peft and the plain path."""
    base = load_base(str(make_base(tmp_path / "base", model_type)), "cpu", "float32")
    store, peers = Store(base), []
    for number, (way, pooling) in enumerate(product(("lora-qv", "ia3-paper", "lora-rs"), ("native", "mean"))):
        path, config = tmp_path / f"{way}-{pooling}", peft_configs(model_type)[way]
        oracle = make_adapter(path, base.folder, config, 2 + number, seed=number, pooling=pooling)
        add_manifest(path, base, pooling=pooling)
        peers.append(Peer(store.load(adapter_folder.read(tmp_path, path.name, base)), oracle))
    texts = [[5], list(range(5, 12))]
    work = [peer.job(text) for peer in peers for text in texts]
    launched: list[int] = []

    def apply_head_layer(x: Tensor, out: Tensor, tiles: Tensor, *rest: Any) -> None:
        launched.append(len(tiles))
        triton_kernels.apply_head_layer(x, out, tiles, *rest)

    kernels = types.SimpleNamespace(apply_head_layer=apply_head_layer)
    found = Forward(base, uses_kernels=False, grouped_heads=GroupedHeads(kernels)).run(work)
    assert launched == [3, 3, 3]  # each with a tile of every adapter of its kind
    expected = [peer.logits(text) for peer in peers for text in texts]
    plain = Forward(load_base(str(base.folder), "cpu", "float32"), uses_kernels=False).run(work)
    for answer, of_peft, of_plain in zip(found, expected, plain, strict=True):
        torch.testing.assert_close(answer, of_peft, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(answer, of_plain, rtol=1e-5, atol=1e-5)


def test_a_table_is_forgotten_with_its_head() -> None:
    grouped = GroupedHeads(triton_kernels)
    kept, gone = make_head(KINDS[0], 48), make_head(KINDS[2], 48)
    grouped.logits(torch.randn(2, 48), [Share(0, 1, kept), Share(1, 2, gone)])
    assert len(grouped._tables) == 2
    del gone
    gc.collect()
    assert list(grouped._tables) == [kept]


def make_head(layers: tuple[Layer, ...], hidden_size: int, num_labels: int = 3) -> Head:
    return Head(
        layers, {name: torch.randn(shape) for name, shape in head_shapes(layers, hidden_size, num_labels).items()}
    )
