"""The server's mixed batch against plain peft, one text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from server import adapter_folder
from server.base_model import EMBEDDED_ID, BaseModel
from server.errors import AdapterMismatch
from server.forward import Forward, load_base
from server.jobs import Job
from server.store import Store
from tests.seeded import MAX_LENGTH, VOCABULARY, Peer, make_adapter, make_base, peft_configs
from tests.test_adapter_folder import add_manifest
from training.model import PooledClassifier

TOLERANCE = 1e-5


def _tokens(length: int, seed: int) -> list[int]:
    return torch.randint(5, VOCABULARY - 3, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _fit(length: int, peer: Peer) -> int:
    """A prefix that shifts positions takes some of the base model's length."""
    return min(length, MAX_LENGTH - peer.loaded.position_offset)


def _assert_close(ours: torch.Tensor, oracle: torch.Tensor) -> None:
    assert ours.shape == oracle.shape
    torch.testing.assert_close(ours, oracle, rtol=TOLERANCE, atol=TOLERANCE)


def test_adapters_answer_differently(peers: list[Peer]) -> None:
    """Otherwise a wrong adapter would go unnoticed below."""
    answers = [peer.logits(_tokens(12, 0)) for peer in peers]
    first, second, *_ = [answer for answer in answers if len(answer) == 2]
    assert (first - second).abs().max() > 0.05


def test_every_adapter_of_a_mixed_batch_equals_plain_peft(forward: Forward, peers: list[Peer]) -> None:
    lengths = (1, 2, 17, 64, 200, 511, MAX_LENGTH)
    texts = [(peer, _tokens(_fit(length, peer), 31 * i + length)) for i, peer in enumerate(peers) for length in lengths]
    answers = forward.run([peer.job(tokens) for peer, tokens in texts])
    for (peer, tokens), answer in zip(texts, answers, strict=True):
        _assert_close(answer, peer.logits(tokens))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_mixes_equal_plain_peft(forward: Forward, peers: list[Peer], data: st.DataObject) -> None:
    one = st.tuples(st.integers(0, len(peers) - 1), st.integers(1, 60) | st.integers(1, MAX_LENGTH), st.integers(0, 99))
    drawn = data.draw(st.lists(one, min_size=1, max_size=12))
    texts = [(peers[index], _tokens(_fit(length, peers[index]), seed)) for index, length, seed in drawn]
    answers = forward.run([peer.job(tokens) for peer, tokens in texts])
    for (peer, tokens), answer in zip(texts, answers, strict=True):
        _assert_close(answer, peer.logits(tokens))


def test_a_row_is_the_same_alone_and_in_a_crowd(forward: Forward, peers: list[Peer]) -> None:
    texts = [(peers[i % len(peers)], _tokens(1 + 7 * i % 90, i)) for i in range(60)]
    crowd = forward.run([peer.job(tokens) for peer, tokens in texts])
    for (peer, tokens), answer in zip(texts, crowd, strict=True):
        _assert_close(answer, forward.run([peer.job(tokens)])[0])


def test_texts_with_the_padding_token_equal_plain_peft(base: BaseModel, forward: Forward, peers: list[Peer]) -> None:
    """The stock decoder head looks for the last token that is not padding; RoBERTa does not count padding."""
    pad = base.pad_id
    assert pad is not None
    texts = [
        (peer, tokens)
        for peer in peers
        for tokens in ([4, 20, 30, pad], [4, 20, pad, pad], [4, pad, 20, 30], [pad, 9], [pad])
    ]
    answers = forward.run([peer.job(tokens) for peer, tokens in texts])
    for (peer, tokens), answer in zip(texts, answers, strict=True):
        _assert_close(answer, peer.logits(tokens))


def test_the_librarys_own_layers_equal_plain_peft_too(base: BaseModel, peers: list[Peer]) -> None:
    """Where we run an encoder's layers ourselves, the library's model code still can."""
    forward = Forward(load_base(str(base.folder), "cpu", "float32"), encoder="library")
    texts = [(peer, _tokens(length, length)) for peer in peers for length in (1, 40, 41)]
    answers = forward.run([peer.job(tokens) for peer, tokens in texts])
    for (peer, tokens), answer in zip(texts, answers, strict=True):
        _assert_close(answer, peer.logits(tokens))


def test_the_order_of_a_batch_does_not_matter(forward: Forward, peers: list[Peer]) -> None:
    work = [peers[i % len(peers)].job(_tokens(5 + i, i)) for i in range(20)]
    straight, reverse = forward.run(work), forward.run(work[::-1])
    for answer, other in zip(straight, reverse[::-1], strict=True):
        _assert_close(answer, other)


def test_own_poolings_equal_the_training_model(
    model_type: str, base: BaseModel, forward: Forward, tmp_path: Path
) -> None:
    """mean, cls and last in one batch, against the model class that trains them."""
    root, store, work, oracles = tmp_path, Store(base), [], []
    for index, pooling in enumerate(("mean", "cls", "last", "native")):
        configs = peft_configs(model_type)
        for name in {"lora-qv", "ia3-paper", "prefix"} & configs.keys():
            folder, config = f"{pooling}-{name}", configs[name]
            oracle = make_adapter(root / folder, base.folder, config, 3, seed=index, pooling=pooling)
            positions = "shifted" if name == "prefix" and pooling == "native" else "kept"
            add_manifest(root / folder, base, pooling=pooling, positions=positions, max_length=500)
            peer = Peer(store.load(adapter_folder.read(root, folder, base)), oracle)
            for length in (1, 9, 130):
                work.append(peer.job(_tokens(length, length)))
                oracles.append(peer.logits(_tokens(length, length)))
    for answer, oracle_answer in zip(forward.run(work), oracles, strict=True):
        _assert_close(answer, oracle_answer)


def _equals_plain_peft(base: BaseModel, root: Path, name: str, oracle: PeftModel) -> None:
    peer = Peer(Store(base).load(adapter_folder.read(root, name, base)), oracle)
    for length in (1, 50, 300):
        tokens = _tokens(length, length)
        _assert_close(Forward(base).run([peer.job(tokens)])[0], peer.logits(tokens))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_that_are_stored_in_half_precision_equal_plain_peft(
    bert_base: BaseModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    """peft widens them when it loads them, the server when it uses them."""
    forward, store, work, expected = Forward(bert_base), Store(bert_base), [], []
    for index, (name, config) in enumerate(peft_configs("bert").items()):
        make_adapter(tmp_path / name, bert_base.folder, config, 3, seed=index)
        path = tmp_path / name / "adapter_model.safetensors"
        save_file({key: tensor.to(dtype) for key, tensor in load_file(path).items()}, path)
        oracle = PeftModel.from_pretrained(
            PooledClassifier.load(str(bert_base.folder), 3, "native"), tmp_path / name
        ).eval()
        peer = Peer(store.load(adapter_folder.read(tmp_path, name, bert_base)), oracle)
        for length in (1, 7, 90):
            work.append(peer.job(_tokens(length, index)))
            expected.append(peer.logits(_tokens(length, index)))
    for answer, oracle_answer in zip(forward.run(work), expected, strict=True):
        _assert_close(answer, oracle_answer)


def test_a_prefix_takes_its_share_of_a_window(tmp_path: Path) -> None:
    """Keys of a prefix count in the library's window: texts that would push it out are not taken."""
    folder = make_base(tmp_path / "tiny", "mistral", sliding_window=32)
    base = load_base(str(folder), "cpu", "float32")
    oracle = make_adapter(tmp_path / "a", folder, peft_configs("mistral")["prefix"], 3, seed=0, pooling="last")
    add_manifest(tmp_path / "a", base, pooling="last", positions="kept", max_length=27)
    with pytest.raises(AdapterMismatch, match="takes 26 tokens"):
        adapter_folder.read(tmp_path, "a", base)
    add_manifest(tmp_path / "a", base, pooling="last", positions="kept", max_length=26)
    peer = Peer(Store(base).load(adapter_folder.read(tmp_path, "a", base)), oracle)
    for length in (1, 25, 26):
        _assert_close(Forward(base).run([peer.job(_tokens(length, 0))])[0], peer.logits(_tokens(length, 0)))


def test_a_bert_that_is_a_decoder_runs_in_the_librarys_code(tmp_path: Path) -> None:
    base = load_base(str(make_base(tmp_path / "tiny", "bert", is_decoder=True)), "cpu", "float32")
    oracle = make_adapter(tmp_path / "a", base.folder, peft_configs("bert")["lora-qv"], 3, seed=0)
    _equals_plain_peft(base, tmp_path, "a", oracle)


def test_a_bert_that_knows_no_pairs_ignores_type_ids(tmp_path: Path) -> None:
    base = load_base(str(make_base(tmp_path / "tiny", "bert", type_vocab_size=1)), "cpu", "float32")
    make_adapter(tmp_path / "a", base.folder, peft_configs("bert")["lora-qv"], 3, seed=0)
    adapter = Store(base).load(adapter_folder.read(tmp_path, "a", base))
    one, pair = (Job("a", "v", (2, 9, 3, 10, 3), kinds) for kinds in ((0,) * 5, (0, 0, 0, 1, 1)))
    first, second = Forward(base).run([(one, adapter), (pair, adapter)])
    _assert_close(first, second)


def test_camembert_is_a_roberta(tmp_path: Path) -> None:
    base = load_base(str(make_base(tmp_path / "tiny", "camembert")), "cpu", "float32")
    oracle = make_adapter(tmp_path / "a", base.folder, peft_configs("camembert")["lora-all"], 3, seed=0)
    _equals_plain_peft(base, tmp_path, "a", oracle)


def test_a_distilbert_adapter_that_peft_saved_by_itself_is_whole(base_folders: dict[str, Path], tmp_path: Path) -> None:
    """peft saves modules whose names end in `classifier`, so `pre_classifier` too."""
    base = load_base(str(base_folders["distilbert"]), "cpu", "float32")
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"])
    oracle = make_adapter(tmp_path / "a", base.folder, config, 3, seed=0)
    _equals_plain_peft(base, tmp_path, "a", oracle)


def test_a_head_that_the_base_folder_holds_need_not_be_in_the_adapter(tmp_path: Path) -> None:
    """A ModernBERT from the hub brings the head of its pre-training, and peft by itself saves the last layer only."""
    settings: dict[str, Any] = {
        "norm_bias": True,
        "classifier_bias": True,
        "classifier_activation": "silu",
        "classifier_pooling": "cls",
    }
    base_folder = make_base(tmp_path / "tiny", "modernbert", **settings)
    whole = AutoModelForMaskedLM.from_pretrained(base_folder)
    with torch.no_grad():
        for parameter in whole.head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    whole.save_pretrained(base_folder)
    base = load_base(str(base_folder), "cpu", "float32")
    assert len(base.native_head.tensors) == 4
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["Wqkv"])
    oracle = make_adapter(tmp_path / "a", base_folder, config, 3, seed=0)
    assert not any("head" in key for key in load_file(tmp_path / "a" / adapter_folder.WEIGHTS_FILE))
    _equals_plain_peft(base, tmp_path, "a", oracle)


def test_the_embedded_base_model_equals_plain_peft_too(tmp_path: Path) -> None:
    base = load_base(EMBEDDED_ID, "cpu", "float32")
    forward, store, configs = Forward(base), Store(base), peft_configs("bert")
    work, expected = [], []
    for seed, name in enumerate(("lora-qv", "lora-all", "lora-rs", "ia3-paper")):
        oracle = make_adapter(tmp_path / name, base.folder, configs[name], 2 + seed, seed)
        peer = Peer(store.load(adapter_folder.read(tmp_path, name, base)), oracle)
        for length in (1, 23, 128):
            tokens = [101, *_tokens(length, seed), 102]
            work.append(peer.job(tokens))
            expected.append(peer.logits(tokens))
    for answer, oracle_answer in zip(forward.run(work), expected, strict=True):
        _assert_close(answer, oracle_answer)


def test_bfloat16_stays_near_float32(model_type: str, base: BaseModel, peers: list[Peer]) -> None:
    rough = Forward(load_base(str(base.folder), "cpu", "bfloat16"))
    work = [peer.job(_tokens(20, i)) for i, peer in enumerate(peers)]
    for answer, (_, adapter), peer in zip(rough.run(work), work, peers, strict=True):
        exact = peer.logits(_tokens(20, peers.index(peer)))
        assert {tensor.dtype for tensor in adapter.head.tensors.values()} == {torch.float32}
        assert (answer - exact).abs().max() < 0.05 * exact.abs().max() + 0.1
