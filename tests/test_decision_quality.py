"""What is expected of a candidate at any number of training rows, and where the choice of candidates changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decision.comparison import MARGIN
from decision.measured_cell import measure
from decision.quality import Stretch, TaskQuality
from decision.rows import QualityRow, RowsError, quality
from tests import measured, planted
from tests.measured import CANDIDATES, Candidate

SIZES = (100, 500, 2000)


def runs(task: str = "trec") -> list[QualityRow]:
    return [run for run in quality(planted.quality()) if run.task == task]


def judged(rows: Sequence[QualityRow], reference: str | None = "lora-qv-8") -> TaskQuality:
    return TaskQuality("trec", rows, reference)


@pytest.fixture(scope="module")
def found() -> TaskQuality:
    return judged(runs())


def twin(of: Sequence[QualityRow], name: str, other: str, method: str, num_bytes: int) -> list[QualityRow]:
    """A candidate that answers exactly as another does."""
    sizes = {"adapter_bytes": num_bytes, "num_adapter_parameters": 0}
    changes = {"candidate": other, "method": method, **sizes}
    return [run.model_copy(update=changes) for run in of if run.candidate == name]


@pytest.mark.parametrize("size", SIZES)
def test_at_a_measured_size_the_figures_are_those_of_the_rows(found: TaskQuality, size: int) -> None:
    cell = measure([run for run in runs() if run.train_rows == size])
    for standing in found.standings(size):
        yardstick = found.yardstick(size)
        assert yardstick is not None
        assert standing.difference == cell.difference(standing.candidate.name, yardstick)


@settings(deadline=None)
@given(st.sampled_from([candidate.name for candidate in CANDIDATES]), st.integers(1, 9_000), st.integers(1, 9_000))
def test_more_rows_never_lower_what_is_expected(found: TaskQuality, name: str, rows: int, more: int) -> None:
    first, second = found.accuracy(name, rows), found.accuracy(name, rows + more)
    assert first is not None
    assert second is not None
    assert first.value <= second.value + 1e-12


def test_a_larger_size_that_did_worse_keeps_what_the_smaller_one_reached() -> None:
    swapped = {100: 500, 500: 100}
    worse = [run.model_copy(update={"train_rows": swapped.get(run.train_rows, run.train_rows)}) for run in runs()]
    turned = judged(worse)
    for name in turned.names(500):
        assert turned.accuracy(name, 500) == turned.accuracy(name, 100)


@pytest.fixture(scope="module")
def stretches(found: TaskQuality) -> list[Stretch]:
    return found.stretches()


@settings(deadline=None)
@given(rows=st.integers(1, 5_000))
def test_a_stretch_holds_the_candidates_that_are_not_worse_at_each_of_its_rows(
    found: TaskQuality, stretches: list[Stretch], rows: int
) -> None:
    (stretch,) = [one for one in stretches if one.start <= rows and (one.end is None or rows < one.end)]
    assert stretch.names == tuple(one.candidate.name for one in found.standings(rows) if one.difference.low > -MARGIN)


def test_stretches_cover_every_number_of_rows_once_and_neighbours_differ(found: TaskQuality) -> None:
    stretches = found.stretches()
    assert stretches[0].start == 1
    assert stretches[-1].end is None
    for one, other in pairwise(stretches):
        assert one.end == other.start
        assert one.names != other.names


def test_beyond_the_measured_sizes_the_nearest_one_stands_and_it_is_said(found: TaskQuality) -> None:
    assert found.accuracy("ia3", 20) == found.accuracy("ia3", 100)
    assert found.accuracy("ia3", 99_999) == found.accuracy("ia3", 2000)
    assert [found.is_extrapolated(rows) for rows in (99, 100, 2000, 2001)] == [True, False, False, True]


def test_a_candidate_that_answers_as_the_yardstick_does_is_not_worse(found: TaskQuality) -> None:
    yardstick = found.yardstick(2000)
    assert yardstick is not None
    cheap = judged([*runs(), *twin(runs(), yardstick, "cheap", "ia3", 10)])
    names = {one.candidate.name: one for one in cheap.standings(2000)}
    assert names["cheap"].verdict == "not worse"
    assert names["cheap"].holds_strictly
    assert "cheap" in cheap.stretches()[-1].names


def equals(seed: int, better: float = 0.0, num_equal: int = 8) -> list[QualityRow]:
    """Adapters of one skill, `a0` the smallest of them, and one, `better`, of more."""
    skills = {f"a{number}": 0.0 for number in range(num_equal)} | {"better": better}
    candidates = [
        Candidate(name, "lora", skill, 300_000 + 1_000 * place) for place, (name, skill) in enumerate(skills.items())
    ]
    return quality(measured.rows({f"task {seed}": 1.0}, (500,), range(5), candidates, 200, 0, first_task=seed))


def test_luck_alone_hardly_ever_replaces_the_reference() -> None:
    """At most one time in forty is promised; the best of nine is another one eight times of nine."""
    judges = [judged(equals(seed), "a0") for seed in range(40)]
    assert sum(one.yardstick(500) != "a0" for one in judges) <= 3
    assert sum(one.best(500) != "a0" for one in judges) > 25


def test_a_reference_that_is_clearly_beaten_gives_its_place_to_what_beats_it() -> None:
    found = judged(equals(0, better=1.0), "a0")
    assert found.better_than_reference(500) == ["better"]
    assert found.yardstick(500) == "better"
    assert found.stretches()[0].names == ("better",)


def test_between_two_sizes_the_yardstick_is_that_of_the_nearer_one() -> None:
    beaten = [run.model_copy(update={"task": "trec", "train_rows": 400}) for run in equals(0, better=1.0)]
    level = [run.model_copy(update={"task": "trec", "train_rows": 100}) for run in equals(1)]
    found = judged([*level, *beaten], "a0")
    assert [found.yardstick(rows) for rows in (100, 199, 200, 201, 400, 9_000)] == ["a0", "a0", *["better"] * 4]
    assert 200 in [stretch.start for stretch in found.stretches()]


def test_where_the_reference_was_not_measured_the_best_stands_for_it() -> None:
    kept = judged([run for run in runs() if (run.candidate, run.train_rows) != ("lora-qv-8", 500)])
    assert kept.yardstick(500) == kept.best(500) != "lora-qv-8"
    assert kept.better_than_reference(500) == []
    assert judged(runs(), None).yardstick(500) == judged(runs(), None).best(500)


def test_a_size_at_which_only_linear_models_were_run_decides_nothing() -> None:
    linear = [run for run in runs() if run.candidate in ("words", "probe", "head")]
    adapters = [run for run in runs() if run not in linear and run.train_rows < 2000]
    assert {run.candidate for run in linear}
    found = judged([*linear, *adapters])
    assert found.sizes == [100, 500]
    assert found.yardstick(2000) == found.yardstick(500)
    assert judged(linear).sizes == list(SIZES)


def test_a_candidate_without_runs_at_one_of_both_sizes_is_not_judged_between_them() -> None:
    kept = [run for run in runs() if (run.candidate, run.train_rows) != ("ia3", 500)]
    some = judged(kept)
    assert "ia3" in some.names(100)
    assert "ia3" not in some.names(101)
    assert "ia3" in some.names(2000)


def test_neither_the_commonest_label_nor_full_fine_tuning_is_recommended(found: TaskQuality) -> None:
    assert not {"majority", "full"} & set(found.names(500))
    assert found.full(500) is not None


def test_runs_on_different_tests_are_not_compared() -> None:
    broken = runs()
    other = broken[0].predictions.model_copy(update={"truth_sha256": "0" * 64})
    broken[0] = broken[0].model_copy(update={"predictions": other})
    with pytest.raises(RowsError, match="different test texts"):
        judged(broken).stretches()


@settings(deadline=None, max_examples=5)
@given(st.permutations(range(6)))
def test_the_order_of_rows_does_not_matter(found: TaskQuality, order: list[int]) -> None:
    rows = [run for part in order for run in runs()[part::6]]
    again = judged(rows)
    assert again.stretches() == found.stretches()


def test_one_size_and_one_candidate_are_enough() -> None:
    only = measured.rows({"trec": 1.0}, (100,), range(2), [replace(CANDIDATES[3])], 50, 0)
    few = judged(quality(only))
    assert [one.names for one in few.stretches()] == [("bitfit",)]
