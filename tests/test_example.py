"""The worked example on small seeded bases: what it leaves, what it says, and that it goes on."""

from __future__ import annotations

import json
import shlex
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decision.bootstrap import crossed_mean
from decision.rows import QualityRow, quality, read
from server import adapter_folder
from server.forward import load_base
from tests.corpora import write_corpus
from tests.test_command import LIMIT_S, running
from tests.test_large_bases import HAS_BITSANDBYTES
from training import command

PLAN = """
name = "example"
train_rows = [2000]
final_seeds = [0, 1]
num_evaluations = 2
recipe = { epochs = 3, max_length = 32, precision = "float32" }
tasks.topics.hub = "none"
candidates = [
    { name = "lora", method = "lora", options = { rank = 4 } },
    { name = "bottleneck", method = "bottleneck", options = { size = 8 } },
]
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), 200)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "small.toml"
    path.write_text(PLAN)
    return path


def example(*arguments: object) -> int:
    return command.main(["example", *map(str, arguments), "--quiet"])


@pytest.fixture(scope="module")
def made(corpus: Path, plan: Path, base_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an example with two methods and two seeds."""
    output = tmp_path_factory.mktemp("made") / "out"
    assert example("--output", output, "--data", corpus, "--plan", plan, "--base", base_folders["bert"]) == 0
    return output


def rows_of(output: Path) -> list[QualityRow]:
    return quality(read(output / "rows.jsonl"))


def test_every_run_leaves_a_row_with_its_memory_and_where_it_comes_from(made: Path) -> None:
    rows = rows_of(made)
    assert [(row.candidate, row.seed) for row in rows] == [
        ("lora", 0), ("bottleneck", 0), ("lora", 1), ("bottleneck", 1)
    ]  # fmt: skip
    for row in rows:
        assert (row.plan, row.task) == ("example", "topics")
        assert row.peak_memory_bytes is not None
        assert 100 * 2**20 < row.peak_memory_bytes < 8 * 2**30
        assert row.provenance.command.startswith("adaptermux-train example --output ")
        assert len(row.curve) == 2


def test_the_adapters_of_the_first_seed_are_those_of_its_rows(made: Path, base_folders: dict[str, Path]) -> None:
    assert {path.name for path in (made / "adapters").iterdir()} == {"topics-lora", "topics-bottleneck"}
    base = load_base(str(base_folders["bert"]), "cpu", "float32")
    for row in rows_of(made)[:2]:
        name = f"topics-{row.candidate}"
        found = adapter_folder.read(made / "adapters", name, base)
        assert found.warnings == ()
        assert found.manifest.training is not None
        assert found.manifest.training.metrics["test_accuracy"].value == row.test_accuracy
        assert found.manifest.training.seed == row.seed == 0
        assert (made / "adapters" / name / "adapter_model.safetensors").stat().st_size == row.adapter_bytes


def test_the_comparison_says_what_the_rows_say(made: Path) -> None:
    table = (made / "comparison.md").read_text()
    for name in ("lora", "bottleneck"):
        rows = [row for row in rows_of(made) if row.candidate == name]
        accuracy = crossed_mean(np.stack([row.predictions.right() for row in rows]))
        assert f"| {name} | {accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}] |" in table
        assert f"{rows[0].num_adapter_parameters + rows[0].num_head_parameters:,}" in table
    assert "| floor: TF-IDF |" in table
    assert "lora less bottleneck, on the same seeds and texts" in table


def test_the_commands_it_prints_serve_and_ask_the_adapters(made: Path) -> None:
    commands = (made / "comparison.md").read_text().split("## Serve them")[1].split("```bash\n")[1].split("```")[0]
    serve, ask = map(shlex.split, commands.strip().splitlines())
    assert serve[0] == "adaptermux-serve"
    with running(*serve[1:]) as (_, events):
        url = ask[2].replace("http://127.0.0.1:8000", events[-1]["url"])
        request = urllib.request.Request(url, ask[-1].encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
            answer = json.load(response)
    assert answer["predictions"][0]["label"] in {"animals", "boats", "cheese"}


def test_it_goes_on_where_it_was_stopped_and_comes_to_the_same(
    made: Path, corpus: Path, plan: Path, base_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--output", made, "--data", corpus, "--plan", plan, "--base", base_folders["bert"], "--json")
    before = (made / "rows.jsonl").read_bytes()
    whole = rows_of(made)
    (made / "rows.jsonl").write_bytes(before[: before.rindex(b"\n", 0, -1) + 20])  # the last row is torn
    assert example(*arguments) == 0
    again = rows_of(made)
    assert [row.model_dump_json() for row in again[:3]] == [row.model_dump_json() for row in whole[:3]]
    assert again[3].predictions == whole[3].predictions
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(found["candidates"]) == {"lora", "bottleneck"}
    assert found["differences"][0]["first_is"] in ("not worse", "worse", "undecided")


def test_other_data_is_not_taken_for_what_is_finished(
    made: Path, plan: Path, base_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_corpus(tmp_path, 200, seed=1)
    before = (made / "rows.jsonl").read_bytes()
    assert example("--output", made, "--data", other, "--plan", plan, "--base", base_folders["bert"]) == 2
    assert "other rows; take another --output" in capsys.readouterr().err
    assert (made / "rows.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--methods", "lora,lara"), "method `lara` is not supported"),
        (("--methods", "prefix", "--gradient-checkpointing"), "does not go with method prefix"),
        (("--methods", "full", "--quantize", "nf4"), "not for `full`"),
        (("--seeds", "0"), "--seeds is 0"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    arguments: tuple[str, ...],
    word: str,
    corpus: Path,
    plan: Path,
    base_folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("--output", tmp_path / "out", "--data", corpus, "--plan", plan, "--base", base_folders["bert"])
    assert example(*given, *arguments) == 2
    assert word in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_llama_is_compared_with_less_memory_and_with_a_baseline(
    corpus: Path, plan: Path, base_folders: dict[str, Path], tmp_path: Path
) -> None:
    output, base_folder = tmp_path / "out", base_folders["llama"]
    memory = ("--gradient-checkpointing", *(("--quantize", "nf4") if HAS_BITSANDBYTES else ()))
    methods = ("--methods", "lora" if HAS_BITSANDBYTES else "lora,majority")
    arguments = ("--output", output, "--data", corpus, "--plan", plan, "--base", base_folder, "--seeds", 1)
    assert example(*arguments, *memory, *methods, "--train-rows", 90) == 0
    rows = rows_of(output)
    assert {row.train_rows for row in rows} == {90}
    assert [row.candidate for row in rows] == methods[1].split(",")
    assert rows[0].recipe["gradient_checkpointing"]
    base = load_base(str(base_folder), "cpu", "float32")
    assert adapter_folder.read(output / "adapters", "topics-lora", base).warnings == ()
    assert [path.name for path in (output / "adapters").iterdir()] == ["topics-lora"]
