"""The waiting line: budget, order, nothing lost and nothing twice."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.batching import Waiting, WaitingLine
from server.errors import EngineStopped, Overloaded
from server.jobs import Job
from server.manifest import Pooling
from server.methods import method_named
from server.store import LoadedAdapter

POOLING: Pooling = "mean"


def waiting(num_tokens: int, adapter_id: str = "a") -> Waiting:
    import torch

    adapter = LoadedAdapter(adapter_id, method_named("lora"), POOLING, {}, torch.zeros(1, 1), None, 0)
    return Waiting(Job(adapter_id, "v", (1,) * num_tokens, (0,) * num_tokens), adapter)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 100), st.sets(st.integers(0, 59)))
def test_every_job_is_taken_once_in_order_within_the_budget(
    lengths: list[int], budget: int, cancelled: set[int]
) -> None:
    line = WaitingLine(max_jobs=100, max_batch_tokens=budget)
    jobs = [waiting(length) for length in lengths]
    for job in jobs:
        line.put(job)
    for index in cancelled & set(range(len(jobs))):
        jobs[index].future.cancel()
    line.close()
    taken = []
    while batch := line.take():
        assert len(batch) == 1 or sum(one.job.num_tokens for one in batch) <= budget
        taken += batch
    assert taken == [job for index, job in enumerate(jobs) if index not in cancelled]


def test_the_limit_is_kept_at_it_and_one_past_it() -> None:
    line = WaitingLine(max_jobs=2, max_batch_tokens=10)
    line.put(waiting(1))
    line.put(waiting(1))
    with pytest.raises(Overloaded, match="2 texts"):
        line.put(waiting(1))


def test_a_text_that_fills_the_budget_exactly_shares_and_one_token_more_does_not() -> None:
    line = WaitingLine(max_jobs=10, max_batch_tokens=10)
    for length in (4, 6, 1):
        line.put(waiting(length))
    assert [one.job.num_tokens for one in line.take()] == [4, 6]
    assert [one.job.num_tokens for one in line.take()] == [1]


def test_take_waits_for_work_and_wakes_for_it() -> None:
    line = WaitingLine(max_jobs=10, max_batch_tokens=10)
    taken: list[Waiting] = []
    thread = threading.Thread(target=lambda: taken.extend(line.take()))
    thread.start()
    job = waiting(3)
    line.put(job)
    thread.join(10)
    assert taken == [job]


def test_a_closed_line_takes_no_more() -> None:
    line = WaitingLine(max_jobs=10, max_batch_tokens=10)
    line.put(waiting(1))
    line.close()
    with pytest.raises(EngineStopped):
        line.put(waiting(1))
    assert len(line.take()) == 1
    assert line.take() == []
