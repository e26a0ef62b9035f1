"""Training on a small seeded base: what is written, what plain peft reads, and what the server answers from it."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, f1_score, root_mean_squared_error
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from server import adapter_folder
from server.activation import activate
from server.families import family_of
from server.forward import Forward, load_base
from server.jobs import Job
from server.manifest import Manifest, Pooling, ProblemType
from server.methods import methods
from server.store import Store
from server.tokenizer import Tokenizer
from tests.conftest import MODEL_TYPES
from tests.corpora import write_attributes
from tests.seeded import NAMES
from training import command
from training.data import load, targets
from training.fit import make_model, make_optimizer
from training.model import PooledClassifier
from training.recipe import Recipe
from training.texts import Texts


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "short.toml"
    path.write_text('epochs = 6\nmax_length = 32\nprecision = "float32"\n')
    return path


def run(*arguments: object) -> int:
    return command.main(["run", *map(str, arguments), "--quiet"])


TRAINED = [model_type for model_type in MODEL_TYPES if model_type != "xlm-roberta"]  # which is a roberta


def can_run(method: str, model_type: str) -> bool:
    return NAMES[model_type].takes_prefix or not methods()[method].at_attention


@pytest.mark.parametrize(
    ("model_type", "method", "pooling"),
    [
        *((model_type, method, None) for model_type in TRAINED for method in methods() if can_run(method, model_type)),
        *((model_type, "lora", "native") for model_type in ("bert", "roberta", "distilbert", "modernbert", "llama")),
        ("roberta", "prefix", "native"),
    ],
)
def test_a_trained_folder_is_read_by_plain_peft_and_served_with_the_same_logits(
    method: str,
    model_type: str,
    pooling: str | None,
    base_folders: dict[str, Path],
    corpus: Path,
    recipe: Path,
    tmp_path: Path,
) -> None:
    folder, base_folder = tmp_path / "topics", base_folders[model_type]
    if pooling is not None:
        recipe = tmp_path / "native.toml"
        recipe.write_text(f'epochs = 1\nmax_length = 32\nprecision = "float32"\npooling = "{pooling}"\n')
    assert run("--data", corpus, "--method", method, "--base", base_folder, "--output", folder, "--recipe", recipe) == 0
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "adapter.json",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    check_served(folder, base_folder, corpus, pooling)


@pytest.mark.parametrize("model_type", TRAINED)
def test_lora_on_every_linear_layer_is_read_by_plain_peft_and_served_with_the_same_logits(
    model_type: str, base_folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    folder, base_folder, recipe = tmp_path / "topics", base_folders[model_type], tmp_path / "all.toml"
    recipe.write_text('epochs = 3\nmax_length = 32\nprecision = "float32"\noptions.all_linears = 1\n')
    assert run("--data", corpus, "--method", "lora", "--base", base_folder, "--output", folder, "--recipe", recipe) == 0
    base = load_base(str(base_folder), "cpu", "float32")
    names = {name for name in base.layers if not base.is_pool_site(name)}
    keys = load_file(folder / "adapter_model.safetensors")
    trained_names = {key.split(".lora_")[0].removeprefix("base_model.model.") for key in keys if ".lora_" in key}
    assert trained_names == names
    check_served(folder, base_folder, corpus)


def check_served(folder: Path, base_folder: Path, corpus: Path, pooling: str | None = None) -> None:
    """Whether the server answers a folder of topics with the logits that plain peft has for it."""
    base = load_base(str(base_folder), "cpu", "float32")
    read = adapter_folder.read(folder.parent, folder.name, base)
    assert read.warnings == ()
    assert read.manifest.labels == ("animals", "boats", "cheese")
    assert read.manifest.pooling == (pooling or base.family.default_pooling)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of merging biases into layers that have none
        oracle = PeftModel.from_pretrained(
            PooledClassifier.load(str(base_folder), 3, read.manifest.pooling), str(folder)
        ).eval()
    loaded, tokenizer = Store(base).load(read), Tokenizer(base_folder)
    with (corpus / "test.csv").open(encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    encoded = [tokenizer.encode(text, None, 32, truncate=True, field="text") for text in texts]
    answers = Forward(base).run([(Job(folder.name, read.version, e.token_ids, e.type_ids), loaded) for e in encoded])
    with torch.no_grad():
        for one, answer in zip(encoded, answers, strict=True):
            expected = oracle(input_ids=torch.tensor([one.token_ids])).logits[0]
            torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ["distilbert", "modernbert"])
def test_a_method_that_the_architecture_cannot_run_is_refused(
    model_type: str, base_folders: dict[str, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", corpus, "--method", "prefix", "--base", base_folders[model_type])
    assert run("--output", tmp_path / "out", *arguments) == 2
    assert re.search(f"prefix.*{model_type}", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model_type", "num_tensors"), [("bert", 2), ("roberta", 4), ("distilbert", 4), ("modernbert", 4)]
)
def test_all_of_a_native_head_has_the_heads_learning_rate(
    model_type: str, num_tensors: int, base_folders: dict[str, Path], corpus: Path
) -> None:
    plan = Recipe(pooling="native").settle(methods()["lora"], family_of(model_type), 100, 64)
    splits = load(str(corpus), None, 0)
    texts = Texts(
        splits.test, targets(splits.test, splits.labels, splits.problem_type), Tokenizer(base_folders[model_type]), 64
    )
    model = make_model(base_folders[model_type], plan, methods()["lora"], family_of(model_type), splits, texts)
    adapter, head = make_optimizer(model, plan, family_of(model_type)).param_groups
    assert (head["lr"], len(head["params"])) == (plan.head_learning_rate, num_tensors)
    assert adapter["params"]


def trained(folder: Path, *arguments: object) -> Manifest:
    assert run("--output", folder, *arguments) == 0
    from server import manifest

    return manifest.parse((folder / "adapter.json").read_text())


def test_training_learns_and_is_repeatable_and_the_record_says_how(
    base_folders: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", corpus, "--method", "lora", "--base", base_folders["bert"], "--recipe", recipe)
    first = trained(tmp_path / "first", *arguments, "--seed", 3)
    again = trained(tmp_path / "again", *arguments, "--seed", 3)
    other = trained(tmp_path / "other", *arguments, "--seed", 4)
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    facts = first.training
    assert facts is not None
    assert facts.seed == 3
    assert facts.num_train_rows + facts.num_validation_rows == 360
    assert facts.recipe["learning_rate"] == methods()["lora"].learning_rate
    accuracy = facts.metrics["test_accuracy"]
    assert accuracy.low < accuracy.value < accuracy.high or accuracy.value == 1.0
    assert accuracy.value > 0.7
    assert accuracy.num_rows == 60
    out = capsys.readouterr().out
    assert "test accuracy" in out
    assert "TF-IDF" in out


@pytest.fixture(scope="module")
def attributes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_attributes(tmp_path_factory.mktemp("attributes"))


def served(root: Path, name: str, base_folder: Path, data: Path) -> tuple[Manifest, list[dict[str, str]], torch.Tensor]:
    """The manifest of a folder, the test rows, and the scores [rows, labels] that a server gives them."""
    base, tokenizer = load_base(str(base_folder), "cpu", "float32"), Tokenizer(base_folder)
    read = adapter_folder.read(root, name, base)
    with (data / "test.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    encoded = [tokenizer.encode(row["text"], row["text_pair"], 32, truncate=True, field="text") for row in rows]
    loaded = Store(base).load(read)
    answers = Forward(base).run([(Job(name, read.version, e.token_ids, e.type_ids), loaded) for e in encoded])
    manifest = read.manifest
    scores = [activate(answer.tolist(), manifest.problem_type, manifest.temperature) for answer in answers]
    return manifest, rows, torch.tensor(scores)


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_a_server_answers_several_labels_as_the_record_says(
    model_type: str,
    base_folders: dict[str, Path],
    attributes: Path,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base_folder = base_folders[model_type]
    arguments = ("--data", attributes, "--method", "lora", "--base", base_folder, "--recipe", recipe)
    record = trained(tmp_path / "a", *arguments, "--problem-type", "multi_label")
    manifest, rows, scores = served(tmp_path, "a", base_folder, attributes)
    assert manifest == record
    assert manifest.problem_type == "multi_label"
    assert manifest.labels == ("animals", "boats")
    assert 0 < manifest.threshold < 1
    truth = [[label in row["labels"].split("|") for label in manifest.labels] for row in rows]
    chosen = scores >= manifest.threshold
    assert manifest.training is not None
    measured = manifest.training.metrics
    assert measured["test_micro_f1"].value == pytest.approx(f1_score(truth, chosen, average="micro"))
    assert measured["test_subset_accuracy"].value == pytest.approx(accuracy_score(truth, chosen))
    assert measured["test_micro_f1"].value > 0.7  # all labels, always: 0.667
    assert measured["floor_test_micro_f1"].num_rows == 60
    out = capsys.readouterr().out
    assert "several labels a text" in out
    assert "test micro-F1" in out
    assert f"{manifest.threshold:.2f}" in out
    assert "animals, boats" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize(
    ("model_type", "pooling", "method"),
    [("bert", "mean", "lora"), ("bert", "native", "prefix"), ("llama", "last", "head"), ("llama", "native", "lora")],
)
def test_a_server_answers_numbers_in_the_unit_of_the_data(
    model_type: str,
    pooling: Pooling,
    method: str,
    base_folders: dict[str, Path],
    attributes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base_folder, recipe = base_folders[model_type], tmp_path / "recipe.toml"
    recipe.write_text(f'epochs = 12\nmax_length = 32\nprecision = "float32"\npooling = "{pooling}"\n')
    arguments = ("--data", attributes, "--method", method, "--base", base_folder, "--recipe", recipe)
    trained(tmp_path / "a", *arguments, "--problem-type", "regression")
    manifest, rows, scores = served(tmp_path, "a", base_folder, attributes)
    assert manifest.labels == ("score",)
    truth, given = [float(row["score"]) for row in rows], scores[:, 0].tolist()
    assert manifest.training is not None
    measured = manifest.training.metrics
    assert measured["test_pearson"].value == pytest.approx(pearsonr(truth, given).statistic, abs=1e-4)
    assert measured["test_rmse"].value == pytest.approx(root_mean_squared_error(truth, given), rel=1e-3)
    assert sum(given) / len(given) == pytest.approx(350, abs=20)
    assert method != "lora" or pooling == "native" or measured["test_pearson"].value > 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of merging biases into layers that have none
        oracle = PeftModel.from_pretrained(PooledClassifier.load(str(base_folder), 1, pooling), str(tmp_path / "a"))
    first = Tokenizer(base_folder).encode(rows[0]["text"], rows[0]["text_pair"], 32, truncate=True, field="text")
    with torch.no_grad():
        expected = oracle.eval()(
            input_ids=torch.tensor([first.token_ids]),
            **({"token_type_ids": torch.tensor([first.type_ids])} if model_type == "bert" else {}),
        ).logits[0]
    torch.testing.assert_close(scores[0].float(), expected, rtol=1e-5, atol=1e-3)
    assert manifest.temperature == 1.0
    out = capsys.readouterr().out
    assert "a number a text" in out
    assert "test RMSE" in out


def test_a_server_answers_numbers_that_are_far_from_0(base_folders: dict[str, Path], tmp_path: Path) -> None:
    """Seconds since 1970, a million apart, where float32 has steps of 128."""
    data, recipe, rng = tmp_path / "times", tmp_path / "recipe.toml", random.Random(0)
    data.mkdir()
    for split, count in (("train", 200), ("test", 40)):
        words = [rng.randint(0, 1) for _ in range(count)]
        rows = "".join(
            f"word{word} word{i},word{i + 50},{1_700_000_000 + 1e6 * word}\n" for i, word in enumerate(words)
        )
        (data / f"{split}.csv").write_text("text,text_pair,score\n" + rows)
    recipe.write_text('epochs = 8\nmax_length = 32\nprecision = "float32"\n')
    arguments = ("--data", data, "--method", "lora", "--base", base_folders["bert"], "--recipe", recipe)
    manifest = trained(tmp_path / "adapters" / "a", *arguments, "--problem-type", "regression")
    _, rows_read, scores = served(tmp_path / "adapters", "a", base_folders["bert"], data)
    truth, given = [float(row["score"]) for row in rows_read], scores[:, 0].tolist()
    assert manifest.training is not None
    measured = manifest.training.metrics
    assert measured["test_pearson"].value == pytest.approx(pearsonr(truth, given).statistic, abs=1e-3)
    assert measured["test_pearson"].value > 0.8
    assert measured["test_rmse"].value == pytest.approx(root_mean_squared_error(truth, given), rel=1e-3)


@pytest.mark.parametrize("pooling", ["last", "native"])
@pytest.mark.parametrize("problem_type", ["multi_label", "regression"])
def test_our_class_and_the_stock_one_learn_by_the_same_loss(
    problem_type: ProblemType, pooling: Pooling, base_folders: dict[str, Path]
) -> None:
    ids = torch.tensor([[2, 9, 10, 3], [2, 11, 12, 3]])
    several, numbers = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([3.5, 1.0])
    labels = several if problem_type == "multi_label" else numbers
    model = PooledClassifier.load(str(base_folders["llama"]), labels.ndim, pooling, problem_type).eval()
    with torch.no_grad():
        found = model(input_ids=ids, labels=labels)
    expected = (
        binary_cross_entropy_with_logits(found.logits, several)
        if problem_type == "multi_label"
        else mse_loss(found.logits[:, 0], numbers)
    )
    torch.testing.assert_close(found.loss, expected)


def test_the_folder_tells_nothing_of_the_machine(
    base_folders: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path
) -> None:
    trained(tmp_path / "a", "--data", corpus, "--method", "ia3", "--base", base_folders["bert"], "--recipe", recipe)
    for name in ("README.md", "adapter.json", "adapter_config.json"):
        assert str(tmp_path) not in (tmp_path / "a" / name).read_text()
        assert str(base_folders["bert"].parent) not in (tmp_path / "a" / name).read_text()


@pytest.mark.parametrize("method", ["ia3", "bottleneck", "head"])
def test_the_code_on_the_model_card_runs(
    method: str, corpus: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the embedded base model, as a user has it."""
    trained(tmp_path / "card", "--data", corpus, "--method", method, "--recipe", recipe, "--train-rows", 40)
    [code] = re.findall(r"```python\n(.*?)```", (tmp_path / "card" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert isinstance(names["model"], PeftModel)


@pytest.mark.parametrize("is_cut", [False, True])
def test_an_interrupted_run_goes_on_from_its_last_whole_checkpoint(
    is_cut: bool,
    base_folders: dict[str, Path],
    corpus: Path,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import Trainer

    arguments = ("--data", corpus, "--method", "lora", "--base", base_folders["bert"], "--recipe", recipe)
    whole = trained(tmp_path / "whole", *arguments)
    steps = Trainer.training_step
    done = 0

    def interrupt(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += 1
        if done == 28:
            raise KeyboardInterrupt
        return steps(self, *args, **kwargs)

    work = tmp_path / "work"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", interrupt)
        assert run("--output", tmp_path / "part", *arguments, "--work-dir", work) == 130
    assert not (tmp_path / "part").exists()
    if is_cut:  # a disk that is full, or a kill: a checkpoint of which not all was written
        last = max(int(place.name.rpartition("-")[2]) for place in work.glob("checkpoint-*"))
        cut = shutil.copytree(work / f"checkpoint-{last}", work / f"checkpoint-{last + 1}")
        state = cut / "trainer_state.json"
        state.write_text(state.read_text()[:100])
        shutil.copytree(cut, work / f"checkpoint-{last + 2}", ignore=shutil.ignore_patterns("trainer_state.json"))
    part = trained(tmp_path / "part", *arguments, "--work-dir", tmp_path / "work")
    assert part.weights_sha256 == whole.weights_sha256
    assert done < 36  # 6 passes of 9 batches in all, more than 3 of them before


@pytest.mark.parametrize(
    ("changes", "code", "word"),
    [
        ({"--data": "nowhere"}, 1, "nowhere"),
        ({"--data": "hub:no/such-set"}, 1, "no/such-set"),
        ({"--method": "lorra"}, 2, "lora"),
        ({"--base": "./nowhere"}, 1, "nowhere"),
        ({"--train-rows": 0}, 2, "--train-rows"),
        ({"--seed": -1}, 2, "--seed is -1"),
        ({"--problem-type": "regression"}, 1, "row 1: `label` is 'animals', not a finite number"),
        ({"--train-rows": 10_000}, 1, "10000"),
        ({"--text-column": "txet"}, 1, "did you mean `text`"),
        ({"--recipe": "missing.toml"}, 2, "missing.toml"),
        ({"--report-to": "carrier-pigeon"}, 2, "carrier-pigeon"),
    ],
)
def test_mistakes_end_with_one_sentence_and_write_nothing(
    changes: dict[str, object],
    code: int,
    word: str,
    base_folders: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = {"--data": corpus, "--method": "lora", "--base": base_folders["bert"], "--output": tmp_path / "out"}
    assert run(*[part for pair in (flags | changes).items() for part in pair]) == code
    error = capsys.readouterr().err
    assert word in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_the_server_would_not_serve_is_refused(
    base_folders: dict[str, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", corpus, "--method", "lora", "--base", base_folders["bert"])
    assert run("--output", tmp_path / "my adapter", *arguments) == 1
    assert "my adapter" in capsys.readouterr().err


def test_checkpoints_of_another_run_are_not_gone_on_from(
    base_folders: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", corpus, "--method", "ia3", "--base", base_folders["bert"], "--recipe", recipe)
    trained(tmp_path / "a", *arguments, "--work-dir", tmp_path / "work")
    assert run("--output", tmp_path / "b", *arguments, "--work-dir", tmp_path / "work", "--seed", 7) == 2
    assert "another seed" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    (tmp_path / "work" / "run.json").write_text("{")
    assert run("--output", tmp_path / "b", *arguments, "--work-dir", tmp_path / "work") == 2
    assert "run.json` is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_base_trains_in_full_precision(
    dtype: torch.dtype, base_folders: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModel

    half = tmp_path / "half"
    AutoModel.from_pretrained(base_folders["bert"], dtype=dtype).save_pretrained(half)
    (half / "tokenizer.json").write_bytes((base_folders["bert"] / "tokenizer.json").read_bytes())
    manifest = trained(tmp_path / "a", "--data", corpus, "--method", "lora", "--base", half, "--recipe", recipe)
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    assert manifest.base_name == "half"


def test_a_run_that_diverges_writes_nothing(
    base_folders: dict[str, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"learning_rate": 1e30, "head_learning_rate": 1e30, "epochs": 1, "precision": "float32"}')
    arguments = ("--data", corpus, "--method", "lora", "--base", base_folders["bert"], "--recipe", path)
    assert run("--output", tmp_path / "a", *arguments) == 1
    assert "diverged" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_an_output_in_the_way_is_kept_unless_told(
    base_folders: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path
) -> None:
    arguments = ("--data", corpus, "--method", "ia3", "--base", base_folders["bert"], "--recipe", recipe)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious.txt").touch()
    assert run("--output", tmp_path / "a", *arguments) == 1
    assert (tmp_path / "a" / "precious.txt").exists()
    trained(tmp_path / "a", *arguments, "--overwrite")
    assert not (tmp_path / "a" / "precious.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_result_can_be_read_by_machines(
    base_folders: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--data", corpus, "--method", "ia3", "--base", base_folders["bert"], "--recipe", recipe)
    assert run("--output", tmp_path / "a", *arguments, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["manifest"]["method"] == "ia3"
    assert record["num_parameters"] > 0
