"""`adaptermux-decide`: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from decision import command
from decision.answer import Answer
from decision.drawing import render
from decision.evidence import Evidence
from decision.question import Question, ask
from decision.rows import QualityRow, Writer
from decision.sensitivity import outcome, sensitivity
from decision.tree import Tree
from tests import planted

ROOT = Path(__file__).parent.parent
QUESTION = ["--task-type", "topic", "--train-rows", "500"]
TASKS, CANDIDATES = ("trec", "sick"), ("probe", "ia3", "lora-qv-8", "houlsby-32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder of evidence: two tasks, four candidates."""
    found = tmp_path_factory.mktemp("evidence")
    with Writer(found / "rows.jsonl") as writer:
        for row in [*planted.quality((100, 500)), *planted.serving()]:
            if not isinstance(row, QualityRow) or (row.task in TASKS and row.candidate in CANDIDATES):
                writer.write(row)
    (found / "evidence.toml").write_text('[task_types]\ntopic = "trec"\npair = "sick"\n', encoding="utf-8")
    return found


def run(folder: Path, *arguments: str) -> int:
    verb, *others = arguments
    return command.main([verb, "--evidence", str(folder), *others])


def test_an_answer_says_what_why_and_on_which_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "ask", *QUESTION) == 0
    said = capsys.readouterr().out
    assert "What kind of task is it? topic, as trec" in said
    assert "rests on" in said
    assert "trec, 500 rows, seeds 0-4" in said
    assert "0123456789ab" in said


def test_json_is_the_whole_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "ask", *QUESTION, "--adapters", "50", "--rps", "700", "--locked-base", "--json") == 0
    answer = Answer.model_validate_json(capsys.readouterr().out)
    assert answer.question == ask(
        {"task_type": "topic", "train_rows": 500, "adapters": 50, "rps": 700, "locked_base": True}
    )
    assert answer.choice is not None
    assert answer.choice.cost is not None
    assert answer.choice.cost.replicas > 1


def test_dearer_hours_cost_more(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = (ROOT / "decision" / "prices.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(prices.replace("cpu_per_hour = 0.10", "cpu_per_hour = 1"), encoding="utf-8")
    months = []
    for others in ([], ["--prices", str(tmp_path / "mine.toml")]):
        assert run(folder, "ask", *QUESTION, "--json", *others) == 0
        months.append(json.loads(capsys.readouterr().out)["choice"]["cost"]["per_month"])
    assert months[1] == pytest.approx(10 * months[0], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train-rows", "few"], "`train_rows`: Input should be a valid integer"),
        (["--hot", "3"], "`hot` is 3, more than the 1 `adapters`"),
        (["--base", "gpt"], "`base` is `gpt`, it must be one of minilm, bert-base"),
        (["--task-type", "poetry"], "`task_type` is `poetry`, it must be one of topic, pair, "),
        (["--p95-ms", "0"], "`p95_ms`: Input should be greater than 0, not '0'"),
        (["--mean-tokens", "30", "--max-tokens", "20"], "`mean_tokens` is 30, more than `max_tokens`, 20"),
        (["--rps", "nan"], "`rps`: Input should be a finite number"),
    ],
)
def test_a_question_that_cannot_be_names_the_field(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(folder, "ask", *QUESTION, *arguments) == 2
    assert message in capsys.readouterr().err


def test_evidence_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none", "ask", *QUESTION) == 1
    assert "is no folder; name one with files of rows" in capsys.readouterr().err
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    assert run(tmp_path, "ask", *QUESTION) == 1
    assert "line 1" in capsys.readouterr().err


MOVED: list[tuple[str, dict[str, Any]]] = [
    ("train_rows", {}),
    ("p95_ms", {"p95_ms": 50}),
    ("memory_gib", {"memory_gib": 1, "adapters": 600}),
    ("adapters", {"adapters": 90}),
    ("rps", {"rps": 100}),
]


@pytest.mark.parametrize(("field", "given"), MOVED)
def test_within_a_span_the_answer_stays_and_at_its_end_it_changes(field: str, given: dict[str, Any]) -> None:
    question = Question(task_type="topic", **({"train_rows": 500} | given))
    spans = sensitivity(planted.tree(), question, field)
    for one, other in pairwise(spans):
        assert one.end <= other.start
        assert outcome(one.last) != outcome(other.first)
    for span in spans:
        assert outcome(span.first) == outcome(span.last)
        middle = (span.start * span.end) ** 0.5
        if field in ("train_rows", "adapters"):
            middle = int(middle)
        if span.start <= middle <= span.end:
            moved = ask(question.model_dump() | {field: middle})
            assert outcome(planted.tree().answer(moved)) == outcome(span.first)


def test_break_points_in_rows_are_the_thresholds_of_the_tree() -> None:
    spans = sensitivity(planted.tree(), Question(task_type="topic", train_rows=500), "train_rows")
    starts = [stretch.start for stretch in planted.tree().qualities["topic"].stretches()]
    assert {span.start for span in spans[1:]} <= set(starts)


def test_sensitivity_prints_a_line_a_span(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "sensitivity", "--move", "p95-ms", "--from", "1", "--to", "500", *QUESTION) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("p95_ms 1 to ")
    assert lines[-1].split(":")[0].endswith(" to 500")
    assert run(folder, "sensitivity", "--move", "rps", "--json", *QUESTION) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["from"] == pytest.approx(1 / 30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--move", "device"], "`device` cannot be moved; it must be one of train_rows"),
        (["--move", "p95-ms"], "`p95_ms` is not given, so say from where to where"),
        (["--move", "rps", "--from", "9", "--to", "3"], "`rps` cannot move from 9 to 3"),
    ],
)
def test_what_cannot_be_moved_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(folder, "sensitivity", *arguments, *QUESTION) == 2
    assert message in capsys.readouterr().err


def test_the_matrix_has_a_row_a_kind_of_task_and_a_column_a_size(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "matrix", "--format", "md") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| task | 100 rows | 500 rows |"
    assert [line.split(" ")[1] for line in table[2:4]] == ["topic", "pair"]
    assert run(folder, "matrix", "--format", "json", "--rows", "50") == 0
    assert json.loads(capsys.readouterr().out)["topic"]["50"]["confidence"] in ("low", "none")
    assert run(folder, "matrix", "--rows", "0") == 2
    assert "`train_rows`: Input should be greater than or equal to 1, not 0" in capsys.readouterr().err


def test_where_no_command_measures_it_none_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "ask", "--task-type", "generation", "--train-rows", "500") == 0
    lines = capsys.readouterr().out.splitlines()
    place = next(index for index, line in enumerate(lines) if "measures no generation" in line)
    assert all(line.startswith("  - ") for line in lines[place : place + 2])


@pytest.fixture(scope="module")
def small(folder: Path) -> Tree:
    return Tree(Evidence.read(folder), planted.PRICES)


@pytest.mark.parametrize(("form", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("md", b"- **Is the base")])
def test_the_tree_is_written_twice_alike(small: Tree, tmp_path: Path, form: str, start: bytes) -> None:
    paths = [tmp_path / f"{number}.{form}" for number in (1, 2)]
    for path in paths:
        render(small, path, form)
    one, other = (path.read_bytes() for path in paths)
    assert one.startswith(start)
    assert one == other
    if form == "svg":
        for shown in (b"What kind of task is it?", b"topic, as trec", b"from literature: lora"):
            assert shown in one


def test_the_tree_goes_where_it_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "render") == 0
    assert "**What kind of task is it?**" in capsys.readouterr().out
    assert run(folder, "render", "--output", str(tmp_path / "tree.md")) == 0
    assert (tmp_path / "tree.md").exists()
    assert run(folder, "render", "--output", "tree.doc") == 2
    assert "ends in none of pdf, svg" in capsys.readouterr().err


def test_it_decides_without_torch_transformers_or_fastapi() -> None:
    code = f"""
import sys
for name in ("torch", "transformers", "fastapi", "peft", "matplotlib", "scipy"):
    sys.modules[name] = None
from decision.command import main
sys.exit(main({shlex.split(command.EXAMPLES["ask"])[1:]!r}))
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("verb", command.EXAMPLES)
def test_examples_in_the_help_parse(verb: str) -> None:
    name, *arguments = shlex.split(command.EXAMPLES[verb])
    assert name == "adaptermux-decide"
    assert command.make_parser().parse_args(arguments)
