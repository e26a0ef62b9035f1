"""Only what cannot be computed fails, and finding it out is bounded work."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from server.batching import Waiting
from server.errors import EngineStopped, ForwardFailed, OutOfMemory, ServiceError
from server.forward import Work
from server.retries import MOST_FAILURES, Outcome, Retries
from tests.planted_card import ILLEGAL, PlantedCard
from tests.test_batching import waiting

Texts = list[tuple[str, int]]
TEXTS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 40)), min_size=1, max_size=40)


class Device:
    """Counts what it is given; adapters may be bad, memory may be short. The logit of a text is its length."""

    def __init__(self, bad: set[str] | None = None, capacity: int = 1 << 30) -> None:
        self.bad, self.capacity = bad or set(), capacity
        self.passes: list[str] = []
        self.num_freed = self.num_lacks = 0
        self.lack: Callable[[], Exception] = lambda: torch.OutOfMemoryError("CUDA out of memory")

    def run(self, work: Sequence[Work]) -> list[Tensor]:
        self.passes.append("".join(adapter.key for _, adapter in work))
        if sum(job.num_tokens for job, _ in work) > self.capacity:
            self.num_lacks += 1
            raise self.lack()
        if any(adapter.key in self.bad for _, adapter in work):
            raise ValueError("a bad one")
        return [torch.tensor([float(job.num_tokens)]) for job, _ in work]

    def free(self) -> None:
        self.num_freed += 1


def make(texts: Texts) -> list[Waiting]:
    return [waiting(length, name) for name, length in texts]


def failures(outcome: Outcome) -> set[int]:
    return {index for index, answer in enumerate(outcome.answers) if isinstance(answer, ServiceError)}


@given(TEXTS, st.sets(st.sampled_from("abcdefgh")), st.integers(1, 400))
def test_exactly_those_fail_that_fail_alone_and_the_others_get_their_own_answers(
    texts: Texts, bad: set[str], capacity: int
) -> None:
    device = Device(bad, capacity)
    outcome = Retries(device.run, device.free).run(make(texts))
    for (name, length), answer in zip(texts, outcome.answers, strict=True):
        if length > capacity:
            assert isinstance(answer, OutOfMemory)
        elif name in bad:
            assert isinstance(answer, ForwardFailed)
        else:
            assert isinstance(answer, Tensor)
            assert answer.tolist() == [length]


@given(TEXTS, st.integers(1, 400))
def test_what_fitted_is_told_and_memory_is_freed_before_every_new_try(texts: Texts, capacity: int) -> None:
    device, total = Device(capacity=capacity), sum(length for _, length in texts)
    outcome = Retries(device.run, device.free).run(make(texts))
    if total <= capacity:
        assert (outcome.fitting_tokens, outcome.num_splits, outcome.went_well) == (None, 0, True)
        return
    assert outcome.fitting_tokens is not None
    assert outcome.fitting_tokens <= (capacity if len(failures(outcome)) < len(texts) else total / 2)
    assert not outcome.went_well
    assert len(device.passes) <= 2 * len(texts) - 1
    assert device.num_freed == device.num_lacks


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:12]}",
)
def test_every_way_to_run_out_of_memory_is_known(error: Exception) -> None:
    device = Device(capacity=10)
    device.lack = lambda: error
    outcome = Retries(device.run, device.free).run(make([("a", 10), ("a", 10), ("b", 11)]))
    assert failures(outcome) == {2}
    assert outcome.fitting_tokens == 10


def test_memory_that_really_is_too_short_on_this_machine_is_known() -> None:
    def run(work: Sequence[Work]) -> list[Tensor]:
        return [torch.empty(1 << 60) for _ in work]

    outcome = Retries(run, lambda: None).run(make([("a", 10)]))
    assert isinstance(outcome.answers[0], OutOfMemory)


def test_where_everything_fails_the_work_is_bounded_and_nothing_fails_untried() -> None:
    texts = [(f"adapter-{index}", 10) for index in range(500)]
    device = Device({name for name, _ in texts})
    tried: set[str] = set()

    def run(work: Sequence[Work]) -> list[Tensor]:
        tried.update(adapter.key for _, adapter in work)
        return device.run(work)

    outcome = Retries(run, device.free).run(make(texts))
    assert failures(outcome) == set(range(500))
    assert len(device.passes) <= 2 * MOST_FAILURES
    assert tried == {name for name, _ in texts}


def test_an_adapter_that_failed_is_kept_apart_until_it_is_answered_again() -> None:
    device, batch = Device({"b"}), make([("a", 1), ("b", 1), ("c", 1), ("b", 1)])
    retries = Retries(device.run, device.free)
    assert failures(retries.run(batch)) == {1, 3}
    device.passes.clear()
    assert failures(retries.run(batch)) == {1, 3}
    assert sorted(device.passes) == ["ac", "bb"]  # nobody pays for it a second time
    device.bad.clear()
    outcome = retries.run(batch)
    assert failures(outcome) == set()
    assert (outcome.num_passes, outcome.num_splits, outcome.went_well) == (2, 0, False)
    device.passes.clear()
    outcome = retries.run(batch)
    assert failures(outcome) == set()
    assert device.passes == ["abbc"]
    assert outcome.went_well


def test_a_device_that_has_failed_is_not_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    device = Device(capacity=1)
    device.lack = lambda: torch.AcceleratorError(ILLEGAL)
    card = PlantedCard(1 << 30)
    card.is_lost = True
    with pytest.raises(EngineStopped, match="device"):
        Retries(device.run, device.free, card).run(make([("a", 1), ("b", 1)]))
    assert len(device.passes) == 1
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["event"] == "batch_failed"
