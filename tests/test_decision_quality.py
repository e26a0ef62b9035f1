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
from decision.quality import TaskQuality
from decision.rows import QualityRow, RowsError, quality
from tests import measured, planted
from tests.measured import CANDIDATES

SIZES = (100, 500, 2000)


def runs(task: str = "trec") -> list[QualityRow]:
    return [run for run in quality(planted.quality()) if run.task == task]


@pytest.fixture(scope="module")
def found() -> TaskQuality:
    return TaskQuality("trec", runs(), planted.RESAMPLES)


def twin(of: Sequence[QualityRow], name: str, other: str, method: str, num_bytes: int) -> list[QualityRow]:
    """A candidate that answers exactly as another does."""
    sizes = {"adapter_bytes": num_bytes, "num_adapter_parameters": 0}
    changes = {"candidate": other, "method": method, **sizes}
    return [run.model_copy(update=changes) for run in of if run.candidate == name]


@pytest.mark.parametrize("size", SIZES)
def test_at_a_measured_size_the_figures_are_those_of_the_rows(found: TaskQuality, size: int) -> None:
    cell = measure([run for run in runs() if run.train_rows == size], planted.RESAMPLES)
    for standing in found.standings(size):
        best = found.best(size)
        assert best is not None
        assert standing.difference == cell.difference(standing.candidate.name, best)


@given(st.sampled_from([candidate.name for candidate in CANDIDATES]), st.integers(1, 9_000), st.integers(1, 9_000))
def test_more_rows_never_lower_what_is_expected(found: TaskQuality, name: str, rows: int, more: int) -> None:
    first, second = found.accuracy(name, rows), found.accuracy(name, rows + more)
    assert first is not None
    assert second is not None
    assert first.value <= second.value + 1e-12


def test_a_larger_size_that_did_worse_keeps_what_the_smaller_one_reached() -> None:
    swapped = {100: 500, 500: 100}
    worse = [run.model_copy(update={"train_rows": swapped.get(run.train_rows, run.train_rows)}) for run in runs()]
    turned = TaskQuality("trec", worse, planted.RESAMPLES)
    for name in turned.names(500):
        assert turned.accuracy(name, 500) == turned.accuracy(name, 100)


@given(st.integers(1, 5_000))
def test_a_stretch_holds_the_candidates_that_are_not_worse_at_each_of_its_rows(found: TaskQuality, rows: int) -> None:
    (stretch,) = [one for one in found.stretches() if one.start <= rows and (one.end is None or rows < one.end)]
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


def test_a_candidate_that_answers_as_the_best_does_is_not_worse_at_any_number_of_rows() -> None:
    every = [run for size in SIZES for run in runs() if run.train_rows == size]
    best = TaskQuality("trec", every, planted.RESAMPLES).best(2000)
    assert best is not None
    cheap = TaskQuality("trec", [*every, *twin(every, best, "cheap", "ia3", 10)], planted.RESAMPLES)
    names = {one.candidate.name: one for one in cheap.standings(2000)}
    assert names["cheap"].verdict == "not worse"
    assert names["cheap"].holds_strictly
    assert "cheap" in cheap.stretches()[-1].names


def test_a_candidate_without_runs_at_one_of_both_sizes_is_not_judged_between_them() -> None:
    kept = [run for run in runs() if (run.candidate, run.train_rows) != ("ia3", 500)]
    some = TaskQuality("trec", kept, planted.RESAMPLES)
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
        TaskQuality("trec", broken, planted.RESAMPLES).stretches()


@settings(deadline=None, max_examples=5)
@given(st.permutations(range(6)))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    rows = [run for part in order for run in runs()[part::6]]
    again = TaskQuality("trec", rows, planted.RESAMPLES)
    assert again.stretches() == TaskQuality("trec", runs(), planted.RESAMPLES).stretches()


def test_one_size_and_one_candidate_are_enough() -> None:
    only = measured.rows({"trec": 1.0}, (100,), range(2), [replace(CANDIDATES[3])], 50, 0)
    few = TaskQuality("trec", quality(only), planted.RESAMPLES)
    assert [one.names for one in few.stretches()] == [("bitfit",)]
