"""Where a base model is found, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from server import base_model
from server.errors import BaseModelError, UnknownFamily
from server.forward import load_base
from server.number_format import bfloat16_speed, choose_dtype
from tests.seeded import MAX_LENGTH, make_base


def test_the_fingerprint_of_one_file_is_its_sha256(base_folders: dict[str, Path]) -> None:
    folder = base_folders["bert"]
    expected = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert base_model.fingerprint(folder) == expected


def test_a_sharded_model_is_fingerprinted_over_its_files_in_name_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert base_model.fingerprint(tmp_path) == hashlib.sha256(b"ab").hexdigest()


def test_a_model_with_sliding_attention_is_used_up_to_its_window(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "tiny", "mistral", sliding_window=64)
    assert load_base(str(folder), "cpu", "float32").max_length == 64


def test_an_encoder_with_sliding_attention_reads_beyond_its_window(base_folders: dict[str, Path]) -> None:
    config = json.loads((base_folders["modernbert"] / "config.json").read_text())
    assert config["local_attention"] == 32
    assert load_base(str(base_folders["modernbert"]), "cpu", "float32").max_length == MAX_LENGTH


def test_positions_that_begin_behind_the_padding_token_are_not_counted_as_length(base_folders: dict[str, Path]) -> None:
    config = json.loads((base_folders["roberta"] / "config.json").read_text())
    assert (config["max_position_embeddings"], config["pad_token_id"]) == (514, 1)
    assert load_base(str(base_folders["roberta"]), "cpu", "float32").max_length == 512


@pytest.mark.parametrize(("model_type", "kept"), [("bert", torch.float32), ("llama", torch.bfloat16)])
def test_dtype_and_device_are_as_asked(base_folders: dict[str, Path], model_type: str, kept: torch.dtype) -> None:
    """Where our own encoder runs the layers, only its products are in bfloat16 on the CPU."""
    base = load_base(str(base_folders[model_type]), "cpu", "bfloat16")
    assert (base.dtype, base.device.type) == (torch.bfloat16, "cpu")
    assert {parameter.dtype for parameter in base.backbone.parameters()} == {kept}
    assert not any(parameter.requires_grad for parameter in base.backbone.parameters())


def test_an_unknown_family_is_refused_with_the_known_ones(base_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(base_folders["bert"], tmp_path / "odd")
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(UnknownFamily, match=r"`mamba`.*bert.*llama"):
        load_base(str(folder))


@pytest.mark.parametrize(
    ("remove", "word"), [("config.json", "config.json"), ("model.safetensors", "model.safetensors")]
)
def test_a_folder_that_lacks_a_file_is_refused(
    remove: str, word: str, base_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(base_folders["bert"], tmp_path / "cut")
    (folder / remove).unlink()
    with pytest.raises(BaseModelError, match=word):
        load_base(str(folder), "cpu", "float32")


def test_a_hub_id_that_cannot_be_fetched_is_refused_with_the_reason() -> None:
    with pytest.raises(BaseModelError, match="nobody/nothing"):
        base_model.locate("nobody/nothing")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_number_format_that_is_asked_for_is_taken(dtype: str) -> None:
    assert choose_dtype(dtype, torch.device("cpu")) is getattr(torch, dtype)


def test_where_none_is_asked_for_bfloat16_is_taken_only_where_it_is_faster() -> None:
    chosen, speed = choose_dtype("auto", torch.device("cpu")), bfloat16_speed()
    if not 0.9 < speed < 1.4:  # in between either is right
        assert chosen is (torch.bfloat16 if speed > 1 else torch.float32)


def test_trying_number_formats_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    bfloat16_speed()
    assert torch.get_num_threads() == before


def test_a_number_format_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BaseModelError, match="dtype `int8` is not supported; take one of auto, float32, bfloat16"):
        choose_dtype("int8", torch.device("cpu"))
