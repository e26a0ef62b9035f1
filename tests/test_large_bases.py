"""What makes a large base fit while training: weights in 4 bits, and activations that are computed again."""

from __future__ import annotations

import csv
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

import training
from server import adapter_folder, base_model
from server.forward import Forward, load_base
from server.jobs import Job
from server.methods import methods
from server.store import Store
from server.tokenizer import Tokenizer
from tests.test_training import check_served, run
from training.grid_plan import groups, read_plan
from training.model import PooledClassifier, checkpoint_activations
from training.recipe import Recipe

HAS_BITSANDBYTES = find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not HAS_BITSANDBYTES, reason="needs pip install 'adaptermux[quantize]'")
IDS = torch.tensor([[2, 9, 10, 11, 3], [2, 12, 13, 14, 3]])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "short.toml"
    path.write_text('epochs = 3\nmax_length = 32\nprecision = "float32"\n')
    return path


def adapted(base: Path, method: str, **settings: Any) -> PeftModel:
    """A small base in training, without dropout, with an adapter that is far from doing nothing."""
    family = base_model.family_of_folder(base)
    plan = Recipe(**settings).settle(methods()[method], family, 10, 32)
    torch.manual_seed(0)
    bare = PooledClassifier.load(str(base), 3, plan.pooling, quantize=plan.quantize)
    model: PeftModel = get_peft_model(bare, methods()[method].peft_config(family, plan.options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def gradients(model: PeftModel) -> dict[str, Tensor]:
    model.zero_grad()
    model(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=torch.tensor([0, 2])).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("model_type", ["bert", "llama"])
@pytest.mark.parametrize("method", [name for name, method in methods().items() if not method.at_attention])
def test_activations_that_are_computed_again_train_the_same_weights(
    method: str, model_type: str, base_folders: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path
) -> None:
    arguments = ("--data", corpus, "--method", method, "--base", base_folders[model_type], "--recipe", recipe)
    assert run(*arguments, "--output", tmp_path / "kept") == 0
    assert run(*arguments, "--output", tmp_path / "again", "--gradient-checkpointing") == 0
    kept, again = (tmp_path / name / "adapter_model.safetensors" for name in ("kept", "again"))
    assert kept.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_fewer_activations_are_kept_where_they_are_computed_again(
    model_type: str, base_folders: dict[str, Path]
) -> None:
    kept: dict[bool, int] = {}
    for again in (False, True):
        model = adapted(base_folders[model_type], "lora")
        if again:
            bare = model.get_base_model()
            assert isinstance(bare, PreTrainedModel)
            checkpoint_activations(bare)
        sizes: list[int] = []

        def pack(saved: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(saved.nbytes)
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            model(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=torch.tensor([0, 2]))
        kept[again] = sum(sizes)
    assert kept[True] < kept[False] / 2


def test_a_prefix_that_would_be_lost_is_refused(
    base_folders: dict[str, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", corpus, "--method", "prefix", "--base", base_folders["bert"], "--output", tmp_path / "out")
    assert run(*arguments, "--gradient-checkpointing") == 2
    assert "`gradient_checkpointing` does not go with method prefix" in capsys.readouterr().err


def test_a_finished_cell_counts_however_its_activations_were_kept_but_not_for_other_weights() -> None:
    plan = read_plan(Path(training.__file__).parent / "plans" / "smoke.toml")
    group = next(groups(plan, Path("data")))
    cell = group.finals(group.candidate.trials()[0])[0]

    def key(**changes: object) -> str:
        return replace(cell, recipe=cell.recipe.model_copy(update=changes)).key

    assert key() == key(gradient_checkpointing=True) != key(quantize="nf4")


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="bitsandbytes is installed")
def test_what_is_not_installed_is_named(
    base_folders: dict[str, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", corpus, "--method", "lora", "--base", base_folders["bert"], "--output", tmp_path / "out")
    assert run(*arguments, "--quantize", "nf4") == 2
    assert "pip install 'adaptermux[quantize]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@needs_bitsandbytes
@pytest.mark.parametrize("model_type", ["bert", "llama"])
@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_an_adapter_of_a_base_in_4_bits_is_served_from_the_original_weights(
    method: str, model_type: str, base_folders: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path
) -> None:
    folder, base_folder = tmp_path / "topics", base_folders[model_type]
    arguments = ("--data", corpus, "--method", method, "--base", base_folder, "--recipe", recipe)
    assert run(*arguments, "--output", folder, "--quantize", "nf4") == 0
    check_served(folder, base_folder, corpus)
    base = load_base(str(base_folder), "cpu", "float32")
    read = adapter_folder.read(tmp_path, "topics", base)
    assert read.manifest.base_fingerprint == base_model.fingerprint(base_folder)
    assert read.manifest.training is not None
    assert read.manifest.training.recipe["quantize"] == "nf4"
    loaded, tokenizer = Store(base).load(read), Tokenizer(base_folder)
    with (corpus / "test.csv").open(encoding="utf-8") as file:
        encoded = [tokenizer.encode(row["text"], None, 32, truncate=True, field="text") for row in csv.DictReader(file)]
    served = torch.stack(
        Forward(base).run([(Job("topics", read.version, e.token_ids, e.type_ids), loaded) for e in encoded])
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = PooledClassifier.load(str(base_folder), 3, read.manifest.pooling, quantize="nf4")
        model = PeftModel.from_pretrained(trained, str(folder)).eval()
    with torch.no_grad():
        given = torch.cat([model(input_ids=torch.tensor([e.token_ids])).logits for e in encoded])
    assert (served - given).abs().mean() < 0.35 * served.std()  # a layer of 48 in 4 bits is off by a tenth
    assert (served.argmax(1) == given.argmax(1)).float().mean() > 0.75


@needs_bitsandbytes
@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_a_base_in_4_bits_passes_gradients_on_after_it_was_measured(
    model_type: str, base_folders: dict[str, Path]
) -> None:
    model = adapted(base_folders[model_type], "lora", quantize="nf4")
    before = gradients(model)
    with torch.no_grad():
        model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    after = gradients(model.train())
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient)
        assert gradient.abs().max() > 0
