"""What is refused when an adapter folder is read, and why."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from server import adapter_folder, manifest
from server.base_model import BaseModel
from server.errors import (
    AdapterDamaged,
    AdapterMismatch,
    AdapterRefused,
    MethodUnsupported,
    PathEscape,
    PickleRefused,
)
from server.forward import load_base
from server.manifest import Manifest
from server.methods import method_of
from server.store import Store
from tests.seeded import make_adapter, make_base, peft_configs
from training.peft_head import HeadConfig

WEIGHTS, CONFIG = adapter_folder.WEIGHTS_FILE, adapter_folder.CONFIG_FILE


def add_manifest(folder: Path, base: BaseModel, **changes: Any) -> None:
    """Turn a PEFT folder into one of ours."""
    config = json.loads((folder / CONFIG).read_text())
    tensors = load_file(folder / WEIGHTS)
    native = changes.get("pooling", "native") == "native"
    last = (base.native_head.layers if native else base.family.linear_head())[-1]
    head = next(tensor for key, tensor in tensors.items() if key.endswith(f".{last.name}.weight"))
    facts: dict[str, Any] = {
        "method": method_of(config["peft_type"]).name,
        "labels": tuple(f"label{index}" for index in range(len(head))),
        "problem_type": "single_label",
        "max_length": 512,
        "pooling": "native",
        "temperature": 1.0,
        "base_name": base.name,
        "base_fingerprint": base.fingerprint,
        "weights_sha256": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
    }
    manifest.write(Manifest(**(facts | changes)), folder)


@pytest.fixture(scope="module")
def template(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "good"
    make_adapter(folder, bert_base.folder, LoraConfig(task_type="SEQ_CLS", r=4), 3, seed=0)
    return folder


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "root" / "good")
    return tmp_path / "root"


def edit_config(root: Path, **changes: Any) -> None:
    path = root / "good" / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(root: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = root / "good" / WEIGHTS
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refused(root: Path, base: BaseModel, kind: type[AdapterRefused], *words: str) -> None:
    """By what the folder says, or at the latest when its weights are read."""
    with pytest.raises(kind) as caught:
        Store(base).load(adapter_folder.read(root, "good", base))
    for word in words:
        assert word in str(caught.value)


def test_a_foreign_folder_takes_native_pooling_and_numbered_labels(root: Path, bert_base: BaseModel) -> None:
    folder = adapter_folder.read(root, "good", bert_base)
    assert folder.manifest.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert folder.manifest.pooling == "native"
    assert any("adapter.json" in warning for warning in folder.warnings)


def test_a_folder_with_a_manifest_has_no_warnings(root: Path, bert_base: BaseModel) -> None:
    add_manifest(root / "good", bert_base)
    folder = adapter_folder.read(root, "good", bert_base)
    assert folder.warnings == ()
    assert folder.manifest.labels == ("label0", "label1", "label2")


def test_the_version_follows_the_content(root: Path, bert_base: BaseModel) -> None:
    first = adapter_folder.read(root, "good", bert_base).version
    assert re.fullmatch(r"[0-9a-f]{12}", first)
    assert adapter_folder.read(root, "good", bert_base).version == first
    add_manifest(root / "good", bert_base)
    assert adapter_folder.read(root, "good", bert_base).version != first


def test_resident_bytes_stay_within_a_tenth_of_the_file(root: Path, bert_base: BaseModel) -> None:
    loaded = Store(bert_base).load(adapter_folder.read(root, "good", bert_base))
    tensors = sum(tensor.nbytes for tensor in load_file(root / "good" / WEIGHTS).values())
    assert loaded.resident_bytes == tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read(root: Path, bert_base: BaseModel, dtype: torch.dtype) -> None:
    edit_weights(root, lambda tensors: tensors.update({k: v.to(dtype) for k, v in tensors.items()}))
    loaded = Store(bert_base).load(adapter_folder.read(root, "good", bert_base))
    assert loaded.head.logits(torch.zeros(1, bert_base.hidden_size)).dtype == torch.float32


def test_what_passed_once_vouches_for_the_same_bytes_only(root: Path, bert_base: BaseModel, tmp_path: Path) -> None:
    """Adapters trained alike are checked once; one of another configuration, other shapes or another base is not."""
    add_manifest(root / "good", bert_base)
    first, again = (adapter_folder.read(root, "good", bert_base) for _ in range(2))
    assert first.tensors is again.tensors
    edit_config(root, r=5)
    for _ in range(2):
        refused(root, bert_base, AdapterMismatch, "shape [4, 48]", "[5, 48]")
    edit_config(root, r=4)
    edit_weights(root, lambda tensors: tensors.popitem())
    for _ in range(2):
        refused(root, bert_base, AdapterDamaged)
    shutil.rmtree(root / "good")
    make_adapter(root / "good", bert_base.folder, LoraConfig(task_type="SEQ_CLS", r=4), 3, seed=0)
    adapter_folder.read(root, "good", bert_base)
    other = load_base(str(make_base(tmp_path / "other", "bert", hidden_size=64)), "cpu", "float32")
    refused(root, other, AdapterMismatch)


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
def test_a_missing_file_is_named(root: Path, bert_base: BaseModel, file: str) -> None:
    (root / "good" / file).unlink()
    refused(root, bert_base, AdapterDamaged, file, "missing")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_cut_weights_file_is_damaged(root: Path, bert_base: BaseModel, keep: int) -> None:
    path = root / "good" / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    refused(root, bert_base, AdapterDamaged, WEIGHTS)


def test_a_header_that_promises_more_than_the_file_holds_is_damaged(root: Path, bert_base: BaseModel) -> None:
    header = b'{"x":{"dtype":"F32","shape":[1000000000,1000],"data_offsets":[0,4000000000000]}}'
    (root / "good" / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    refused(root, bert_base, AdapterDamaged, WEIGHTS)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"a": ' * 2000])
def test_a_config_that_is_no_object_is_damaged(root: Path, bert_base: BaseModel, text: str) -> None:
    (root / "good" / CONFIG).write_text(text)
    refused(root, bert_base, AdapterRefused, "")


def test_a_pickle_is_refused_by_name(root: Path, bert_base: BaseModel) -> None:
    (root / "good" / WEIGHTS).rename(root / "good" / "adapter_model.bin")
    refused(root, bert_base, PickleRefused, "adapter_model.bin", "pickle")


def test_links_out_of_the_root_are_refused(root: Path, bert_base: BaseModel, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    (root / "good" / WEIGHTS).rename(outside)
    (root / "good" / WEIGHTS).symlink_to(outside)
    refused(root, bert_base, PathEscape, "root")


def test_a_folder_link_out_of_the_root_is_refused(root: Path, bert_base: BaseModel, tmp_path: Path) -> None:
    shutil.move(root / "good", tmp_path / "elsewhere")
    (root / "good").symlink_to(tmp_path / "elsewhere")
    refused(root, bert_base, PathEscape, "root")


def test_a_loop_of_links_is_refused(root: Path, bert_base: BaseModel) -> None:
    (root / "good" / CONFIG).unlink()
    (root / "good" / CONFIG).symlink_to(root / "good" / CONFIG)
    refused(root, bert_base, AdapterRefused, CONFIG)


@pytest.mark.parametrize("name", ["../good", "..", ".hidden", "a/b", "a\x00b", "", "x" * 129, "é"])
def test_names_that_could_leave_the_root_are_refused(root: Path, bert_base: BaseModel, name: str) -> None:
    with pytest.raises(PathEscape):
        adapter_folder.read(root, name, bert_base)


@pytest.mark.parametrize("peft_type", ["VERA", "PROMPT_TUNING", None, 3])
def test_unsupported_methods_are_named_with_the_list(root: Path, bert_base: BaseModel, peft_type: object) -> None:
    edit_config(root, peft_type=peft_type)
    refused(root, bert_base, MethodUnsupported, repr(peft_type), "LORA", "IA3")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("layer_replication", [[0, 1]]),
        ("init_lora_weights", "pissa_niter_4"),
        ("target_parameters", ["x"]),
        ("an_option_of_next_year", 1),
    ],
)
def test_options_that_change_the_result_are_refused_by_name(
    root: Path, bert_base: BaseModel, field: str, value: object
) -> None:
    edit_config(root, **{field: value})
    refused(root, bert_base, MethodUnsupported, field)


def test_another_task_is_refused(root: Path, bert_base: BaseModel) -> None:
    edit_config(root, task_type="CAUSAL_LM")
    refused(root, bert_base, MethodUnsupported, "CAUSAL_LM")


@pytest.mark.parametrize("rank", [0, -1, 5, 10**9, 2.5, "8", None, True])
def test_a_rank_that_does_not_fit_the_tensors_is_refused(root: Path, bert_base: BaseModel, rank: object) -> None:
    edit_config(root, r=rank)
    refused(root, bert_base, AdapterRefused, "")


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_would_never_end_is_refused(root: Path, bert_base: BaseModel, field: str) -> None:
    edit_config(root, **{field: {"(.*)(.*)(.*)(.*)(.*)(.*)(?:\\3\\4\\5)+\\d": 4}})
    with pytest.raises(AdapterDamaged, match="takes more than"):
        Store(bert_base).load(adapter_folder.read(root, "good", bert_base))


@pytest.mark.parametrize("targets", [["query"], r".*\.query", [3], {"a": 1}])
def test_weights_outside_the_targets_are_refused(root: Path, bert_base: BaseModel, targets: object) -> None:
    edit_config(root, target_modules=targets)
    refused(root, bert_base, AdapterDamaged, "target_modules")


@pytest.mark.parametrize(
    ("field", "leaving_out", "keeping"),
    [
        ("exclude_modules", ["value"], ["dense"]),
        ("exclude_modules", r".*layer\.0\..*", r".*layer\.7\..*"),
        ("layers_to_transform", [0], [0, 1]),
        ("layers_to_transform", 1, []),
    ],
)
def test_weights_that_peft_would_leave_out_are_refused(
    root: Path, bert_base: BaseModel, field: str, leaving_out: object, keeping: object
) -> None:
    edit_config(root, **{field: leaving_out})
    refused(root, bert_base, AdapterDamaged, field)
    edit_config(root, **{field: keeping})
    assert adapter_folder.read(root, "good", bert_base).tensors


def test_a_pipe_in_place_of_a_file_does_not_hang_the_start(root: Path, bert_base: BaseModel) -> None:
    (root / "good" / CONFIG).unlink()
    os.mkfifo(root / "good" / CONFIG)
    refused(root, bert_base, AdapterDamaged, "not a file")


def test_a_sparse_file_is_refused_before_it_is_read(root: Path, bert_base: BaseModel) -> None:
    path = root / "good" / WEIGHTS
    with path.open("r+b") as file:
        file.truncate(3 << 30)
    refused(root, bert_base, AdapterDamaged, "its header says")


def write_header(root: Path, header: bytes, num_bytes: int = 4) -> None:
    (root / "good" / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * num_bytes)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e999]}}',
        b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [false, "4"]}}',
        b'{"a": {"dtype": "F32", "shape": [1.9], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "dtype": "F16"}}',
        b'{"a": 1, "a": 2}',
        b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "\\ud800", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [' + b"9," * 100_000 + b'1], "data_offsets": [0, 4]}}',
        b'{"' + b"a" * 100_000 + b'": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b"[" * 100_000,
        b'["a"]',
        b"null",
    ],
)
def test_a_malformed_header_is_refused_at_once_in_one_short_sentence(
    root: Path, bert_base: BaseModel, header: bytes
) -> None:
    write_header(root, header)
    began = time.process_time()
    with pytest.raises(AdapterDamaged) as caught:
        adapter_folder.read(root, "good", bert_base)
    assert time.process_time() - began < 1
    assert len(str(caught.value).encode("utf-8")) < 500


def test_two_names_for_one_tensor_are_refused(root: Path, bert_base: BaseModel) -> None:
    """Plain peft would read only one of them."""
    edit_weights(root, lambda t: t.update({"classifier.weight": t["base_model.model.classifier.weight"] + 1}))
    refused(root, bert_base, AdapterDamaged, "classifier.weight")


@pytest.mark.parametrize("value", [10**400, 1e300, 1e6 + 1, float("nan"), "8", None, True])
def test_an_alpha_that_is_no_fit_number_is_refused(root: Path, bert_base: BaseModel, value: object) -> None:
    edit_config(root, lora_alpha=value)
    with pytest.raises(AdapterDamaged, match="lora_alpha"):
        Store(bert_base).load(adapter_folder.read(root, "good", bert_base))


def test_a_bad_pattern_is_refused(root: Path, bert_base: BaseModel) -> None:
    edit_config(root, rank_pattern={"(": 4})
    refused(root, bert_base, AdapterDamaged, "rank_pattern")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(root: Path, bert_base: BaseModel, value: float) -> None:
    edit_weights(root, lambda t: t.update({"base_model.model.classifier.bias": torch.full((3,), value)}))
    refused(root, bert_base, AdapterDamaged, "classifier.bias", "finite")


def test_a_tensor_of_the_wrong_type_is_refused(root: Path, bert_base: BaseModel) -> None:
    edit_weights(root, lambda t: t.update({"base_model.model.classifier.bias": torch.zeros(3, dtype=torch.int64)}))
    refused(root, bert_base, AdapterDamaged, "I64")


def test_a_tensor_that_belongs_nowhere_is_refused(root: Path, bert_base: BaseModel) -> None:
    edit_weights(root, lambda t: t.update({"base_model.model.bert.embeddings.word_embeddings.weight": torch.zeros(2)}))
    refused(root, bert_base, AdapterDamaged, "word_embeddings")


def test_a_folder_with_a_head_only_holds_nothing_else(root: Path, bert_base: BaseModel) -> None:
    tensors = load_file(root / "good" / WEIGHTS)
    stray = next(key for key in tensors if "lora_A" in key)
    shutil.rmtree(root / "good")
    make_adapter(root / "good", bert_base.folder, HeadConfig(task_type="SEQ_CLS"), 3, seed=0)
    loaded = Store(bert_base).load(adapter_folder.read(root, "good", bert_base))
    assert loaded.rows == {}
    edit_weights(root, lambda t: t.update({stray: tensors[stray]}))
    refused(root, bert_base, AdapterDamaged, stray)


def test_half_a_pair_is_refused(root: Path, bert_base: BaseModel) -> None:
    edit_weights(root, lambda t: t.pop(next(key for key in t if "lora_A" in key)))
    refused(root, bert_base, AdapterDamaged, "lora_A")


def test_a_file_without_a_head_is_refused(root: Path, bert_base: BaseModel) -> None:
    edit_weights(root, lambda t: [t.pop(key) for key in list(t) if "classifier" in key])
    refused(root, bert_base, AdapterDamaged, "head")


def test_an_adapter_of_a_wider_base_is_a_mismatch(bert_base: BaseModel, tmp_path: Path) -> None:
    other = make_base(tmp_path / "tiny-bert", "bert", hidden_size=64)
    make_adapter(tmp_path / "root" / "good", other, LoraConfig(task_type="SEQ_CLS", r=4), 3, seed=0)
    refused(tmp_path / "root", bert_base, AdapterMismatch, "tiny-bert")


def test_an_adapter_of_another_architecture_is_refused(
    bert_base: BaseModel, base_folders: dict[str, Path], tmp_path: Path
) -> None:
    make_adapter(tmp_path / "root" / "good", base_folders["llama"], LoraConfig(task_type="SEQ_CLS"), 3, seed=0)
    refused(tmp_path / "root", bert_base, AdapterRefused, "")


def test_a_foreign_folder_that_names_another_base_is_a_mismatch(root: Path, bert_base: BaseModel) -> None:
    edit_config(root, base_model_name_or_path="bert-base-uncased")
    refused(root, bert_base, AdapterMismatch, "bert-base-uncased")


def test_a_foreign_folder_with_an_unknown_local_base_is_served_with_a_warning(root: Path, bert_base: BaseModel) -> None:
    edit_config(root, base_model_name_or_path="/home/someone/model")
    assert any("/home/someone/model" in warning for warning in adapter_folder.read(root, "good", bert_base).warnings)


@pytest.mark.parametrize(
    ("changes", "kind", "word"),
    [
        ({"base_fingerprint": "0" * 64}, AdapterMismatch, "retrain"),
        ({"weights_sha256": "0" * 64}, AdapterDamaged, "sha256"),
        ({"labels": ("a", "b")}, AdapterDamaged, "labels"),
        ({"labels": ("a", "b", "a")}, AdapterDamaged, "labels"),
        ({"method": "ia3"}, AdapterDamaged, "ia3"),
        ({"pooling": "max"}, AdapterDamaged, "pooling"),
        ({"max_length": 513}, AdapterMismatch, "max_length"),
        ({"max_length": 0}, AdapterDamaged, "max_length"),
        ({"temperature": -1.0}, AdapterDamaged, "temperature"),
        ({"temperature": 5e-324}, AdapterDamaged, "temperature"),
        ({"temperature": 10**400}, AdapterDamaged, "temperature"),
        ({"threshold": -0.01}, AdapterDamaged, "threshold"),
        ({"threshold": 1.01}, AdapterDamaged, "threshold"),
        ({"problem_type": "ranking"}, AdapterDamaged, "problem_type"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    root: Path, bert_base: BaseModel, changes: dict[str, Any], kind: type[AdapterRefused], word: str
) -> None:
    add_manifest(root / "good", bert_base, **changes)
    refused(root, bert_base, kind, word)


@pytest.mark.parametrize("threshold", [0.0, 1.0, None])
def test_a_threshold_is_read_at_its_limits_and_is_a_half_where_none_is_written(
    root: Path, bert_base: BaseModel, threshold: float | None
) -> None:
    add_manifest(root / "good", bert_base, **({} if threshold is None else {"threshold": threshold}))
    path = root / "good" / "adapter.json"
    record = json.loads(path.read_text())
    if threshold is None:
        del record["threshold"]
    path.write_text(json.dumps(record))
    read = adapter_folder.read(root, "good", bert_base).manifest.threshold
    assert read == (0.5 if threshold is None else threshold)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"schema": 1, "method": "\\ud800"}', '{"schema": 2}', "3"])
def test_a_manifest_that_is_no_manifest_is_damaged(root: Path, bert_base: BaseModel, text: str) -> None:
    (root / "good" / "adapter.json").write_text(text)
    refused(root, bert_base, AdapterDamaged, "adapter.json")


@pytest.mark.parametrize(
    ("num_levels", "is_kept"), [(manifest.MAX_NESTING, True), (manifest.MAX_NESTING + 1, False), (600, False)]
)
def test_training_facts_that_nest_too_deep_are_left_out_so_that_a_manifest_can_be_sent(
    root: Path, bert_base: BaseModel, num_levels: int, is_kept: bool
) -> None:
    add_manifest(root / "good", bert_base)
    path = root / "good" / "adapter.json"
    names = ("data_set", "num_train_rows", "num_validation_rows", "seed", "train_s", "code_version", "created")
    facts = dict.fromkeys(names, 1) | {"recipe": {"deep": "HERE"}, "metrics": {}, "library_versions": {}}
    text = json.dumps(json.loads(path.read_text()) | {"training": facts})
    num_lists = num_levels - 2  # the facts and the recipe are a level each
    path.write_text(text.replace('"HERE"', "[" * num_lists + "]" * num_lists))
    read = adapter_folder.read(root, "good", bert_base).manifest
    assert (read.training is not None) == is_kept
    assert pickle.loads(pickle.dumps(read)) == read


@pytest.mark.parametrize(
    ("recorded", "accepted"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", True),
        ("all-MiniLM-L6-v2", True),
        ("someone-else/all-MiniLM-L6-v2", False),
        ("nreimers/MiniLM-L6-H384-uncased", False),
        ("/models/all-MiniLM-L6-v2", True),
        ("/models/anything", None),
        ("", None),
    ],
)
def test_the_recorded_base_is_compared_as_an_id_or_a_path(
    bert_base: BaseModel, recorded: str, accepted: bool | None
) -> None:
    held = replace(bert_base, name="sentence-transformers/all-MiniLM-L6-v2")
    assert adapter_folder._is_same_base(recorded, held) is accepted


def test_a_copy_of_the_embedded_base_keeps_its_name(tmp_path: Path) -> None:
    from server import base_model

    copied = shutil.copytree(base_model.locate(base_model.EMBEDDED_ID), tmp_path / "copied")
    assert base_model.fingerprint(copied) == base_model.EMBEDDED_FINGERPRINT
    assert base_model.name_of(str(copied), base_model.fingerprint(copied)) == base_model.EMBEDDED_ID


def test_native_pooling_needs_the_base_to_have_it(root: Path, bert_base: BaseModel, tmp_path: Path) -> None:
    bare = tmp_path / "tiny-bert"
    shutil.copytree(bert_base.folder, bare)
    tensors = load_file(bare / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "pooler" not in k}, bare / "model.safetensors", {"format": "pt"})
    refused(root, load_base(str(bare), "cpu", "float32"), AdapterMismatch, "pooling")


def native(tmp_path: Path, base_folder: Path, pooling: str = "native", **changes: Any) -> Path:
    model_type = base_folder.name.removeprefix("tiny-")
    config = replace(peft_configs(model_type)["lora-qv"], **changes)
    make_adapter(tmp_path / "root" / "good", base_folder, config, 3, seed=0, pooling=pooling)
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("model_type", "first", "modules"),
    [
        ("roberta", "classifier.dense", "['classifier']"),
        ("distilbert", "pre_classifier", "['pre_classifier', 'classifier']"),
        ("modernbert", "head.norm", "['head', 'classifier']"),
    ],
)
def test_a_native_head_without_its_first_layer_is_refused(
    model_type: str, first: str, modules: str, base_folders: dict[str, Path], tmp_path: Path
) -> None:
    """It began at random where the adapter was trained, and is lost."""
    base, root = load_base(str(base_folders[model_type]), "cpu", "float32"), native(tmp_path, base_folders[model_type])
    assert len(adapter_folder.read(root, "good", base).head) == 4
    edit_weights(root, lambda t: t.pop(f"base_model.model.{first}.weight"))
    refused(root, base, AdapterDamaged, f"`{first}.weight`", f"modules_to_save={modules}")


@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "modernbert"])
def test_a_head_that_disagrees_with_the_pooling_is_refused(
    model_type: str, base_folders: dict[str, Path], tmp_path: Path
) -> None:
    base = load_base(str(base_folders[model_type]), "cpu", "float32")
    two_layers, one_layer = native(tmp_path / "two", base.folder), native(tmp_path / "one", base.folder, "mean")
    add_manifest(two_layers / "good", base)
    add_manifest(one_layer / "good", base, pooling="mean")
    assert len(adapter_folder.read(two_layers, "good", base).head_layers) == 2
    assert len(adapter_folder.read(one_layer, "good", base).head_layers) == 1
    for root, pooling in ((two_layers, "mean"), (one_layer, "native")):
        path = root / "good" / "adapter.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pooling": pooling}))
        refused(root, base, AdapterDamaged, f"{pooling} pooling", "classifier")
    (one_layer / "good" / "adapter.json").unlink()
    refused(one_layer, base, AdapterDamaged, "native pooling")


def test_a_head_of_another_width_is_refused(base_folders: dict[str, Path], tmp_path: Path) -> None:
    base, root = load_base(str(base_folders["roberta"]), "cpu", "float32"), native(tmp_path, base_folders["roberta"])
    edit_weights(root, lambda t: t.update({"base_model.model.classifier.dense.weight": torch.zeros(47, 48)}))
    refused(root, base, AdapterMismatch, "classifier.dense.weight", "[47, 48]", "[48, 48]")


def test_an_adapter_of_a_heads_own_layer_is_refused(base_folders: dict[str, Path], tmp_path: Path) -> None:
    """peft's `all-linear` takes in the first layer of this head unless it is saved whole."""
    root = native(tmp_path, base_folders["modernbert"], target_modules="all-linear", modules_to_save=None)
    refused(root, load_base(str(base_folders["modernbert"]), "cpu", "float32"), AdapterRefused, "head.dense")


@pytest.mark.parametrize("model_type", ["distilbert", "modernbert"])
def test_a_method_that_the_architecture_cannot_run_is_refused(
    model_type: str, base_folders: dict[str, Path], root: Path
) -> None:
    base = load_base(str(base_folders[model_type]), "cpu", "float32")
    (root / "good" / CONFIG).write_text(json.dumps({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}))
    refused(root, base, MethodUnsupported, "prefix", model_type)


def test_hidden_folders_and_files_are_not_scanned(root: Path) -> None:
    (root / ".writing").mkdir()
    (root / "notes.txt").touch()
    os.mkdir(root / "empty")
    assert adapter_folder.scan(root) == ["empty", "good"]
