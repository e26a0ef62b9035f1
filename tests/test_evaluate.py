"""`adaptermux-train evaluate`: its figures are those of outside oracles, on folders of ours and of plain peft."""

from __future__ import annotations

import csv
import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_recall_fscore_support

from server import manifest as manifest_format
from server.manifest import Manifest
from server.methods import methods
from server.tokenizer import Tokenizer
from tests.corpora import write_attributes
from tests.seeded import make_adapter, peft_configs
from training import command, pictures
from training.data import load, load_split
from training.metrics import expected_calibration_error

LABELS = ("animals", "boats", "cheese")


def train(*arguments: object) -> None:
    assert command.main(["run", *map(str, arguments), "--quiet"]) == 0


def evaluate(*arguments: object) -> int:
    return command.main(["evaluate", *map(str, arguments), "--quiet"])


def report_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert evaluate(*arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture(scope="module")
def attributes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_attributes(tmp_path_factory.mktemp("attributes"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "short.toml"
    path.write_text('epochs = 4\nmax_length = 32\nprecision = "float32"\n')
    return path


@pytest.fixture(scope="module")
def adapter(
    base_folders: dict[str, Path], corpus: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "topics"
    train("--data", corpus, "--method", "lora", "--base", base_folders["bert"], "--recipe", recipe, "--output", folder)
    return folder


def read_manifest(folder: Path) -> Manifest:
    return manifest_format.parse((folder / "adapter.json").read_text(encoding="utf-8"))


def logits_by_hand(model: Any, base: Path, texts: list[str], max_length: int) -> np.ndarray[Any, Any]:
    """One text at a time, with nothing of ours but the tokenizer."""
    tokenizer = Tokenizer(base)
    encoded = [tokenizer.encode(text, None, max_length, truncate=True, field="text").token_ids for text in texts]
    with torch.no_grad():
        return np.stack([model(input_ids=torch.tensor([ids])).logits[0].double().numpy() for ids in encoded])


def size_of(png: Path) -> tuple[int, int]:
    data = png.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_the_report_has_the_figures_of_scikit_learn_and_of_the_run(
    adapter: Path, base_folders: dict[str, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel

    from training.model import PooledClassifier

    report = report_of(
        capsys, adapter, "--data", corpus, "--base", base_folders["bert"], "--output", tmp_path / "report"
    )
    manifest = read_manifest(adapter)
    assert manifest.training is not None
    for name in ("accuracy", "macro_f1"):
        ran = manifest.training.metrics[f"test_{name}"]
        assert report["metrics"][name]["value"] == pytest.approx(ran.value)
        assert report["metrics"][name]["num_rows"] == 60
    with (corpus / "test.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    oracle = PeftModel.from_pretrained(
        PooledClassifier.load(str(base_folders["bert"]), 3, manifest.pooling), str(adapter)
    ).eval()
    logits = logits_by_hand(oracle, base_folders["bert"], [row["text"] for row in rows], manifest.max_length)
    truth, predicted = np.array([LABELS.index(row["label"]) for row in rows]), logits.argmax(1)
    assert report["metrics"]["accuracy"]["value"] == accuracy_score(truth, predicted)
    assert report["metrics"]["macro_f1"]["value"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    wanted = precision_recall_fscore_support(truth, predicted)
    for place, key in enumerate(("precision", "recall", "f1", "num_rows")):
        assert [one[key] for one in report["labels"]] == pytest.approx(list(wanted[place]))
    for when, temperature in (("before", 1.0), ("after", manifest.temperature)):
        chances = softmax(logits / temperature, axis=1)
        assert report["trust"][f"nll_{when}"]["value"] == pytest.approx(log_loss(truth, chances), rel=1e-4)
        error = expected_calibration_error(chances, truth)
        assert report["trust"][f"error_{when}"] == pytest.approx(error, abs=1e-4)
    assert np.array(report["confusion"]).trace() == (truth == predicted).sum()
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.json", "answers.csv", "labels.csv", "confusion.png", "reliability.png",
    }  # fmt: skip
    assert json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8")) == report
    with (tmp_path / "report" / "answers.csv").open(encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    assert [row["answer"] for row in answers] == [LABELS[index] for index in predicted]
    assert [row["truth"] for row in answers] == [row["label"] for row in rows]
    assert size_of(tmp_path / "report" / "reliability.png") > (300, 300)


def test_people_are_shown_a_table_with_the_worst_mistakes(
    adapter: Path, base_folders: dict[str, Path], corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(adapter, "--data", corpus, "--base", base_folders["bert"]) == 0
    out = capsys.readouterr().out
    for word in ("topics (test), 60 rows", "accuracy", "expected calibration error", "cheese", "answered as"):
        assert word in out


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "llama"])
def test_a_folder_of_plain_peft_is_measured_as_plain_peft_runs_it(
    model_type: str,
    base_folders: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = base_folders[model_type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = make_adapter(tmp_path / "foreign", base, peft_configs(model_type)["lora-qv"], 3, seed=0)
    report = report_of(capsys, tmp_path / "foreign", "--data", corpus, "--labels", *LABELS)
    with (corpus / "test.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    predicted = logits_by_hand(oracle, base, [row["text"] for row in rows], 512).argmax(1)
    right = sum(LABELS[index] == row["label"] for index, row in zip(predicted, rows, strict=True))
    assert report["metrics"]["accuracy"]["value"] == right / 60
    [note] = report["notes"]
    assert "no adapter.json" in note


def test_every_method_can_be_measured(
    base_folders: dict[str, Path], corpus: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in methods():
        folder, base = tmp_path / method, base_folders["bert"]
        train("--data", corpus, "--method", method, "--base", base, "--recipe", recipe, "--output", folder)
        ran = read_manifest(folder).training
        assert ran is not None
        report = report_of(capsys, folder, "--data", corpus, "--base", base)
        assert report["metrics"]["accuracy"]["value"] == ran.metrics["test_accuracy"].value


@pytest.mark.parametrize(
    ("kind", "column", "precision"),
    [("multi_label", "labels", "float32"), ("regression", "score", "float32"), ("regression", "score", "bfloat16")],
)
def test_several_labels_and_numbers_have_their_own_figures(
    kind: str,
    column: str,
    precision: str,
    base_folders: dict[str, Path],
    attributes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, base, recipe = tmp_path / "attributes", base_folders["bert"], tmp_path / "recipe.toml"
    recipe.write_text(f'epochs = 4\nmax_length = 32\nprecision = "{precision}"\n')
    columns = ("--label-column", column, "--data", attributes)
    train(*columns, "--method", "lora", "--base", base, "--recipe", recipe, "--output", folder, "--problem-type", kind)
    report = report_of(capsys, folder, *columns, "--base", base, "--output", tmp_path / "report")
    ran = read_manifest(folder).training
    assert ran is not None
    for name, metric in report["metrics"].items():
        assert metric["value"] == pytest.approx(ran.metrics[f"test_{name}"].value, rel=1e-5)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert report["confusion"] is None
    if kind == "multi_label":
        assert [one["label"] for one in report["labels"]] == ["animals", "boats"]
        assert names == {"report.json", "answers.csv", "labels.csv", "reliability.png"}
        assert 0 <= report["trust"]["error_after"] <= 1
    else:
        assert report["trust"] is None
        assert names == {"report.json", "answers.csv", "answers.png"}
    assert evaluate(folder, *columns, "--base", base) == 0


def test_numbers_are_looked_for_in_the_column_that_the_adapter_has_learned(
    base_folders: dict[str, Path], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"  # by itself, `regression` takes `score` for the number
    lines = ({"text": f"word{i} word{i + 1}", "label": i + 0.5, "score": -i - 0.25} for i in range(60))
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    folder, base = tmp_path / "adapter", base_folders["bert"]
    train("--data", rows, "--method", "head", "--base", base, "--recipe", recipe, "--output", folder)
    assert read_manifest(folder).labels == ("label",)
    assert evaluate(folder, "--data", rows, "--base", base, "--output", tmp_path / "report") == 0
    with (tmp_path / "report" / "answers.csv").open(encoding="utf-8", newline="") as file:
        assert [float(row["truth"]) for row in csv.DictReader(file)] == [i + 0.5 for i in range(60)]
    rows.write_text(rows.read_text().replace("label", "price"), encoding="utf-8")
    assert evaluate(folder, "--data", rows, "--base", base) == 1
    assert "`label`" in capsys.readouterr().err


def test_labels_that_the_adapter_does_not_know_are_told_with_the_near_one(
    adapter: Path, base_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.csv"
    path.write_text("text,label\nword1,animal\nword2,animal\nword3,boats\n", encoding="utf-8")
    assert evaluate(adapter, "--data", path, "--base", base_folders["bert"], "--output", tmp_path / "report") == 1
    error = capsys.readouterr().err
    assert "`animal` (2 of 3 rows)" in error
    assert "it knows animals, boats, cheese; did you mean `animals`?" in error
    assert not (tmp_path / "report").exists()


def test_one_row_and_labels_that_never_occur_can_be_measured(
    adapter: Path, base_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.csv"
    path.write_text("text,label\nword1,animals\n", encoding="utf-8")
    report = report_of(capsys, adapter, "--data", path, "--base", base_folders["bert"], "--output", tmp_path / "report")
    assert report["num_rows"] == 1
    assert report["labels"][2]["recall"] is None
    assert evaluate(adapter, "--data", path, "--base", base_folders["bert"]) == 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"short"), "adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "not an object"),
        (lambda folder: (folder / "adapter_model.bin").touch(), "pickle"),
        (lambda folder: (folder / "adapter.json").write_text("{}"), "schema"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_file(
    damage: Any,
    words: str,
    adapter: Path,
    base_folders: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in adapter.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    assert evaluate(folder, "--data", corpus, "--base", base_folders["bert"]) == 1
    assert words in capsys.readouterr().err


def test_weights_that_were_exchanged_are_refused(
    adapter: Path,
    base_folders: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "exchanged"
    folder.mkdir()
    for path in adapter.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert evaluate(folder, "--data", corpus, "--base", base_folders["bert"]) == 1
    assert "it was to be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--base", "{other}"), "was trained on base"),
        ((), "name its folder with --base"),
        (("--base", "{base}", "--labels", "a", "b", "c"), "leave out what says them"),
        (("--base", "{base}", "--split", "validation"), "no validation rows"),
        (("--base", "{base}", "--output", "{corpus}"), "exists already"),
        (("--base", "{base}", "--text-column", "txet"), "did you mean `text`"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    arguments: tuple[str, ...],
    words: str,
    adapter: Path,
    base_folders: dict[str, Path],
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = {"base": base_folders["bert"], "other": base_folders["roberta"], "corpus": corpus}
    assert evaluate(adapter, "--data", corpus, *[one.format(**named) for one in arguments]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_tensors_that_a_folder_lacks_are_not_made_up(
    base_folders: dict[str, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_adapter(tmp_path / "cut", base_folders["bert"], peft_configs("bert")["lora-qv"], 3, seed=0)
    path = tmp_path / "cut" / "adapter_model.safetensors"
    assert evaluate(tmp_path / "cut", "--data", corpus, "--labels", LABELS[0], *LABELS[:2]) == 1
    assert f"--labels has `{LABELS[0]}` twice" in capsys.readouterr().err
    tensors = load_file(path)
    gone = next(name for name in tensors if "lora_B" in name)
    del tensors[gone]
    save_file(tensors, path)
    assert evaluate(tmp_path / "cut", "--data", corpus, "--labels", *LABELS) == 1
    assert f"lacks the tensor `{gone}`" in capsys.readouterr().err


def test_the_test_rows_of_a_set_without_any_are_those_that_a_run_cuts_off(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text("text,label\n" + "".join(f"text {i},label{i % 3}\n" for i in range(300)), encoding="utf-8")
    name, rows = load_split(str(path), "test", "single_label")
    assert (name, len(rows)) == ("all (test)", 60)
    assert set(rows) == set(load(str(path), None, seed=5).test)
    name, rows = load_split(str(path), None, "single_label")
    assert (name, len(rows)) == ("all (all rows)", 300)


def test_a_folder_with_test_rows_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("text,label\na,b\n", encoding="utf-8")
    assert len(load_split(str(tmp_path), None, "single_label")[1]) == 1


@pytest.mark.parametrize("num_labels", [2, 30, 31, 150])
def test_a_confusion_matrix_leaves_every_label_room_for_its_name(num_labels: int, tmp_path: Path) -> None:
    labels = [f"$label$ {index} with a name that is longer than the margin" for index in range(num_labels)]
    pictures.confusion(np.eye(num_labels, dtype=np.int64), labels, tmp_path / "one.png")
    width, height = size_of(tmp_path / "one.png")
    # 5.5 points are 11 dots at 150 dots an inch
    assert min(width, height) > 11 * num_labels
    assert max(width, height) < 6000


def test_labels_in_any_script_are_drawn_without_a_warning(tmp_path: Path) -> None:
    pictures.confusion(np.eye(2, dtype=np.int64), ["猫", "🚢\n_x_"], tmp_path / "one.png")
