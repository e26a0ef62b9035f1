"""`adaptermux-train merge`: what is written answers as the adapter does, or nothing is written."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from server.manifest import Manifest
from server.methods import methods
from tests.corpora import write_attributes
from tests.seeded import NAMES, make_adapter, peft_configs
from training import adapter_reader, command, merging
from training.model import PooledClassifier

IDS = torch.tensor([[2, 17, 400, 33, 3], [2, 501, 8, 19, 3]])


def merge(*arguments: object) -> int:
    return command.main(["merge", *map(str, arguments), "--quiet"])


def foreign(folder: Path, base: Path, model_type: str, config: str) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_adapter(folder, base, peft_configs(model_type)[config], 3, seed=0)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "modernbert", "llama"])
@pytest.mark.parametrize("config", ["lora-qv", "lora-all", "lora-rs", "ia3-paper", "bitfit", "head"])
def test_a_merged_adapter_answers_alike_in_the_stock_class(
    model_type: str, config: str, base_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oracle = foreign(tmp_path / "adapter", base_folders[model_type], model_type, config)
    code = merge(tmp_path / "adapter", "--output", tmp_path / "merged")
    if config == "bitfit" and model_type in ("modernbert", "llama"):  # whose layers have no biases
        assert code == 2
        assert "no bias" in capsys.readouterr().err
        assert not (tmp_path / "merged").exists()
        return
    assert code == 0
    assert "64 of 64 texts" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    assert len({path.stat().st_mode for path in (tmp_path / "merged").iterdir()}) == 1
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        for ids in IDS:
            torch.testing.assert_close(stock(ids[None]).logits, oracle(ids[None]).logits, rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["id2label"]["2"] == "LABEL_2"
    assert str(tmp_path) not in (tmp_path / "merged" / "config.json").read_text()


@pytest.mark.parametrize("method", ["prefix", "bottleneck"])
def test_a_method_that_has_no_place_in_the_base_is_refused_with_the_reason(
    method: str, base_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"prefix": "prefix", "bottleneck": "bottleneck-houlsby"}[method]
    foreign(tmp_path / "adapter", base_folders["bert"], "bert", config)
    assert merge(tmp_path / "adapter", "--output", tmp_path / "merged") == 2
    error = capsys.readouterr().err
    assert {"prefix": "in front of a text's own", "bottleneck": "is not linear"}[method] in error
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_the_code_on_a_merged_folder_loads_a_pooled_head_with_its_label_names(
    model_type: str, base_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.csv"
    data.write_text("text,label\n" + "".join(f"word{i} word{i + 1},label {i % 3}\n" for i in range(60)))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('epochs = 1\nprecision = "float32"\n')
    flags = ("--data", data, "--base", base_folders[model_type], "--output", tmp_path / "adapter", "--recipe", recipe)
    assert command.main(["run", "--method", "lora", "--quiet", *map(str, flags)]) == 0
    base = ("--base", base_folders[model_type])
    assert merge(tmp_path / "adapter", "--output", tmp_path / "merged", *base, "--data", data) == 0
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "its answers would be wrong" in text
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    model = names["model"]
    assert isinstance(model, PooledClassifier)
    assert model.config.id2label == {0: "label 0", 1: "label 1", 2: "label 2"}
    adapter = adapter_reader.read(tmp_path / "adapter", adapter_reader.Told(str(base_folders[model_type])))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, adapter.model(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)


def test_what_answers_otherwise_is_not_kept(
    base_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign(tmp_path / "adapter", base_folders["bert"], "bert", "lora-all")
    assert merge(tmp_path / "adapter", "--output", tmp_path / "merged", "--tolerance", 1e-12) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_weights_that_are_not_finite_are_told(
    base_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign(tmp_path / "adapter", base_folders["bert"], "bert", "lora-all")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, path)
    assert merge(tmp_path / "adapter", "--output", tmp_path / "merged") == 1
    assert "not finite" in capsys.readouterr().err


def test_an_output_in_the_way_is_kept_unless_told(base_folders: dict[str, Path], tmp_path: Path) -> None:
    foreign(tmp_path / "adapter", base_folders["bert"], "bert", "head")
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "precious.txt").touch()
    assert merge(tmp_path / "adapter", "--output", tmp_path / "merged") == 1
    assert (tmp_path / "merged" / "precious.txt").exists()
    assert merge(tmp_path / "adapter", "--output", tmp_path / "merged", "--overwrite") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


def test_rows_are_compared_on_under_whatever_name_their_columns_have(
    base_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign(tmp_path / "adapter", base_folders["bert"], "bert", "lora-all")
    rows = tmp_path / "rows.csv"
    rows.write_text("said,kind\nwho is it,LABEL_0\nwhere is it,LABEL_1\n", encoding="utf-8")
    asked = (tmp_path / "adapter", "--data", rows, "--label-column", "kind", "--output", tmp_path / "merged")
    assert merge(*asked) == 1
    assert "--text-column" in capsys.readouterr().err
    assert merge(*asked, "--text-column", "said") == 0
    assert "of 2 texts" in capsys.readouterr().out


def test_what_several_labels_need_to_be_read_goes_along(
    base_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("epochs = 1\nmax_length = 32\n")
    data, adapter = write_attributes(tmp_path), tmp_path / "adapter"
    flags = ("--base", base_folders["bert"], "--recipe", recipe, "--problem-type", "multi_label")
    columns = ("--data", data, "--label-column", "labels")
    asked = ["run", *columns, "--method", "lora", *flags, "--output", adapter, "--quiet"]
    assert command.main([*map(str, asked)]) == 0
    manifest = json.loads((adapter / "adapter.json").read_text())
    (adapter / "adapter.json").write_text(json.dumps(manifest | {"threshold": 0.2}))
    capsys.readouterr()
    assert merge(adapter, *columns, "--base", base_folders["bert"], "--output", tmp_path / "merged") == 0
    assert "same labels                      60 of 60 texts" in capsys.readouterr().out
    assert "counts from a score of 0.2 on" in (tmp_path / "merged" / "README.md").read_text()


def test_labels_are_compared_one_by_one() -> None:
    adapter, merged = np.array([[2.0, -3.0], [2.0, 0.1], [0.0, 0.0]]), np.array([[1.0, -2.0], [2.0, -0.1], [0.0, 0.0]])
    manifest = Manifest("lora", ("a", "b"), "multi_label", 32, "mean", 1.0, "base", "", "")
    assert merging.compare(manifest, adapter, merged).num_same == 2
    assert merging.compare(replace(manifest, problem_type="single_label"), adapter, merged).num_same == 3
    assert merging.compare(replace(manifest, problem_type="regression"), adapter, merged).num_same is None


def test_probes_are_the_same_each_time_and_leave_an_id_for_padding(
    base_folders: dict[str, Path], tmp_path: Path
) -> None:
    foreign(tmp_path / "adapter", base_folders["bert"], "bert", "head")
    adapter = adapter_reader.read(tmp_path / "adapter")
    first = [text["input_ids"] for text in merging.probes(adapter)]
    assert first == [text["input_ids"] for text in merging.probes(adapter)]
    used = {token for ids in first for token in ids}
    assert not used & {0, adapter.model.config.vocab_size - 1}
    assert {len(ids) for ids in first} <= set(range(2, 129))


def test_every_method_is_merged_or_refused(base_folders: dict[str, Path], tmp_path: Path) -> None:
    """A method that is added later is decided too."""
    configs = peft_configs("bert")
    assert NAMES["bert"].takes_prefix
    for method in methods():
        config = next(name for name in configs if name.split("-")[0] == method)
        foreign(tmp_path / method, base_folders["bert"], "bert", config)
        assert merge(tmp_path / method, "--output", tmp_path / f"{method}-merged") in (0, 2)
