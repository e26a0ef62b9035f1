"""The waiting line: budget, order, nothing lost and nothing twice."""

from __future__ import annotations

import math
import random
import threading
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.batch_budget import ROUND, BatchBudget
from server.batching import ALONE_S, Waiting, WaitingLine
from server.errors import DeadlineExceeded, EngineStopped, Overloaded
from server.heads import Head, Layer
from server.jobs import Answer, Job
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
    line.enter(one.job)
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
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 40)), min_size=1, max_size=60),
    st.integers(1, 100),
    st.integers(0, 300),
)
def test_many_adapters_share_a_larger_batch_of_which_none_gets_much(
    jobs: list[tuple[str, int]], budget: int, round_tokens: int
) -> None:
    line = WaitingLine(max_jobs=100)
    for adapter_id, length in jobs:
        join(line, waiting(length, adapter_id))
    first = line.take(budget)
    line = WaitingLine(max_jobs=100)
    for adapter_id, length in jobs:
        join(line, waiting(length, adapter_id))
    taken = line.take(budget, round_tokens)
    assert [one.job for one in taken[: len(first)]] == [one.job for one in first], "the budget comes first"
    more = taken[len(first) :]
    assert not more or sum(one.num_tokens for one in taken) <= round_tokens
    for adapter_id in {one.job.adapter_id for one in more}:
        lengths = [one.num_tokens for one in taken if one.job.adapter_id == adapter_id]
        assert len(lengths) == 1 or sum(lengths) <= budget // 2
    left_out = {adapter_id for adapter_id, _ in jobs} - {one.job.adapter_id for one in taken}
    if sum(one.num_tokens for one in taken) + 40 <= round_tokens:
        assert not left_out
    rest = [one for _ in iter(lambda: len(line), 0) for one in line.take(budget, round_tokens)]
    for adapter_id in "abcdefgh":
        lengths = [one.job.num_tokens for one in [*taken, *rest] if one.job.adapter_id == adapter_id]
        assert lengths == [length for name, length in jobs if name == adapter_id], "in the order they came"


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
    job = waiting(5).job
    line.enter(job)
    with pytest.raises(Overloaded):
        line.enter(job)
    assert line.adapter_ids() == ["a"]
    line.leave(job)
    assert line.adapter_ids() == []
    line.enter(job)


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


SPEED = 10_000  # tokens a second
BATCH = 250


class Device:
    """A line before a device of a known speed, in a time of its own."""

    def __init__(self, max_jobs: int = 4096, max_wait_s: float = 30) -> None:
        self.now = 1000.0
        self.line = WaitingLine(max_jobs, max_wait_s, clock=lambda: self.now)
        self.prototype = waiting(1)
        self.retry_after_s: list[int] = []
        for _ in range(3):  # until it knows its speed
            self.ask("a", BATCH)
            self.run()

    def ask(self, adapter_id: str, num_tokens: int, within_s: float | None = None) -> Waiting | None:
        """A job in the line, or None if it was refused."""
        deadline = None if within_s is None else self.now + within_s
        job = Job(adapter_id, "v", (1,) * num_tokens, (0,) * num_tokens, deadline)
        try:
            self.line.enter(job)
        except Overloaded as error:
            self.retry_after_s.append(error.retry_after_s)
            return None
        one = Waiting(job, self.prototype.adapter)
        self.line.put(one)
        return one

    def take(self) -> list[Waiting]:
        return self.line._take_now(BATCH, ROUND * BATCH)  # `take` would wait where all that waits is late

    def run(self) -> list[Waiting]:
        began, taken = self.now, self.take()
        self.now += sum(one.num_tokens for one in taken) / SPEED
        self.line.ran(self.now - began)
        return taken


@given(
    st.lists(
        st.tuples(st.floats(0, 0.2), st.integers(1, BATCH), st.floats(0.01, 1) | st.none(), st.booleans()), max_size=60
    )
)
def test_what_is_taken_on_is_answered_in_time_if_the_speed_stays(
    events: list[tuple[float, int, float | None, bool]],
) -> None:
    device, limits = Device(max_wait_s=0.5), dict[int, float]()

    def step() -> None:
        done = device.now
        for one in device.run():
            done += one.num_tokens / SPEED  # but for those of its batch that came after it
            assert done <= limits.pop(id(one)) + 1e-9

    for pause_s, num_tokens, within_s, runs in events:
        is_idle = len(device.line) == 0
        if (one := device.ask("a", num_tokens, within_s)) is not None:
            # with nothing in front of it a job is always tried
            limits[id(one)] = math.inf if is_idle else device.now + (0.5 if within_s is None else within_s)
        if runs:
            step()
            if len(device.line) == 0:
                device.now += pause_s
    while len(device.line):
        step()
    assert not limits


def test_a_text_that_would_come_too_late_is_refused_at_once_with_the_time_after_which_to_retry() -> None:
    device = Device(max_wait_s=30)
    for _ in range(100):
        assert device.ask("a", BATCH) is not None  # 2.5 s of work
    assert device.ask("a", BATCH, within_s=1) is None
    assert device.retry_after_s == [3]
    assert device.ask("a", BATCH, within_s=5) is not None


def test_a_text_without_a_deadline_is_refused_beyond_the_longest_wait() -> None:
    device = Device(max_wait_s=1)
    while device.ask("a", BATCH) is not None:
        pass
    assert 30 <= len(device.line) <= 40  # 40 of them take a second
    unbounded = Device(max_wait_s=0)
    assert all(unbounded.ask("a", BATCH) is not None for _ in range(1000))


def test_a_text_that_has_waited_longer_than_it_may_is_answered_so() -> None:
    device = Device(max_wait_s=1)
    late, early = device.ask("a", 10), device.ask("b", 10)
    assert late is not None
    assert early is not None
    device.now += 1.1  # the batch before took that long, whatever was expected
    fresh = device.ask("a", 10, within_s=9)
    assert device.take() == [fresh]
    for one in (late, early):
        assert isinstance(one.future.exception(), Overloaded)


def test_a_line_that_is_idle_takes_every_text_however_slow_the_device_was() -> None:
    device = Device()
    for _ in range(50):
        device.ask("a", BATCH)
        device.take()
        device.line.ran(1000)
    assert device.ask("a", BATCH, within_s=0.1) is not None


def test_a_flood_five_times_what_the_device_can_do_is_answered_in_time_and_costs_the_others_nothing() -> None:
    """Ten adapters, one of which asks for five times the capacity, with a second for every answer."""
    device, arrivals = Device(), random.Random(0)
    num_tokens, seconds, within_s = 20, 10, 1.0
    rates = {"flood": 5.0, **{f"quiet-{index}": 0.05 for index in range(9)}}
    due = sorted(
        (device.now + arrivals.uniform(0, seconds), name)
        for name, rate in rates.items()
        for _ in range(int(rate * SPEED / num_tokens * seconds))
    )
    settled = device.now + 2  # by then it knows how often the flood is overtaken
    asked, taken_on, late = Counter[str](), Counter[str](), Counter[str]()
    known: list[tuple[bool, Waiting]] = []
    while due or len(device.line):
        if not len(device.line):
            device.now = max(device.now, due[0][0])
        while due and due[0][0] <= device.now:
            name, is_settled = due[0][1], due[0][0] > settled
            due.pop(0)
            asked[name] += is_settled
            if (one := device.ask(name, num_tokens, within_s)) is not None:
                taken_on[name] += is_settled
                known.append((is_settled, one))
        for one in device.run():
            assert one.job.deadline is not None
            if device.now <= one.job.deadline:
                one.future.set_result(Answer((), 0, 0))
    for is_settled, one in known:
        late[one.job.adapter_id] += is_settled and (not one.future.done() or one.future.exception() is not None)
    assert taken_on["flood"] > 0.5 * SPEED / num_tokens * (seconds - 2)  # nothing of the capacity is lost
    assert late["flood"] <= 0.01 * taken_on["flood"]
    assert all(taken_on[name] == asked[name] and late[name] == 0 for name in rates if name != "flood")


def test_a_flood_without_deadlines_leaves_places_to_the_others() -> None:
    device = Device(max_jobs=80, max_wait_s=0)
    while device.ask("flood", 1) is not None:
        pass
    assert len(device.line) == 71
    assert device.ask("quiet", 1) is not None
    assert device.ask("flood", 1) is None


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 10_000)), max_size=60), st.integers(1, 10_000))
def test_a_lack_of_memory_lowers_the_budget_at_once_and_full_batches_raise_it_slowly(
    batches: list[tuple[bool, int]], most: int
) -> None:
    budget = BatchBudget(most, 1.0)
    budget.learn(most, 1e-3)  # so fast that time never limits it
    for is_short, num_tokens in batches:
        before = budget.tokens()
        if is_short:
            budget.shrink(num_tokens)
            assert budget.tokens() <= min(before, max(64, num_tokens))
        else:
            budget.learn(min(num_tokens, before), 1e-6)
            assert before <= budget.tokens() <= (before + 1) * 1.005
        assert min(64, most) <= budget.tokens() <= most


@given(st.integers(128, 8192))
def test_where_memory_stays_short_one_full_batch_in_a_hundred_is_split(capacity: int) -> None:
    budget, num_batches, num_splits = BatchBudget(8192, 1.0), 4000, 0
    budget.learn(1, 1e-5)
    for _ in range(num_batches):
        num_tokens = budget.tokens()
        if num_tokens > capacity:
            num_splits += 1
            while num_tokens > capacity:
                num_tokens //= 2
            budget.shrink(num_tokens)
        else:
            budget.learn(num_tokens, num_tokens / 1e7)
    assert num_splits <= 1 + num_batches / 100


def test_the_budget_is_whole_again_once_memory_is_back() -> None:
    budget = BatchBudget(8192, 1.0)
    budget.learn(1, 1e-5)
    budget.shrink(1000)
    assert budget.tokens() == 1000
    budget.learn(100, 1e-5)  # so small a batch says nothing of the memory of large ones
    assert budget.tokens() == 1000
    for _ in range(500):
        budget.learn(budget.tokens(), 1e-3)
    assert budget.tokens() == 8192


def test_an_adapter_that_has_the_line_to_itself_is_given_larger_batches() -> None:
    device = Device()
    for _ in range(20):
        device.ask("a", BATCH // 2)
    assert sum(one.num_tokens for one in device.run()) == BATCH, "somebody else was there just now"
    device.now += ALONE_S
    assert sum(one.num_tokens for one in device.run()) == ROUND * BATCH
    device.ask("b", 1)
    device.run()  # takes the job of `b`
    for _ in range(20):
        device.ask("a", BATCH // 2)
    assert sum(one.num_tokens for one in device.run()) == BATCH
