"""Comparisons: what a plan asks for, what a killed run keeps, and that every candidate meets the same conditions."""

from __future__ import annotations

import json
import operator
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path

import pytest
import torch

from decision.outcomes import has_collapsed
from decision.rows import MAJORITY, QualityRow, RowsError, TrainedRow, TrialRow, Writer, quality, read_trained
from server.errors import AdaptermuxError, RecipeError, TrainingFailed
from server.families import family_of
from server.methods import methods
from tests import measured
from tests.corpora import write_corpus
from training import command, fit, grid
from training.baselines import FullFineTuning
from training.cell import run_cell
from training.data import load
from training.estimate import Estimate
from training.fit import _Order, make_model, true_answers
from training.grid import expected, finished, rows_of, run_grid
from training.grid_plan import Cell, GridPlan, Group, Task, groups, read_plan
from training.recipe import Recipe, Trainable
from training.texts import Texts
from training.workers import Processes, Ray

ROOT = Path(__file__).parent.parent
PLANS = sorted((ROOT / "training" / "plans").glob("*.toml"))
PLAN = """
name = "tiny"
base = "{base}"
train_rows = [24]
tuning_seeds = [9]
final_seeds = [0, 1]
max_test_rows = 30
num_evaluations = 2
recipe = {{ epochs = 4, batch_size = 8, max_length = 16, precision = "float32" }}
tasks = {{ topics = {{ hub = "nobody/topics" }} }}
candidates = [
    {{ name = "most", method = "majority" }},
    {{ name = "words", method = "words", tune = {{ strength = [1.0, 10.0] }} }},
    {{ name = "probe", method = "probe", tune = {{ strength = [1.0, 10.0] }} }},
    {{ name = "small", method = "lora", options = {{ rank = 2 }}, tune = {{ learning_rate = [1e-3, 1e-2] }} }},
    {{ name = "whole", method = "full", tune = {{ learning_rate = [1e-4, 1e-3] }} }},
]
"""
NUM_CELLS = 4 * 2 + 5 * 2
"""Trials of the four that are tuned, and final runs of all."""


class Here:
    """Runs cells in this process, one at a time."""

    width = 1

    def __init__(self, num_cells: int | None = None) -> None:
        self.left = num_cells
        self.cells: list[Cell] = []

    def submit(self, cell: Cell, command: str) -> Future[TrainedRow]:
        future: Future[TrainedRow] = Future()
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = None if self.left is None else self.left - 1
        self.cells.append(cell)
        try:
            future.set_result(run_cell(cell, command))
        except AdaptermuxError as error:
            future.set_exception(error)
        return future

    def has_given_up(self, error: BaseException) -> bool:
        return False

    def restart(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_corpus(root)
    return root


@pytest.fixture(scope="module")
def plan_file(base_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "tiny.toml"
    path.write_text(PLAN.format(base=base_folders["bert"]))
    return path


@pytest.fixture(scope="module")
def plan(plan_file: Path) -> GridPlan:
    return read_plan(plan_file)


@pytest.fixture(scope="module")
def whole(plan: GridPlan, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of an undisturbed run."""
    results = tmp_path_factory.mktemp("results") / "quality.jsonl"
    outcome = run_grid(plan, data_root, results, Here(), "by hand")
    assert (outcome.num_run, outcome.failures) == (NUM_CELLS, [])
    return results


def figures(path: Path) -> dict[str, tuple[object, ...]]:
    """What a file's rows say, without the times and where they come from."""
    return {
        row.cell: (row.candidate, row.seed, row.validation_accuracy, row.validation_nll)
        + ((row.predictions, row.temperature, row.adapter_bytes, row.curve) if isinstance(row, QualityRow) else ())
        for row in read_trained(path)
    }


def test_every_candidate_has_its_trials_and_every_final_run_its_figures(whole: Path, plan: GridPlan) -> None:
    rows = read_trained(whole)
    trials = [row for row in rows if isinstance(row, TrialRow)]
    assert sorted(row.candidate for row in trials) == ["probe"] * 2 + ["small"] * 2 + ["whole"] * 2 + ["words"] * 2
    assert {row.seed for row in trials} == {9}
    finals = quality(rows)
    assert sorted((row.candidate, row.seed) for row in finals) == [
        (name, seed) for name in sorted(candidate.name for candidate in plan.candidates) for seed in (0, 1)
    ]
    for row in finals:
        assert row.predictions.num_rows == 30
        assert row.predictions.right().mean() == pytest.approx(row.test_accuracy)
        assert (row.num_labels, row.is_pair, row.task) == (3, False, "topics")
        assert row.provenance.command == "by hand"
        assert len(row.curve) == (2 if row.method in ("lora", "full") else 0)
    small = next(row for row in finals if row.candidate == "small")
    assert small.recipe["options"]["rank"] == 2
    assert small.num_adapter_parameters == 2 * 2 * 2 * (48 + 48)  # rank, layers, q and v, both factors
    assert small.num_head_parameters == 3 * 49
    assert small.adapter_bytes > 4 * (small.num_adapter_parameters + small.num_head_parameters)


def test_what_is_not_tuned_has_its_usual_settings_and_one_measurement_is_at_the_end(
    plan: GridPlan, data_root: Path, tmp_path: Path
) -> None:
    candidates = [
        one.model_copy(update={"tune": {}}) for one in plan.candidates if one.name in ("words", "probe", "small")
    ]
    untuned = plan.model_copy(update={"candidates": candidates, "num_evaluations": 1, "final_seeds": [0]})
    results = tmp_path / "quality.jsonl"
    assert run_grid(untuned, data_root, results, Here(), "by hand").failures == []
    found = {row.method: row for row in quality(read_trained(results))}
    assert set(found) == {"words", "probe", "lora"}
    assert found["words"].recipe == found["probe"].recipe == {"strength": 10.0}
    assert [step for step, _ in found["lora"].curve] == [found["lora"].num_steps]


def test_final_runs_have_what_was_chosen_in_the_trials(whole: Path, plan: GridPlan, data_root: Path) -> None:
    rows = finished(whole)
    for group in groups(plan, data_root):
        if group.candidate.name in ("small", "whole"):
            chosen = {row.recipe["learning_rate"] for row in quality(list(rows.values()))
                      if row.candidate == group.candidate.name}  # fmt: skip
            assert chosen == {dict(group.choose(rows))["learning_rate"]}


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        ((0.9, 0.5), (0.8, 0.6), 0),
        ((0.9, 0.5), (0.86, 0.4), 1),  # the standard error of 24 rows is 0.061: as good, and likelier
        ((0.9, 0.5), (0.83, 0.4), 0),
        ((0.9, 0.5), (0.9, 0.5), 0),
        ((0.0, None), (0.1, 0.9), 1),
        ((0.0, None), (0.0, None), 0),
    ],
)
def test_of_trials_within_one_standard_error_the_likeliest_is_chosen(
    first: tuple[float, float | None],
    second: tuple[float, float | None],
    chosen: int,
    whole: Path,
    plan: GridPlan,
    data_root: Path,
) -> None:
    group = next(one for one in groups(plan, data_root) if one.candidate.name == "small")
    rows = finished(whole)
    for cell, (accuracy, surprise) in zip(group.trials(), (first, second), strict=True):
        figures = {"validation_accuracy": accuracy, "validation_nll": surprise}
        rows[cell.key] = rows[cell.key].model_copy(update=figures)
    assert group.choose(rows) == group.candidate.trials()[chosen]


def test_rows_say_which_data_they_saw(whole: Path) -> None:
    rows = read_trained(whole)
    for seed in (0, 1, 9):
        assert len({row.data_sha256 for row in rows if row.seed == seed}) == 1
    assert len({row.data_sha256 for row in rows}) == 3


def test_a_second_run_gives_the_same_figures(whole: Path, plan: GridPlan, data_root: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl"
    run_grid(plan, data_root, again, Here(), "by hand")
    assert figures(again) == figures(whole)


def test_a_stopped_run_goes_on_with_what_is_missing(
    whole: Path, plan: GridPlan, data_root: Path, tmp_path: Path
) -> None:
    results = tmp_path / "part.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_grid(plan, data_root, results, Here(num_cells=5), "by hand")
    with results.open("a") as file:
        file.write('{"schema_number": 1, "plan": "ti')  # as a crash may leave it
    rest = Here()
    outcome = run_grid(plan, data_root, results, rest, "by hand")
    assert (outcome.num_found, outcome.num_run, len(rest.cells)) == (5, NUM_CELLS - 5, NUM_CELLS - 5)
    assert figures(results) == figures(whole)
    other = plan.model_copy(update={"final_seeds": [1]})
    again = run_grid(other, data_root, results, Here(num_cells=0), "by hand")
    assert (again.num_found, again.num_run) == (NUM_CELLS - 5, 0)  # of this plan, not of the file


def test_a_run_whose_time_is_up_begins_nothing_more(plan: GridPlan, data_root: Path, tmp_path: Path) -> None:
    outcome = run_grid(plan, data_root, tmp_path / "none.jsonl", Here(), "by hand", stop_after_s=-1)
    assert outcome.num_run == 0
    assert outcome.num_left > 0


def test_a_report_takes_the_rows_that_a_plan_asks_for_now(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Values that were added to a plan may choose other final runs, and another plan may have other names."""
    text, wider, renamed = plan_file.read_text(), tmp_path / "wider.toml", tmp_path / "renamed.toml"
    wider.write_text(
        text.replace("10.0]", "10.0, 50.0]").replace("1e-3]", "1e-3, 5e-1]").replace("1e-2]", "1e-2, 5e-1]")
    )
    renamed.write_text(text.replace('"small"', '"little"').replace('"tiny"', '"other"'))
    narrow, wide = filled(plan_file), filled(wider)
    rows = [*narrow, *(row for row in wide if row.cell not in {other.cell for other in narrow})]
    assert len(rows) == NUM_CELLS + 4 + 4 * 2
    key = operator.attrgetter("cell")
    assert sorted(rows_of(read_plan(plan_file), rows), key=key) == sorted(narrow, key=key)
    assert sorted(rows_of(read_plan(wider), rows), key=key) == sorted(wide, key=key)
    found = rows_of(read_plan(renamed), rows)
    assert {row.plan for row in found} == {"other"}
    assert {row.candidate for row in found} == {"most", "words", "probe", "little", "whole"}
    unfinished = [row for row in rows if not isinstance(row, TrialRow) or row.method != "full"]
    assert not [row for row in rows_of(read_plan(wider), unfinished) if row.method == "full"]
    results = tmp_path / "rows.jsonl"
    with Writer(results) as writer:
        for row in rows:
            writer.write(row)
    flags = ["report", "--results", str(results), "--output", str(tmp_path / "report")]
    assert command.main(flags) == 1
    assert "is there twice with different results, of plans `tiny` and `tiny`" in capsys.readouterr().err
    assert command.main([*flags, "--plan", str(wider), "--json"]) == 0
    [cell] = json.loads(capsys.readouterr().out)["cells"]
    assert {one["candidate"]: one["tuned"] for one in cell["standings"]}["small"] == [5e-1]


def filled(path: Path) -> list[TrainedRow]:
    """Rows of every cell of a plan, of which the highest setting did best."""
    made = measured.rows(tasks={"topics": 1.0}, sizes=(24,), seeds=(0,), num_items=30)
    trial = next(row for row in made if isinstance(row, TrialRow))
    final = next(row for row in made if isinstance(row, QualityRow))
    rows: dict[str, TrainedRow] = {}

    def add(mould: TrainedRow, cell: Cell) -> None:
        facts = {name: getattr(cell, name) for name in ("plan", "candidate", "method", "seed")}
        merit = {"validation_accuracy": 0.9, "validation_nll": 1 / (2 + sum(dict(cell.settings).values()))}
        rows[cell.key] = mould.model_copy(update={**facts, **merit, "cell": cell.key, "recipe": dict(cell.settings)})

    for group in groups(read_plan(path), None):
        for cell in group.trials():
            add(trial, cell)
        for cell in group.finals(group.choose(rows)):
            add(final, cell)
    return list(rows.values())


def test_trials_do_not_see_the_test_rows(plan: GridPlan, data_root: Path, tmp_path: Path) -> None:
    trial = next(cell for group in groups(plan, data_root) for cell in group.trials() if cell.method == "lora")
    changed = tmp_path / "topics"
    changed.mkdir()
    (changed / "train.csv").write_bytes((data_root / "topics" / "train.csv").read_bytes())
    lines = (data_root / "topics" / "test.csv").read_text().splitlines(keepends=True)
    (changed / "test.csv").write_text("".join([lines[0], *(line.replace("word", "other") for line in lines[1:])]))
    (other,) = [cell for group in groups(plan, tmp_path) for cell in group.trials() if cell.key == trial.key]
    first, second = run_cell(trial, ""), run_cell(other, "")
    assert isinstance(first, TrialRow)
    assert (first.validation_accuracy, first.validation_nll) == (second.validation_accuracy, second.validation_nll)


def test_a_trial_that_diverges_counts_as_one_and_is_never_chosen(
    plan: GridPlan, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = next(one for one in groups(plan, data_root) if one.candidate.method == "full")
    wild = group.candidate.model_copy(update={"tune": {"learning_rate": [1e30, 1e-4]}})
    group = Group(plan, wild, group.task, group.data, group.train_rows)
    rows = {cell.key: run_cell(cell, "") for cell in group.trials()}
    failed = [row for row in rows.values() if isinstance(row, TrialRow) and row.failure]
    assert [(row.validation_accuracy, row.validation_nll) for row in failed] == [(0, None)]
    assert group.choose(rows) == (("learning_rate", 1e-4),)


def final_cell(plan: GridPlan, data_root: Path, method: str, settings: dict[str, float]) -> Cell:
    group = next(one for one in groups(plan, data_root) if one.candidate.method == method)
    return group.finals(tuple(settings.items()))[0]


def test_a_final_run_that_diverges_counts_as_one_that_has_learned_nothing(plan: GridPlan, data_root: Path) -> None:
    wild = run_cell(final_cell(plan, data_root, "full", {"learning_rate": 1e30}), "")
    majority = run_cell(final_cell(plan, data_root, MAJORITY, {}), "")
    assert isinstance(wild, QualityRow)
    assert isinstance(majority, QualityRow)
    assert wild.failure is not None
    assert "diverged" in wild.failure
    assert wild.predictions == majority.predictions
    assert has_collapsed(wild.test_accuracy, majority.test_accuracy)
    assert wild.num_adapter_parameters > 0
    assert wild.num_steps > 0
    assert QualityRow.model_validate_json(wild.model_dump_json()) == wild


def test_final_runs_that_diverge_are_told_of(
    plan_file: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = tmp_path / "wild.toml"
    wild.write_text(plan_file.read_text().replace("learning_rate = [1e-4, 1e-3]", "learning_rate = [1e30, 1e31]"))
    flags = [
        "--plan",
        str(wild),
        "--data-root",
        str(data_root),
        "--results",
        str(tmp_path / "r.jsonl"),
        "--workers",
        "1",
    ]
    assert command.main(["grid", *flags, "--quiet"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("diverged, ")]
    assert [line.rpartition(": ")[2] for line in told] == [
        f"task topics, train_rows 24, candidate whole, seed {seed}" for seed in (0, 1)
    ]


def test_an_adapter_that_diverged_is_not_written(plan: GridPlan, data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="diverged"):
        run_cell(final_cell(plan, data_root, "lora", {"learning_rate": 1e30}), "", folder=tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_one_seed_gives_every_candidate_the_same_rows_order_and_head(
    base_folders: dict[str, Path], data_root: Path
) -> None:
    from server.tokenizer import Tokenizer

    folder, family = base_folders["bert"], family_of("bert")
    heads: list[torch.Tensor] = []
    splits = load(str(data_root / "topics"), 24, 5)
    texts = Texts(splits.train, true_answers(splits)["train"], Tokenizer(folder), 16)
    assert load(str(data_root / "topics"), 24, 5) == splits
    trainable: list[Trainable] = [*methods().values(), FullFineTuning()]
    for method in trainable:
        torch.manual_seed(5)
        model = make_model(folder, Recipe().settle(method, family, 24, 64), method, family, splits, texts)
        named = {name: parameter for name, parameter in model.named_parameters() if "original_module" not in name}
        heads += [parameter for name, parameter in named.items() if "classifier" in name and "weight" in name]
    assert len(heads) == len(trainable)
    assert all(torch.equal(head, heads[0]) for head in heads)
    orders = []
    for drawn in (0, 7):
        torch.manual_seed(drawn)
        torch.rand(drawn)  # what a method may draw from the common source
        sampler = _Order(8, texts)
        sampler.seed = 5
        passes = []
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            passes.append(list(sampler))
        orders.append(passes)
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("final_seeds = [0, 1]", "final_seeds = [0, 9]", "seed 9 is among"),
        ("final_seeds = [0, 1]", "final_seeds = [0, 0]", "`final_seeds` holds the same one twice"),
        ('name = "small"', 'name = "most"', "`candidates` holds the same one twice"),
        ("[1e-3, 1e-2]", "[1e-3]", "same number of trials; they have: words 2, probe 2, small 1, whole 2"),
        ('method = "lora"', 'method = "lara"', "method `lara` is unknown; there are: .*majority"),
        ("strength", "learning_rate", "`learning_rate` cannot be tuned for words; can be: strength"),
        ("rank = 2", "size = 2", "option `size` is unknown to method lora; its options: rank"),
        ("rank = 2", "rank = 0", "option `rank` is 0.0, it must lie between 1"),
        ("tuning_seeds = [9]", "", "`tuning_seeds` is empty"),
        ("tuning_seeds = [9]", "tuning_seeds = [9, 9]", "`tuning_seeds` holds the same one twice"),
        ("[1e-3, 1e-2]", "[1e-3, 1e-3]", r"`tune.learning_rate` is \[0.001, 0.001\], not one or more different values"),
        ("[1e-3, 1e-2]", "[1e-3, 0]", r"`tune.learning_rate` is \[0.001, 0.0\], .*above 0"),
        ("[1e-3, 1e-2]", "[]", r"`tune.learning_rate` is \[\]"),
        ("train_rows = [24]", "train_rows = []", "`train_rows`"),
        ("train_rows = [24]", "train_rows = [24]\nepochs = { 25 = 1 }", "`epochs` names 25 rows"),
        ("max_test_rows", "test_rows", "`test_rows`: Extra inputs"),
        ('name = "tiny"', "name = ", "cannot be read"),
    ],
)
def test_a_plan_with_a_mistake_is_refused_and_says_which(
    old: str, new: str, message: str, plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.toml"
    assert old in plan_file.read_text()
    wrong.write_text(plan_file.read_text().replace(old, new, 1))
    with pytest.raises(RecipeError, match=message):
        read_plan(wrong)
    assert command.main(["grid", "--plan", str(wrong), "--results", str(tmp_path / "none.jsonl")]) == 2
    assert "adaptermux-train: " in capsys.readouterr().err
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_our_own_plans_can_be_read_and_have_a_known_number_of_cells(path: Path) -> None:
    plan = read_plan(path)
    assert plan.name == path.stem
    cells = expected(plan, Path("data"), {})
    num_trials = {len(candidate.trials()) for candidate in plan.candidates if candidate.tune}
    assert len(num_trials) <= 1
    assert len({cell.key for cell in cells}) == len(cells)


def test_a_size_may_have_its_own_number_of_passes(plan: GridPlan) -> None:
    longer = plan.model_copy(update={"epochs": {24: 7.0}})
    assert {cell.recipe.epochs for cell in expected(plan, None, {})} == {4}
    assert {cell.recipe.epochs for cell in expected(longer, None, {})} == {7}


@pytest.mark.parametrize(("is_faster", "told"), [(True, "bfloat16"), (False, "float32")])
def test_a_row_tells_what_precision_auto_has_come_to(
    plan: GridPlan, data_root: Path, monkeypatch: pytest.MonkeyPatch, is_faster: bool, told: str
) -> None:
    monkeypatch.setattr(fit, "is_bfloat16_faster", lambda device: is_faster)
    auto = plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"precision": "auto", "epochs": 1})})
    cell = next(cell for group in groups(auto, data_root) for cell in group.trials() if cell.method == "lora")
    assert run_cell(cell, "by hand").recipe["precision"] == told


def test_a_task_without_a_name_on_the_hub_has_its_own(plan: GridPlan) -> None:
    bare = plan.model_copy(update={"tasks": {"topics": Task()}})
    assert {group.data for group in groups(bare, None)} == {"hub:topics"}
    assert {group.data for group in groups(plan, None)} == {"hub:nobody/topics"}


def test_a_dry_run_says_how_many_cells_and_how_long_and_runs_none(
    plan_file: Path, data_root: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["grid", "--plan", str(plan_file), "--data-root", str(data_root), "--dry-run", "--json"]
    assert command.main([*flags, "--results", str(tmp_path / "none.jsonl")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["num_cells"] == NUM_CELLS
    assert told["cpu_s"] >= 0
    assert not (tmp_path / "none.jsonl").exists()
    assert command.main([*flags, "--results", str(whole)]) == 0
    assert json.loads(capsys.readouterr().out)["num_cells"] == 0


def test_the_estimate_learns_from_what_is_finished(plan: GridPlan, data_root: Path, whole: Path) -> None:
    rows, estimate = finished(whole), Estimate()
    cells = [cell for cell in expected(plan, data_root, rows) if cell.method == "lora" and cell.is_final]
    for _ in range(5):
        for cell in cells:
            estimate.note(cell, rows[cell.key])
    measured = sum(rows[cell.key].train_cpu_s for cell in cells)
    assert sum(estimate.cpu_s(cell) for cell in cells) > 0.8 * measured


def test_data_that_cannot_be_read_is_told_before_anything_is_run(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--plan", str(plan_file), "--data-root", str(tmp_path), "--results", str(tmp_path / "none.jsonl")]
    assert command.main(["grid", *flags]) == 1
    assert "topics" in capsys.readouterr().err
    assert not (tmp_path / "none.jsonl").exists()


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with Writer(path), pytest.raises(RowsError, match="is being written by another process"):
        Writer(path)
    Writer(path).__exit__()


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"kind": "trial"}\n')
    with pytest.raises(RowsError, match=r"line 1: `trial\.plan`: Field required"):
        read_trained(path)


@pytest.mark.parametrize("is_seen_first", [False, True], ids=["while-others-run", "before-the-next-cell-is-given"])
def test_a_worker_that_dies_costs_nothing_that_is_finished(
    plan: GridPlan, data_root: Path, whole: Path, tmp_path: Path, is_seen_first: bool
) -> None:
    results, workers = tmp_path / "quality.jsonl", Processes(2)
    killed: list[int] = []

    def kill_once(cell: Cell, row: TrainedRow) -> None:
        if not killed:
            killed.extend(workers._pool._processes or {})
            os.kill(killed[0], signal.SIGKILL)
            while is_seen_first and not workers._pool._broken:
                time.sleep(0.01)

    outcome = run_grid(plan, data_root, results, workers, "by hand", on_row=kill_once)
    assert killed
    assert (outcome.num_run, outcome.failures) == (NUM_CELLS, [])
    assert figures(results) == figures(whole)


def test_a_cell_whose_process_dies_again_and_again_is_given_up(plan: GridPlan, data_root: Path, tmp_path: Path) -> None:
    class Dying(Here):
        def submit(self, cell: Cell, command: str) -> Future[TrainedRow]:
            if cell.method != "full":
                return super().submit(cell, command)
            future: Future[TrainedRow] = Future()
            future.set_exception(BrokenExecutor("out of memory"))
            return future

    outcome = run_grid(plan, data_root, tmp_path / "quality.jsonl", Dying(), "by hand")
    assert {(cell.method, reason) for cell, reason in outcome.failures} == {("full", grid.DIED)}
    assert outcome.num_run == NUM_CELLS - 4


def test_a_cell_that_its_workers_have_given_up_is_told_and_the_others_go_on(
    plan: GridPlan, data_root: Path, tmp_path: Path
) -> None:
    class Crash(Exception): ...

    class GivingUp(Here):
        def submit(self, cell: Cell, command: str) -> Future[TrainedRow]:
            if cell.method != "full":
                return super().submit(cell, command)
            future: Future[TrainedRow] = Future()
            future.set_exception(Crash("three times"))
            return future

        def has_given_up(self, error: BaseException) -> bool:
            return isinstance(error, Crash)

    workers = GivingUp()
    outcome = run_grid(plan, data_root, tmp_path / "quality.jsonl", workers, "by hand")
    assert {(cell.method, reason) for cell, reason in outcome.failures} == {("full", grid.DIED)}
    assert outcome.num_run == len(workers.cells) == NUM_CELLS - 4


def test_a_baseline_that_cannot_be_fitted_is_a_failure_and_a_bug_loses_nothing_that_is_finished(
    plan: GridPlan, tmp_path: Path
) -> None:
    folder = tmp_path / "topics"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}.csv").write_text("text,label\n" + "?,yes\n!,no\n" * 60)
    small = plan.model_copy(update={"candidates": plan.candidates[:2]})
    outcome = run_grid(small, tmp_path, tmp_path / "rows.jsonl", Here(), "by hand")
    assert outcome.num_run == 2
    assert {cell.method for cell, _ in outcome.failures} == {"words"}
    assert "`words` cannot be fitted to 24 rows of" in outcome.failures[0][1]

    class Faulty(Here):
        width = 2

        def submit(self, cell: Cell, command: str) -> Future[TrainedRow]:
            if cell.seed == 1:
                return super().submit(cell, command)
            future: Future[TrainedRow] = Future()
            future.set_exception(ZeroDivisionError("a bug"))
            return future

    results = tmp_path / "again.jsonl"
    with pytest.raises(ZeroDivisionError):
        run_grid(small, tmp_path, results, Faulty(), "by hand")
    assert [row.seed for row in read_trained(results)] == [1]


def test_a_killed_command_leaves_no_process_behind_and_goes_on(
    plan_file: Path, data_root: Path, whole: Path, tmp_path: Path
) -> None:
    results = tmp_path / "quality.jsonl"
    arguments = ["grid", "--plan", plan_file, "--data-root", data_root, "--results", results, "--quiet"]
    words = [sys.executable, "-m", "training", *map(str, arguments)]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: results.exists() and results.stat().st_size > 0)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        process.kill()
    assert children
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    found = len(read_trained(results))
    assert 0 < found < NUM_CELLS
    again = run_grid(read_plan(plan_file), data_root, results, Here(), "by hand")
    assert again.num_run == NUM_CELLS - found
    assert figures(results) == figures(whole)


def test_a_ray_cluster_of_two_nodes_gives_the_same_figures(
    plan: GridPlan, data_root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        workers = Ray(cluster.address)
        assert workers.width == 2
        error = workers._ray.remote(num_cpus=1, max_retries=1)(_die).remote().future().exception(timeout=300)
        assert error is not None
        assert workers.has_given_up(error)
        assert not workers.has_given_up(MemoryError())
        results = tmp_path / "quality.jsonl"
        outcome = run_grid(plan, data_root, results, workers, "by hand")
        assert (outcome.num_run, outcome.failures) == (NUM_CELLS, [])
        assert figures(results) == figures(whole)
    finally:
        cluster.shutdown()


def _die() -> None:
    os._exit(1)


def wait_for(is_so: object, seconds: float = 120) -> None:
    assert callable(is_so)
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
