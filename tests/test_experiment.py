"""The worked example, the cases and the drawing of the tree say what the rows say, and change when they do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from decision import command, listing
from decision.comparison import non_inferiority
from decision.errors import DecisionError
from decision.listing import picture
from decision.rows import Predictions, QualityRow, Row, Writer, read
from decision.tree import Shortlist
from docs import cases, evidence, experiment, experiment_figures, findings, generate, sweep, tables
from docs.experiment_figures import TREE_IN
from tests import planted
from tests.test_decision_quality import twin
from training.grid_plan import read_plan

ABOUT = evidence.FOLDER / "evidence.toml"
DOCS = Path(generate.__file__).parent
PARTS = (
    experiment.candidates_table, experiment.tasks_table, experiment.coverage_part, experiment.headline_table,
    experiment.accuracies_table, experiment.across_table, experiment.details_table, experiment.example_table,
    findings.findings_part, findings.doubts_part, cases.cases_part,
)  # fmt: skip
CACHED = (
    evidence.tree, evidence.summary, evidence.cells, evidence.runs, evidence.sweep_cells, evidence.sweep_runs,
    evidence.example_rows, cases.answer,
)  # fmt: skip


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Sequence[Row]], None]]:
    """Let the documents be about other rows."""

    def take(rows: Sequence[Row]) -> None:
        for path in tmp_path.glob("*"):
            path.unlink()
        (tmp_path / "evidence.toml").write_bytes(ABOUT.read_bytes())
        with Writer(tmp_path / "serving.jsonl") as serving, Writer(tmp_path / "quality.jsonl") as quality:
            for row in rows:
                (quality if isinstance(row, QualityRow) else serving).write(row)
        monkeypatch.setattr(evidence, "FOLDER", tmp_path)
        for function in CACHED:
            function.cache_clear()

    yield take
    monkeypatch.undo()
    for function in CACHED:
        function.cache_clear()


def made_up() -> list[Row]:
    return [*planted.quality((100, 500)), *planted.serving()]


def test_tables_have_the_accuracies_of_the_rows() -> None:
    """Computed from the rows without the code that makes the tables."""
    found: dict[tuple[str, int, str], list[float]] = {}
    for row in read(evidence.FOLDER / evidence.QUALITY):
        if isinstance(row, QualityRow):
            found.setdefault((row.task, row.train_rows, row.candidate), []).append(row.test_accuracy)
    lines = experiment.accuracies_table().splitlines()
    heads = [head.strip().rsplit(" ", 1) for head in lines[0].strip("|").split("|")[1:]]
    shown = 0
    for line in lines[2 : 2 + len(evidence.plan().candidates)]:
        name, *numbers = (cell.strip(" `*") for cell in line.strip("|").split("|"))
        for (task, size), number in zip(heads, numbers, strict=True):
            runs = found.get((task, int(size.replace(",", "")), name))
            assert number == (f"{100 * np.mean(runs):.1f}" if runs else tables.NOTHING)
            shown += runs is not None
    assert shown == len(found)


def test_verdicts_in_the_headline_are_those_of_its_intervals() -> None:
    lines = experiment.headline_table().splitlines()[2:]
    numbers = re.findall(r"(\**)[+−]\d+\.\d \[([+−]\d+\.\d), ([+−]\d+\.\d)\]", "\n".join(lines).replace("− ", "−"))
    assert len(numbers) >= 4 * len(evidence.cells()) / 2
    for marks, low, high in numbers:
        ends = [float(end.replace("−", "-")) for end in (low, high)]
        if min(abs(end + 1) for end in ends) < 0.051:
            continue  # rounded onto the margin
        verdict = "not worse" if ends[0] > -1 else "worse" if ends[1] < -1 else "undecided"
        assert marks == {"not worse": "**", "worse": "*", "undecided": ""}[verdict]


def test_a_row_that_changes_changes_every_part_that_shows_it(use: Callable[[Sequence[Row]], None]) -> None:
    use(made_up())
    before = {part.__name__: part() for part in PARTS}
    tree, figure = experiment_figures.tree_figure(), experiment_figures.differences_figure()
    yardstick = evidence.tree().qualities["topic"].yardstick(500)
    assert yardstick is not None
    trec = [row for row in made_up() if isinstance(row, QualityRow) and row.task == "trec"]
    kept = [
        row for row in made_up() if not (isinstance(row, QualityRow) and row.candidate == "ia3" and row.task == "trec")
    ]
    use([*kept, *twin(trec, yardstick, "ia3", "ia3", 100)])
    after = {part.__name__: part() for part in PARTS}
    same = {name for name in before if before[name] == after[name]}
    assert same <= {"candidates_table", "tasks_table", "coverage_part", "example_table", "headline_table"}
    assert experiment_figures.tree_figure() != tree
    assert experiment_figures.differences_figure() != figure


def test_what_is_not_measured_is_said_and_not_filled_in(use: Callable[[Sequence[Row]], None]) -> None:
    use([row for row in made_up() if not (isinstance(row, QualityRow) and (row.task, row.train_rows) == ("sick", 500))])
    assert "sick with 500 rows (none)" in experiment.coverage_part()
    assert "sick 500" not in experiment.accuracies_table()
    use([row for row in made_up() if not (isinstance(row, QualityRow) and row.candidate == "houlsby-32")])
    line = next(line for line in experiment.accuracies_table().splitlines() if line.startswith("| `houlsby-32`"))
    assert set(line.split(" | ")[1:]) <= {tables.NOTHING, f"{tables.NOTHING} |"}


def test_a_candidate_that_beats_the_reference_is_named_as_the_yardstick(use: Callable[[Sequence[Row]], None]) -> None:
    rows = made_up()
    trec = [row for row in rows if isinstance(row, QualityRow) and row.task == "trec" and row.train_rows == 500]
    own = [row for row in trec if row.candidate == "full"]
    kept = [row for row in rows if row not in [one for one in trec if one.candidate == "houlsby-32"]]
    better = [
        row.model_copy(update={"candidate": "houlsby-32", "method": "bottleneck", "predictions": perfect(row)})
        for row in own
    ]
    use([*kept, *better])
    assert "`houlsby-32` on trec 500" in experiment.accuracies_table()
    assert "**The yardstick was raised**" in findings.findings_part()


def perfect(row: QualityRow) -> Predictions:
    packed = row.predictions
    truth = packed.labels()
    return packed.pack(truth, truth).model_copy(update={"truth_sha256": packed.truth_sha256})


def test_the_example_is_shown_where_it_has_run_and_decides_nothing(use: Callable[[Sequence[Row]], None]) -> None:
    shown = [
        row.model_copy(update={"plan": "example", "candidate": row.method, "peak_memory_bytes": 512 * 2**20})
        for row in made_up()
        if isinstance(row, QualityRow) and row.task == "trec" and row.candidate in ("lora-qv-8", "houlsby-32")
    ]
    use(made_up())
    stretches = evidence.tree().qualities["topic"].stretches()
    assert "| 700 |" in experiment.example_table()
    with Writer(evidence.FOLDER / evidence.EXAMPLE) as writer:
        for row in shown:
            writer.write(row)
    for function in CACHED:
        function.cache_clear()
    assert "| 512 |" in experiment.example_table()
    assert evidence.tree().qualities["topic"].stretches() == stretches


def test_the_sweep_is_shown_and_decides_nothing(use: Callable[[Sequence[Row]], None]) -> None:
    """Of one candidate that answers as another method does, and others that are all alike; one has no runs."""
    use(made_up())
    stretches = evidence.tree().qualities["topic"].stretches()
    own = [row for row in made_up() if isinstance(row, QualityRow) and (row.task, row.train_rows) == ("trec", 500)]
    names = [candidate.name for candidate in read_plan(evidence.SWEEP_PLAN).candidates]
    accuracies = {}
    with Writer(evidence.FOLDER / evidence.SWEEP) as writer:
        for name in names[:-1]:
            found = [row for row in own if row.candidate == ("prefix-16" if name == "qv-36" else "lora-qv-8")]
            accuracies[name] = np.mean([row.test_accuracy for row in found])
            for row in found:
                writer.write(row.model_copy(update={"plan": "lora", "candidate": name, "method": "lora"}))
    for function in CACHED:
        function.cache_clear()
    settings = sweep.settings_table().splitlines()[2:]
    assert [line.split("`")[1] for line in settings] == names
    for line in settings[:-1]:
        assert f"{100 * accuracies[line.split('`')[1]]:.1f} [" in line
    assert settings[-1].endswith(f"| {tables.NOTHING} | {tables.NOTHING} |")
    cells = [line.split("|") for line in sweep.changes_table().splitlines()[2:] if line.startswith("|")]
    changes = {one[2].strip(): one[3].strip(" *") for one in cells}
    less = 100 * (accuracies["qv-36"] - accuracies["qv-8"])
    assert changes["`qv-36` less `qv-8`"].startswith(f"{less:+.1f} [".replace("-", "−"))
    assert changes["`qv-1` less `qv-8`"] == "+0.0 [+0.0, +0.0]"
    assert changes[f"`{names[-1]}` less `qv-36`"] == tables.NOTHING
    assert f"{5 * (len(names) - 1)} final runs with 500 training rows" in sweep.basis_part()
    assert evidence.tree().qualities["topic"].stretches() == stretches


@pytest.mark.parametrize("name", cases.cases())
def test_a_case_is_answered_as_the_command_answers_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    case = cases.cases()[name]
    assert command.main(["ask", *case.ask.replace('"', "").split()]) == 0
    assert capsys.readouterr().out.rstrip() in (DOCS / "cases.md").read_text(encoding="utf-8")
    answer = cases.answer(case.ask)
    assert answer.path
    assert answer.choice is not None or answer.missing


def test_the_case_of_seven_billion_parameters_is_marked_as_reading_and_arithmetic() -> None:
    found = [cases.answer(case.ask) for case in cases.cases().values() if "mistral-7b" in case.ask]
    assert len(found) == 1
    [answer] = found
    assert answer.verdict == "literature"
    assert answer.choice is not None
    assert answer.choice.memory_gib is not None
    assert 13 < answer.choice.memory_gib < 24
    assert "by formula" in answer.text()
    assert answer.choice.texts_per_s is None


def test_a_drawing_in_letters_too_small_to_read_is_refused() -> None:
    with pytest.raises(DecisionError, match="does not fit into 5 x 1 in"):
        picture(planted.tree(), 5, 1)


def test_where_ends_are_too_many_for_the_page_neighbours_are_drawn_as_one() -> None:
    tree = planted.tree()
    every = list(listing._rows(tree, 0, None, tree.root))
    joined = list(listing._rows(tree, 0, None, tree.root, is_joined=True))
    assert len(joined) < len(every)
    titles = [[row.label.title for row in rows if isinstance(row.node, Shortlist)] for rows in (every, joined)]
    assert [title for title, _ in groupby(titles[0])] == [title for title, _ in groupby(titles[1])]


def test_the_drawing_for_print_is_the_same_each_time() -> None:
    tree = planted.tree()
    assert picture(tree, *TREE_IN) == picture(tree, *TREE_IN)  # a whole grid fits on the page


def test_a_difference_is_judged_alike_in_documents_and_in_the_tree() -> None:
    for cell in evidence.cells():
        quality = experiment.quality_of(cell)
        if quality.yardstick(cell.train_rows) != cell.reference:
            continue
        for standing in quality.standings(cell.train_rows):
            one = evidence.standing(cell, standing.candidate.name)
            assert one is not None
            if one.comparison is not None:
                assert one.comparison.verdict == standing.verdict == non_inferiority(standing.difference)
