"""From rows to tables and figures."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decision.rows import Predictions, QualityRow, RowsError, TrialRow, Writer, read
from server.errors import DataError
from tests.measured import CANDIDATES, Candidate, rows
from training import figures, report
from training.command import main
from training.standings import Cell, Standing
from training.summary import summarise

RESAMPLES = 200
TASKS = {"trec": 1.6, "sick": 0.9}
FEW = tuple(
    candidate for candidate in CANDIDATES if candidate.name in ("majority", "probe", "ia3", "lora-all-8", "full")
)


def made(**changes: object) -> list[QualityRow | TrialRow]:
    """A small grid; changes as for `tests.measured.rows`."""
    grid: dict[str, object] = {
        "tasks": TASKS,
        "sizes": (100, 500),
        "seeds": range(4),
        "candidates": FEW,
        "num_items": 80,
    }
    return rows(**(grid | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def grid() -> list[QualityRow | TrialRow]:
    return made()


def standing(cell: Cell, name: str) -> Standing:
    [found] = [each for each in cell.standings if each.candidate == name]
    return found


def test_every_cell_and_candidate_is_there_once(grid: list[QualityRow | TrialRow]) -> None:
    summary = summarise(grid, resamples=RESAMPLES)
    assert [(cell.task, cell.train_rows) for cell in summary.cells] == [
        ("sick", 100), ("sick", 500), ("trec", 100), ("trec", 500),
    ]  # fmt: skip
    for cell in summary.cells:
        assert {each.candidate for each in cell.standings} == {candidate.name for candidate in FEW}
        assert cell.num_runs == 4 * len(FEW)
    assert summary.missing == ()
    assert [found.train_rows for found in summary.across] == [100, 500]


def test_means_and_differences_are_those_of_the_rows(grid: list[QualityRow | TrialRow]) -> None:
    [cell] = [
        each
        for each in summarise(grid, "full", resamples=RESAMPLES).cells
        if (each.task, each.train_rows) == ("trec", 500)
    ]
    runs = {
        (row.candidate, row.seed): row
        for row in grid
        if isinstance(row, QualityRow) and (row.task, row.train_rows) == ("trec", 500)
    }
    own = [runs["ia3", seed].test_accuracy for seed in range(4)]
    theirs = [runs["full", seed].test_accuracy for seed in range(4)]
    found = standing(cell, "ia3")
    assert found.accuracy.value == pytest.approx(np.mean(own))
    assert found.seed_sd == pytest.approx(np.std(own, ddof=1))
    assert found.macro_f1 == pytest.approx(np.mean([runs["ia3", seed].test_macro_f1 for seed in range(4)]))
    assert found.tuned == (2e-3,)
    assert found.steps_to_share == 200
    assert found.comparison is not None
    assert found.comparison.difference.value == pytest.approx(np.mean(np.subtract(own, theirs)))
    assert found.comparison.p >= 2 / 2**4
    assert found.comparison.holm_p >= found.comparison.p
    assert standing(cell, "full").comparison is None


def test_the_reference_is_the_best_adapter_unless_one_is_named(grid: list[QualityRow | TrialRow]) -> None:
    for cell in summarise(grid, resamples=RESAMPLES).cells:
        adapters = [each for each in cell.standings if each.method not in ("majority", "probe", "full")]
        assert cell.reference == max(adapters, key=lambda each: each.accuracy.value).candidate
    assert {cell.reference for cell in summarise(grid, "probe", resamples=RESAMPLES).cells} == {"probe"}
    with pytest.raises(DataError, match="`lora-r9` is in no row; there are full, ia3"):
        summarise(grid, "lora-r9", resamples=RESAMPLES)


@settings(max_examples=5, deadline=None)
@given(order=st.integers(0, 1000))
def test_the_order_of_rows_does_not_matter(order: int) -> None:
    grid = made(num_items=30, sizes=(100,))
    shuffled = random.Random(order).sample(grid, len(grid))
    assert summarise(shuffled, resamples=50) == summarise(grid, resamples=50)


def test_only_seeds_that_both_have_are_compared(grid: list[QualityRow | TrialRow]) -> None:
    kept = [row for row in grid if not (row.candidate == "ia3" and row.seed in (2, 3) and row.kind == "quality")]
    summary = summarise(kept, "full", resamples=RESAMPLES)
    found = standing(summary.cells[0], "ia3")
    assert found.seeds == (0, 1)
    assert found.comparison is not None
    assert found.comparison.num_seeds == 2
    both = summarise([row for row in kept if row.seed in (0, 1, 90)], "full", resamples=RESAMPLES)
    assert standing(both.cells[0], "ia3").comparison is not None
    assert standing(both.cells[0], "ia3").comparison.difference.value == found.comparison.difference.value  # type: ignore[union-attr]
    assert "`sick` with 100 rows: `ia3` lacks seeds 2, 3" in summary.missing


def test_candidates_without_a_seed_in_common_are_not_compared(grid: list[QualityRow | TrialRow]) -> None:
    kept = [row for row in grid if row.kind == "trial" or (row.candidate == "ia3") == (row.seed == 3)]
    cell = summarise(kept, "full", resamples=RESAMPLES).cells[0]
    assert standing(cell, "ia3").comparison is None
    assert standing(cell, "lora-all-8").comparison is not None


def test_a_run_that_diverged_is_named(grid: list[QualityRow | TrialRow]) -> None:
    first = next(row for row in grid if isinstance(row, QualityRow))
    rows = [row.model_copy(update={"failure": "training diverged"}) if row is first else row for row in grid]
    summary = summarise(rows)
    (sentence,) = summary.diverged
    assert sentence == f"`{first.task}` with {first.train_rows:,} rows: `{first.candidate}`, seed {first.seed}"
    assert sentence in report.render(summary, "", {})
    assert "## Diverged" not in report.render(summarise(grid), "", {})


def test_what_is_missing_is_said_and_nothing_fails(grid: list[QualityRow | TrialRow], tmp_path: Path) -> None:
    kept = [
        row
        for row in grid
        if (row.task, row.train_rows) != ("sick", 500)
        and not (row.task == "trec" and row.train_rows == 100 and row.candidate in ("lora-all-8", "majority"))
    ]
    summary = summarise(kept, "lora-all-8", resamples=RESAMPLES)
    assert "`sick` with 500 rows: nothing" in summary.missing
    assert "`trec` with 100 rows: no `lora-all-8`" in summary.missing
    [cell] = [each for each in summary.cells if (each.task, each.train_rows) == ("trec", 100)]
    assert cell.reference is None
    assert standing(cell, "ia3").collapse_rate is None
    report.write(summary, tmp_path, "made up")
    page = (tmp_path / report.PAGE).read_text(encoding="utf-8")
    assert "- `sick` with 500 rows: nothing" in page
    assert "The reference has no run here" in page


def test_runs_on_different_tests_are_refused(grid: list[QualityRow | TrialRow]) -> None:
    first = next(row for row in grid if isinstance(row, QualityRow))
    other = Predictions.pack(np.zeros(80, dtype=np.int64), np.zeros(80, dtype=np.int64))
    changed = [row.model_copy(update={"predictions": other}) if row is first else row for row in grid]
    with pytest.raises(DataError, match="different test texts"):
        summarise(changed, resamples=RESAMPLES)


def test_a_row_that_is_there_twice_counts_once_and_two_results_are_refused(grid: list[QualityRow | TrialRow]) -> None:
    assert summarise([*grid, *grid], resamples=50) == summarise(grid, resamples=50)
    again = [row.model_copy(update={"train_s": 1.0, "plan": "other"}) for row in grid]
    with pytest.raises(
        DataError, match=r"twice with different results, of plans `made-up` and `other`; name .* --plan"
    ):
        summarise([*grid, *again], resamples=50)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no row of kind `quality`"):
        summarise([])


def test_one_seed_one_task_and_one_candidate_are_enough(tmp_path: Path) -> None:
    small = made(
        tasks={"trec": 1.6}, sizes=(100,), seeds=(0,), candidates=(Candidate("only", "lora", 0, 9_000),), num_trials=1
    )
    summary = summarise(small, resamples=RESAMPLES)
    assert standing(summary.cells[0], "only").seed_sd is None
    assert {path.name for path in report.write(summary, tmp_path, "made up")} == {
        "quality.md", "accuracy-by-bytes.svg", "accuracy-by-bytes.png", "tuning.svg", "tuning.png",
    }  # fmt: skip


def test_baselines_alone_have_nothing_to_be_compared_with(tmp_path: Path) -> None:
    summary = summarise(
        made(candidates=[each for each in FEW if each.name in ("majority", "probe")]), resamples=RESAMPLES
    )
    assert {cell.reference for cell in summary.cells} == {None}
    report.write(summary, tmp_path, "made up")


def test_tuning_is_the_mean_over_its_seeds() -> None:
    grid = made(tasks={"trec": 1.6}, sizes=(100,), candidates=FEW[2:3], num_trials=3)
    trials = [row for row in grid if isinstance(row, TrialRow)]
    values = (0.5, 0.6, 0.9), (0.7, 0.7, 0.7)
    tuned = [
        row.model_copy(update={"seed": 90 + index, "validation_accuracy": value})
        for index, of_seed in enumerate(values)
        for row, value in zip(trials, of_seed, strict=True)
    ]
    [found] = summarise([*tuned, *(row for row in grid if isinstance(row, QualityRow))], resamples=50).cells[0].tunings
    assert found.seeds == (90, 91)
    assert found.num_trials == 3
    assert found.expected_best[0] == pytest.approx((2 / 3 + 0.7) / 2)
    assert found.expected_best[2] == pytest.approx(((0.5 + 0.6 * 7 + 0.9 * 19) / 27 + 0.7) / 2)


def test_each_setting_has_ends_of_its_own() -> None:
    grid = made(tasks={"trec": 1.6}, sizes=(100,), candidates=FEW[2:3], num_trials=3)
    rates = iter((1e-3, 2e-3, 4e-3))
    two = [
        row.model_copy(update={"recipe": {"learning_rate": rate, "head_learning_rate": 10 * rate}})
        for row in grid
        if isinstance(row, TrialRow) and (rate := next(rates))
    ]
    for chosen, is_at_end in ((2e-2, False), (1e-2, True), (4e-2, True)):
        recipe = {"learning_rate": 2e-3, "head_learning_rate": chosen}
        finals = [row.model_copy(update={"recipe": recipe}) for row in grid if isinstance(row, QualityRow)]
        [found] = summarise([*two, *finals], resamples=50).cells[0].standings
        assert found.is_at_end == is_at_end


def test_across_tasks_a_difference_is_the_mean_of_theirs_and_as_sure(grid: list[QualityRow | TrialRow]) -> None:
    summary = summarise(grid, "full", resamples=RESAMPLES)
    for across in summary.across:
        for overall in across.overalls:
            own = [standing(cell, overall.candidate) for cell in summary.cells if cell.train_rows == across.train_rows]
            found = [one.comparison.difference for one in own if one.comparison is not None]
            if overall.candidate == "full":
                assert overall.mean_difference is None
                continue
            assert overall.mean_difference is not None
            assert len(found) == len(across.tasks) == 2
            assert overall.mean_difference.value == pytest.approx(np.mean([one.value for one in found]))
            half = np.sqrt(sum((one.value - one.low) ** 2 for one in found)) / 2
            assert overall.mean_difference.high - overall.mean_difference.value == pytest.approx(half)


def test_tables_are_whole_and_say_what_they_rest_on(grid: list[QualityRow | TrialRow]) -> None:
    page = report.render(summarise(grid, resamples=RESAMPLES), "adaptermux-train report again", {})
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2 + 3 * 4  # sizes across tasks; results, training and tuning of each cell
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert page.count("made by* `adaptermux-train report again`") == len(tables)
    assert "*20 runs, 4 seeds (0, 1, 2, 3), 80 test texts; made by*" in page
    assert "*12 trials, 1 seed (90); made by*" in page
    assert "nan" not in page


def test_runs_that_saw_different_data_are_not_compared(grid: list[QualityRow | TrialRow]) -> None:
    rows = [row.model_copy(update={"data_sha256": row.candidate[:2]}) for row in grid]
    with pytest.raises(DataError, match="saw different data"):
        summarise(rows, resamples=10)


def test_the_command_writes_the_same_page_and_figures_twice(
    grid: list[QualityRow | TrialRow], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for index, path in enumerate(files):
        with Writer(path) as writer:
            for row in grid[index::2]:
                writer.write(row)
    flags = ["--results", *map(str, files), "--reference", "lora-all-8", "--json"]
    contents = []
    for turn in (flags, [flags[0], *flags[2:0:-1], *flags[3:]]):
        assert main(["report", *turn, "--output", str(tmp_path / "out")]) == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()})
    first, second = contents
    assert set(first) == {
        f"{name}.{kind}" for name in ("accuracy-by-bytes", "accuracy-by-rows", "tuning") for kind in ("svg", "png")
    } | {"quality.md"}
    assert [name for name in first if first[name] != second[name]] == ["quality.md"]  # it quotes the order of the files
    printed = json.loads(capsys.readouterr().out.split("\n}\n")[0] + "}")
    assert printed["cells"][0]["reference"] == "lora-all-8"
    assert f"adaptermux-train report --results {files[0]} {files[1]} --output" in first["quality.md"].decode()


def test_a_vocabulary_is_not_said_to_weigh_nothing() -> None:
    words = Candidate("words", "words", -1.0, 0, learns=False)
    grid = made(tasks={"trec": 1.6}, sizes=(100,), candidates=[words, *FEW])
    page = report.render(summarise(grid, resamples=50), "made up", {})
    assert "| `words` | – | – | – |" in page
    assert "| `majority` | – | 0 | 0 |" in page


def test_a_file_that_is_no_evidence_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"kind": "quality"}\n', encoding="utf-8")
    assert main(["report", "--results", str(path), "--output", str(tmp_path / "out")]) == 1
    assert f"`{path}`, line 1" in capsys.readouterr().err
    assert main(["report", "--results", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_a_line_that_was_cut_off_within_a_character_is_left_out(
    grid: list[QualityRow | TrialRow], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    source = grid[0].provenance.model_copy(update={"command": "grid --plan ü/\u2028.toml"})
    row = grid[0].model_copy(update={"provenance": source})
    with Writer(path) as writer:
        writer.write(row)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: whole.index("ü".encode()) + 1])
    assert read(path) == [row]
    with Writer(path) as writer:
        writer.write(row)
    assert path.read_bytes() == whole + whole


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_is_said(grid: list[QualityRow | TrialRow], tmp_path: Path) -> None:
    with (
        pytest.raises(RowsError, match=r"`/dev/full` cannot be written: .*No space left.*; what was finished before"),
        Writer(Path("/dev/full")) as writer,
    ):
        writer.write(grid[0])
    with pytest.raises(RowsError, match=r"cannot be written: .*directory"):
        Writer(tmp_path)


@pytest.mark.parametrize("num_methods", [1, 2])
def test_no_two_candidates_look_alike(num_methods: int) -> None:
    many = [Candidate(f"c{index}", f"m{index % num_methods}", 0, 1000) for index in range(20)]
    summary = summarise(made(candidates=many, seeds=(0,), sizes=(100,)), resamples=20)
    looks = figures.looks_of(summary.cells)
    assert len(looks) == 20
    assert len({(look.colour, look.marker) for look in looks.values()}) == 20
    assert list(looks)[:2] == ["c0", f"c{num_methods}"]  # of one method, and c2 before c10


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), max_size=12), st.floats(0.01, 0.5))
def test_spread_places_are_apart_and_in_order(values: list[float], gap: float) -> None:
    places = figures.spread(values, gap)
    ordered = sorted(places)
    assert all(later - former >= gap - 1e-9 for former, later in pairwise(ordered))
    assert [places[index] for index in np.argsort(values, kind="stable")] == ordered
    if all(abs(one - other) >= gap for index, one in enumerate(values) for other in values[:index]):
        assert places == pytest.approx(values)


def test_a_report_needs_no_torch() -> None:
    code = "import sys, training.report, training.figures, training.verbs.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
