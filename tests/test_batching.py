"""The waiting line: budget, order, nothing lost and nothing twice."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.batching import BatchBudget, Waiting, WaitingLine
from server.errors import DeadlineExceeded, EngineStopped, Overloaded
from server.heads import Head, Layer
from server.jobs import Job
from server.loaded_adapter import LoadedAdapter
from server.manifest import Pooling
from server.methods import method_named

POOLING: Pooling = "mean"


def waiting(num_tokens: int, adapter_id: str = "a") -> Waiting:
    import torch

    head = Head((Layer("head", has_bias=False),), {"head.weight": torch.zeros(1, 1)})
    adapter = LoadedAdapter(adapter_id, method_named("lora"), POOLING, {}, head, 0)
    return Waiting(Job(adapter_id, "v", (1,) * num_tokens, (0,) * num_tokens), adapter)


def join(line: WaitingLine, one: Waiting) -> None:
    line.enter()
    line.put(one)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 100), st.sets(st.integers(0, 59)))
def test_every_job_is_taken_once_in_order_within_the_budget(
    lengths: list[int], budget: int, cancelled: set[int]
) -> None:
    line = WaitingLine(max_jobs=100)
    jobs = [waiting(length) for length in lengths]
    for job in jobs:
        join(line, job)
    for index in cancelled & set(range(len(jobs))):
        jobs[index].future.cancel()
    line.close()
    taken = []
    while batch := line.take(budget):
        assert len(batch) == 1 or sum(one.job.num_tokens for one in batch) <= budget
        taken += batch
    assert taken == [job for index, job in enumerate(jobs) if index not in cancelled]


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 30), st.booleans()), max_size=80), st.integers(20, 120)
)
def test_adapters_that_keep_waiting_are_given_the_same(events: list[tuple[str, int, bool]], budget: int) -> None:
    """Between two adapters with work left, the tokens given differ by no more than two of the longest texts."""
    line = WaitingLine(max_jobs=1000)
    given_to = dict.fromkeys("abcdef", 0)
    order: dict[str, list[Waiting]] = {name: [] for name in "abcdef"}
    for name in "abcdef":  # enough work that nobody runs dry
        for _ in range(100):
            order[name].append(waiting(10, name))
            join(line, order[name][-1])
    for name, length, take in events:
        order[name].append(waiting(length, name))
        join(line, order[name][-1])
        for one in line.take(budget) if take else []:
            assert order[one.job.adapter_id].pop(0) is one, "jobs of one adapter come in order"
            given_to[one.job.adapter_id] += one.job.num_tokens
        assert max(given_to.values()) - min(given_to.values()) <= 60


def test_a_flood_does_not_hold_up_another_adapter() -> None:
    line = WaitingLine(max_jobs=2000)
    for _ in range(1000):
        join(line, waiting(10, "flood"))
    line.take(100)
    quiet = waiting(10, "quiet")
    join(line, quiet)
    assert quiet in line.take(100)


def test_an_adapter_that_paused_has_not_saved_up() -> None:
    line = WaitingLine(max_jobs=2000)
    for _ in range(100):
        join(line, waiting(10, "steady"))
    for _ in range(5):
        line.take(100)
    for _ in range(100):
        join(line, waiting(10, "back"))
    names = [one.job.adapter_id for _ in range(4) for one in line.take(100)]
    assert abs(names.count("back") - names.count("steady")) <= 2


@pytest.mark.parametrize("always_busy", [False, True])
def test_counters_of_adapters_long_gone_are_forgotten(always_busy: bool) -> None:
    line = WaitingLine(max_jobs=10)
    for index in range(5000):
        join(line, waiting(1, f"adapter-{index}"))
        if always_busy:
            join(line, waiting(1, f"adapter-{index}"))
            join(line, waiting(1, f"other-{index}"))
        line.take(2)
        line.take(2) if len(line) > 2 else None
    assert len(line._counters) < 1100


def test_the_limit_is_kept_at_it_and_one_past_it() -> None:
    line = WaitingLine(max_jobs=2)
    join(line, waiting(1))
    join(line, waiting(1))
    with pytest.raises(Overloaded, match="2 texts"):
        join(line, waiting(1))


def test_a_text_that_fills_the_budget_exactly_shares_and_one_token_more_does_not() -> None:
    line = WaitingLine(max_jobs=10)
    for length in (4, 6, 1):
        join(line, waiting(length))
    assert [one.job.num_tokens for one in line.take(10)] == [4, 6]
    assert [one.job.num_tokens for one in line.take(10)] == [1]


def test_take_waits_for_work_and_wakes_for_it() -> None:
    line = WaitingLine(max_jobs=10)
    taken: list[Waiting] = []
    thread = threading.Thread(target=lambda: taken.extend(line.take(10)))
    thread.start()
    job = waiting(3)
    join(line, job)
    thread.join(10)
    assert taken == [job]


def test_a_closed_line_takes_no_more() -> None:
    line = WaitingLine(max_jobs=10)
    join(line, waiting(1))
    line.close()
    with pytest.raises(EngineStopped):
        join(line, waiting(1))
    assert len(line.take(10)) == 1
    assert line.take(10) == []


def test_a_job_whose_deadline_passed_is_answered_so_and_takes_no_room() -> None:
    line = WaitingLine(max_jobs=10)
    late, early = waiting(10), waiting(10)
    for one, deadline in ((late, 0.0), (early, math.inf)):
        join(line, replace(one, job=replace(one.job, deadline=deadline)))
    assert [one.future for one in line.take(10)] == [early.future]
    assert isinstance(late.future.exception(), DeadlineExceeded)
    assert len(line) == 0


def test_places_that_are_kept_count_and_are_given_back() -> None:
    line = WaitingLine(max_jobs=1)
    line.enter()
    with pytest.raises(Overloaded):
        line.enter()
    line.leave()
    line.enter()


def test_the_budget_follows_the_speed_of_the_device() -> None:
    budget = BatchBudget(most_tokens=2000, target_s=0.05)
    assert budget.tokens() == 64  # nothing is known yet
    for _ in range(100):
        budget.learn(budget.tokens(), budget.tokens() / 10_000)
    assert budget.tokens() == 500
    budget.learn(5, 0.04)  # a small batch that was in time says nothing
    assert budget.tokens() == 500
    for _ in range(100):
        budget.learn(budget.tokens(), budget.tokens() / 4_000)  # the device has become slower
    assert 200 <= budget.tokens() <= 201
    budget.learn(1000, 0.001)
    assert budget.tokens() == 2000
    for _ in range(100):
        budget.learn(300, 0.075)  # never a full batch, but always longer than it should take
    assert 200 <= budget.tokens() <= 201


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 10)), max_size=30), st.integers(1, 5000))
def test_the_budget_keeps_its_bounds(batches: list[tuple[int, float]], most: int) -> None:
    budget = BatchBudget(most, 0.04)
    for num_tokens, compute_s in batches:
        budget.learn(num_tokens, compute_s)
        assert min(64, most) <= budget.tokens() <= most
