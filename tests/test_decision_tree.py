"""The tree answers everything, the same each time, and a looser constraint never makes it worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from decision.answer import Answer, QualityBasis, money
from decision.base_shape import bases
from decision.comparison import non_inferiority
from decision.cost import Prices
from decision.errors import FactsError, QuestionError
from decision.evidence import Evidence
from decision.question import Question, ask
from decision.rows import LatencyRow, Predictions, QualityRow, Row, Writer
from decision.tree import Branch, Shortlist, Tree
from docs import cases
from tests import planted
from tests.test_decision_quality import twin

FEASIBLE = ("use", "literature")
TYPES = ("topic", "intent", "sentiment", "pair", "long_text", "generation", "domain_shift")


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


@st.composite
def questions(draw: st.DrawFn, /, **fixed: st.SearchStrategy[Any]) -> Question:
    adapters = draw(st.integers(1, 5_000))
    mean_tokens = draw(maybe(st.floats(1, 200)))
    given: dict[str, st.SearchStrategy[Any]] = {
        "task_type": st.sampled_from(TYPES),
        "train_rows": st.integers(1, 20_000),
        "num_labels": maybe(st.integers(2, 200)),
        "adapters": st.just(adapters),
        "hot": maybe(st.integers(1, adapters)),
        "rps": st.floats(0.01, 5_000),
        "p95_ms": maybe(st.floats(1, 500)),
        "memory_gib": maybe(st.floats(0.1, 64)),
        "device": st.sampled_from(("cpu", "gpu")),
        "base": st.sampled_from(sorted(bases())),
        "swaps_per_hour": st.sampled_from((0.0, 10.0, 5_000.0, 30_000.0, 90_000.0)),
        "serving": st.sampled_from(("mixed", "merged")),
        "locked_base": st.booleans(),
        "quantised_base": st.booleans(),
        "mean_tokens": st.just(mean_tokens),
        "max_tokens": maybe(st.integers(max(1, int(mean_tokens or 1) + 1), 100_000)),
    }
    return ask({name: draw(strategy) for name, strategy in (given | fixed).items()})


measured_here = questions(
    task_type=st.sampled_from(TYPES[:4]),
    base=st.just("minilm"),
    device=st.just("cpu"),
    quantised_base=st.just(False),
    max_tokens=st.none(),
)


@settings(deadline=None, max_examples=60)
@given(questions())
def test_every_question_has_an_answer_or_a_reason(question: Question) -> None:
    answer = planted.tree().answer(question)
    assert answer.because
    assert answer.path
    assert (answer.choice is not None) == (answer.verdict in FEASIBLE)
    if answer.verdict == "use":
        assert answer.choice is not None
        assert answer.choice.cost is not None
        assert answer.basis
        assert question.p95_ms is None or answer.choice.p95_ms is None or answer.choice.p95_ms <= question.p95_ms
        memory = answer.choice.memory_gib
        assert question.memory_gib is None or memory is None or memory <= question.memory_gib + 1e-9
    if answer.verdict == "undecided":
        assert answer.missing
    assert answer.text()
    assert Answer.model_validate_json(answer.model_dump_json()) == answer


@pytest.fixture(scope="module")
def again() -> Tree:
    return planted.tree_of([*planted.quality(), *planted.serving()][::-1])


@settings(deadline=None, max_examples=30)
@given(question=questions())
def test_the_answer_is_the_same_whatever_the_order_of_rows(again: Tree, question: Question) -> None:
    assert again.answer(question) == planted.tree().answer(question)


def per_month(answer: Answer) -> float | None:
    if answer.choice is None or answer.choice.cost is None:
        return None
    return answer.choice.cost.per_month


LOOSER: dict[str, Callable[[Any, float], Any]] = {
    "memory_gib": lambda value, factor: None if value is None else value * factor,
    "p95_ms": lambda value, factor: None if value is None else value * factor,
    "rps": lambda value, factor: value / factor,
    "adapters": lambda value, factor: max(1, int(value / factor)),
    "hot": lambda value, factor: None if value is None else max(1, int(value / factor)),
    "swaps_per_hour": lambda value, factor: value / factor,
    "mean_tokens": lambda value, factor: None if value is None else value / factor,
}


@pytest.mark.parametrize("field", LOOSER)
@settings(deadline=None, max_examples=25)
@given(question=measured_here, factor=st.floats(1, 50))
def test_a_looser_constraint_never_makes_the_answer_infeasible_or_dearer(
    field: str, question: Question, factor: float
) -> None:
    # fewer merged models at the same rate are each asked more, and need whole replicas of their own: that may cost more
    assume(field != "adapters" or question.serving != "merged")
    value = LOOSER[field](getattr(question, field), factor)
    changes: dict[str, Any] = {field: value}
    if field == "adapters" and question.hot is not None:
        changes["hot"] = min(question.hot, value)
    looser = ask(question.model_dump() | changes)
    before, after = planted.tree().answer(question), planted.tree().answer(looser)
    if before.verdict in FEASIBLE:
        assert after.verdict in FEASIBLE
        first, second = per_month(before), per_month(after)
        assert first is not None
        assert second is not None
        assert second <= first * (1 + 1e-9)


@settings(deadline=None, max_examples=25)
@given(question=measured_here, more=st.integers(1, 3_000))
def test_more_rows_never_lower_the_expected_accuracy_of_what_was_chosen(question: Question, more: int) -> None:
    tree = planted.tree()
    answer = tree.answer(question)
    if answer.choice is None or answer.choice.accuracy is None:
        return
    later = tree.qualities[question.task_type].accuracy(answer.choice.candidate, question.train_rows + more)
    assert later is not None
    assert later.value >= answer.choice.accuracy.value - 1e-12


def topic(rows: Sequence[Row], **given: Any) -> Answer:
    return planted.tree_of(rows).answer(ask({"task_type": "topic", "train_rows": 500} | given))


def test_a_planted_twin_of_the_yardstick_that_is_smaller_is_chosen_and_changes_the_thresholds() -> None:
    rows = [*planted.quality(), *planted.serving()]
    before = planted.tree()
    yardstick = before.qualities["topic"].yardstick(500)
    assert yardstick is not None
    trec = [row for row in rows if isinstance(row, QualityRow) and row.task == "trec"]
    after = planted.tree_of([*rows, *twin(trec, yardstick, "tiny", "ia3", 100)])
    answer = after.answer(Question(task_type="topic", train_rows=500))
    assert answer.choice is not None
    assert answer.choice.candidate == "tiny"
    assert answer.confidence != "low"
    assert answer.runner_up is not None
    assert answer.runner_up.quality == "not worse"
    assert names_of(before) != names_of(after)


def names_of(tree: Tree) -> list[tuple[str, ...]]:
    return [node.names for _, _, node in tree.nodes() if isinstance(node, Shortlist) and node.task_type == "topic"]


def test_a_probe_that_does_as_well_as_the_yardstick_is_the_first_thing_to_be_said() -> None:
    rows = [*planted.quality(), *planted.serving()]
    trec = [row for row in rows if isinstance(row, QualityRow) and row.task == "trec"]
    yardstick = planted.tree().qualities["topic"].yardstick(2000)
    assert yardstick is not None
    probes = [row for row in trec if row.candidate == "probe"]
    others = [row for row in rows if not any(row is probe for probe in probes)]
    few = [row for row in probes if row.train_rows != 2000]
    many = [row for row in twin(trec, yardstick, "probe", "probe", 9_240) if row.train_rows == 2000]
    tree = planted.tree_of([*others, *few, *many])
    answers = [tree.answer(Question(task_type="topic", train_rows=rows)) for rows in (100, 2000)]
    linear = [next(step for step in answer.path if "linear" in step.asks) for answer in answers]
    assert linear[0].answer.startswith("no, with fewer than")
    assert linear[1].answer.startswith("yes")
    assert isinstance(linear[1].basis[0], QualityBasis)
    assert "probe" in linear[1].basis[0].candidates
    assert answers[1].choice is not None
    assert answers[1].choice.candidate == "probe"


@pytest.mark.parametrize(("num_more", "said"), [(0, "as good, and"), (3, "good enough too, and")])
def test_a_runner_up_is_as_good_only_where_it_is_shown_to_lose_no_more_than_the_margin_to_the_choice(
    num_more: int, said: str
) -> None:
    trec = [row for row in planted.quality() if isinstance(row, QualityRow) and row.task == "trec"]
    own = [row for row in trec if (row.candidate, row.train_rows) == ("lora-qv-8", 500)]
    better = twin(own, "lora-qv-8", "tiny", "ia3", 100)
    always_wrong = np.flatnonzero(~np.any([row.predictions.right() for row in own], axis=0))[:num_more]
    assert len(always_wrong) == num_more
    better = [row.model_copy(update={"predictions": corrected(row.predictions, always_wrong)}) for row in better]
    tree = planted.tree_of([*own, *better, *planted.serving()])
    answer = tree.answer(Question(task_type="topic", train_rows=500))
    assert answer.choice is not None
    assert answer.choice.candidate == "tiny"
    assert answer.runner_up is not None
    assert answer.runner_up.quality == "not worse"
    assert answer.runner_up_because.startswith(said)
    difference = tree.qualities["topic"].difference("lora-qv-8", "tiny", 500)
    assert difference is not None
    assert (non_inferiority(difference) == "not worse") == (num_more == 0)


def corrected(predictions: Predictions, places: NDArray[np.int64]) -> Predictions:
    """Right at these places of the test too."""
    answered, right = predictions.labels(), predictions.right()
    right[places] = True
    packed = Predictions.pack(answered, np.where(right, answered, answered + 1))
    return packed.model_copy(update={"truth_sha256": predictions.truth_sha256})


def test_what_changes_a_case_is_told_with_its_replicas_and_money() -> None:
    [merged] = [line for line in cases.cases_part().splitlines() if "`--serving merged`" in line]
    [asked] = [case.ask for case in cases.cases().values() if "--serving merged" in case.others.values()]
    choice = cases.answer(f"{asked} --serving merged").choice
    assert choice is not None
    assert choice.cost is not None
    cells = [cell.strip() for cell in merged.split("|")]
    assert cells[4:6] == [f"{choice.cost.replicas}", money(choice.cost.per_month, choice.cost.currency)]
    assert choice.cost.replicas >= 50


def test_without_the_rows_of_a_method_it_says_what_is_missing() -> None:
    every = [*planted.quality(), *planted.serving()]
    kept = [row for row in every if not (isinstance(row, QualityRow) and row.method == "bottleneck")]
    gaps = " ".join(gap.what for gap in topic(kept).missing)
    assert "`bottleneck`" in gaps
    best = topic(every).choice
    assert best is not None
    unserved = [row for row in every if not (isinstance(row, LatencyRow) and best.method in row.methods)]
    answer = topic(unserved)
    assert answer.verdict == "undecided"
    assert f"`{best.candidate}` was not measured in serving" in [gap.what for gap in answer.missing]
    assert any("adaptermux-loadtest run capacity" in gap.command for gap in answer.missing)


def test_without_any_rows_of_a_task_it_says_which_command_measures_them() -> None:
    kept = [row for row in planted.quality() if not (isinstance(row, QualityRow) and row.task == "trec")]
    answer = topic(kept)
    assert answer.verdict == "undecided"
    assert answer.missing[0].command.startswith("adaptermux-train grid")


def test_without_any_rows_at_all_every_kind_of_task_is_undecided_or_from_literature() -> None:
    tree = planted.tree_of([])
    verdicts = {name: tree.answer(Question(task_type=name, train_rows=10)).verdict for name in TYPES}
    assert set(verdicts.values()) == {"undecided", "literature"}


def test_what_is_measured_and_what_is_published_are_never_mixed_up() -> None:
    for name in TYPES:
        answer = planted.tree().answer(Question(task_type=name, train_rows=500))
        kinds = {basis.kind for basis in answer.basis}
        assert ("published" in kinds) == (answer.verdict == "literature")
        assert "quality" not in kinds or "published" not in kinds


def test_every_number_that_parts_the_tree_names_its_rows() -> None:
    for _, arm, _ in planted.tree().nodes():
        if arm is not None and arm.start is not None:
            assert arm.basis
            assert arm.because


def test_a_walk_takes_exactly_one_arm() -> None:
    for _, _, node in planted.tree().nodes():
        if isinstance(node, Branch) and node.field == "train_rows":
            for rows in (1, 99, 100, 317, 500, 501, 2000, 10**8):
                assert sum(arm.takes(rows) for arm in node.arms) == 1


def test_a_team_may_bring_rows_and_kinds_of_its_own(tmp_path: Path) -> None:
    with Writer(tmp_path / "rows.jsonl") as writer:
        for row in [*planted.quality(), *planted.serving()]:
            if not isinstance(row, QualityRow) or row.task == "trec":
                writer.write(row)
    bare = Tree(Evidence.read(tmp_path), planted.PRICES)
    assert "trec" in bare.task_types()
    (tmp_path / "evidence.toml").write_text('quality_command = "make ours"\n[task_types]\ntriage = "trec"\n')
    tree = Tree(Evidence.read(tmp_path), planted.PRICES)
    answer = tree.answer(Question(task_type="triage", train_rows=500))
    assert isinstance(answer.basis[0], QualityBasis)
    assert answer.basis[0].command == "make ours"
    with pytest.raises(QuestionError, match="`task_type` is `topic`, it must be one of triage, long_text"):
        tree.answer(Question(task_type="topic", train_rows=500))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base = 'gpt'", "`base` is `gpt`, it must be one of minilm"),
        ("bases = 'minilm'", "`bases`: Extra inputs"),
        ("base = ", "cannot be read"),
    ],
)
def test_a_folder_that_says_of_itself_what_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "evidence.toml").write_text(text)
    with pytest.raises(FactsError, match=message):
        Evidence.read(tmp_path)


def test_prices_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(planted.PRICES.model_dump_json())
    with pytest.raises(FactsError, match="cannot be read"):
        Prices.read(path)
    path.write_text("headroom = 2")
    with pytest.raises(FactsError, match="`currency`: Field required"):
        Prices.read(path)


@pytest.fixture(scope="module")
def ours() -> Tree:
    return Tree(Evidence.read(), Prices.read())


def test_our_evidence_decides_what_was_measured_whole(ours: Tree) -> None:
    answer = ours.answer(Question(task_type="topic", train_rows=500))
    assert answer.verdict == "use"
    assert answer.choice is not None
    assert answer.choice.accuracy is not None
    assert 0.9 < answer.choice.accuracy.value < 1
