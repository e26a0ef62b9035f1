"""The engine answers every job exactly once, whatever happens."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from server import adapter_folder
from server.base_model import BaseModel
from server.batching import Waiting
from server.engine import ThreadEngine
from server.errors import AdapterFailed, AdapterNotFound, EngineStopped, ForwardFailed, OutOfMemory, Overloaded
from server.forward import Forward, Work
from server.jobs import BatchReport, EngineHealth, Job
from server.products import LowRank
from server.store import Store
from server.weights_file import WeightsFile, read_block
from tests.planted_card import ILLEGAL, PlantedCard
from tests.seeded import make_adapter, peft_configs

WAIT_S = 10


@pytest.fixture(scope="module")
def loaded(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Job]:
    root, store = tmp_path_factory.mktemp("engine"), Store(bert_base)
    make_adapter(root / "a", bert_base.folder, peft_configs("bert")["lora-qv"], 3, seed=0)
    folder = adapter_folder.read(root, "a", bert_base)
    store.load(folder)
    return store, Job("a", folder.version, (2, 40, 41, 3), (0, 0, 0, 0))


class Gate(Forward):
    """The real forward pass, which waits at a gate, and may be told to fail or to answer badly."""

    def __init__(self, base: BaseModel) -> None:
        super().__init__(base)
        self.open = threading.Event()
        self.entered = threading.Event()
        self.error: BaseException | None = None
        self.spoil_row: int | None = None
        self.most_tokens = 1 << 30
        self.sizes: list[int] = []

    def run(self, work: Sequence[Work]) -> list[Tensor]:
        self.sizes.append(len(work))
        self.entered.set()
        assert self.open.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        if sum(job.num_tokens for job, _ in work) > self.most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        answers = super().run(work)
        if self.spoil_row is not None:
            answers[self.spoil_row] = torch.full_like(answers[self.spoil_row], math.nan)
        return answers


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        threading.Event().wait(0.001)


@pytest.fixture
def gate(bert_base: BaseModel) -> Iterator[Gate]:
    """A gate on a base of its own: hooks of other tests must not stay on it."""
    from server.forward import load_base

    gate = Gate(load_base(str(bert_base.folder), "cpu", "float32"))
    yield gate
    gate.open.set()


def test_jobs_are_answered_with_finite_logits_and_times(gate: Gate, loaded: tuple[Store, Job]) -> None:
    store, job = loaded
    gate.open.set()
    engine = ThreadEngine(gate, store)
    engine.start()
    answer = engine.submit(job).result(WAIT_S)
    assert len(answer.logits) == 3
    assert answer.queue_ms >= 0
    assert answer.compute_ms > 0
    engine.close()


def test_jobs_that_wait_share_the_next_batch(gate: Gate, loaded: tuple[Store, Job]) -> None:
    store, job = loaded
    engine = ThreadEngine(gate, store)
    engine.start()
    futures = [engine.submit(job)]
    assert gate.entered.wait(WAIT_S)
    futures += [engine.submit(job) for _ in range(5)]
    assert engine.health().num_waiting == 5
    gate.open.set()
    answers = [future.result(WAIT_S).logits for future in futures]
    assert all(abs(a - b) < 1e-5 for answer in answers for a, b in zip(answer, answers[0], strict=True))
    assert gate.sizes == [1, 5]
    engine.close()


def test_an_exception_in_the_forward_pass_answers_every_job_and_the_engine_goes_on(
    gate: Gate, loaded: tuple[Store, Job], capsys: pytest.CaptureFixture[str]
) -> None:
    store, job = loaded
    reports: list[BatchReport] = []
    engine = ThreadEngine(gate, store, on_batch=reports.append)
    engine.start()
    gate.error = RuntimeError("out of luck")
    futures = [engine.submit(job) for _ in range(3)]
    gate.open.set()
    for future in futures:
        with pytest.raises(ForwardFailed, match="RuntimeError"):
            future.result(WAIT_S)
    gate.error = None
    assert engine.submit(job).result(WAIT_S).logits
    assert engine.health().alive
    engine.close()
    assert reports[0].failed
    assert not reports[-1].failed
    assert "out of luck" in capsys.readouterr().err


def test_a_listener_that_raises_does_not_end_the_engine(
    gate: Gate, loaded: tuple[Store, Job], capsys: pytest.CaptureFixture[str]
) -> None:
    def listen(report: BatchReport) -> None:
        raise ValueError("listener is out")

    store, job = loaded
    gate.open.set()
    engine = ThreadEngine(gate, store, on_batch=listen)
    engine.start()
    for _ in range(2):
        assert engine.submit(job).result(WAIT_S).logits
    engine.close()
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["report_failed", "report_failed"]


def test_a_text_with_logits_that_are_not_finite_fails_alone(gate: Gate, loaded: tuple[Store, Job]) -> None:
    store, job = loaded
    engine = ThreadEngine(gate, store)
    first = engine.submit(job)
    others = [engine.submit(job) for _ in range(3)]
    gate.spoil_row = 0
    gate.open.set()
    engine.start()
    with pytest.raises(ForwardFailed, match="not finite"):
        first.result(WAIT_S)
    assert all(other.result(WAIT_S).logits for other in others)
    engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_death_of_the_engine_thread_answers_everything_and_is_seen(gate: Gate, loaded: tuple[Store, Job]) -> None:
    store, job = loaded
    engine = ThreadEngine(gate, store)
    engine.start()
    gate.error = SystemExit("killed")
    running = engine.submit(job)
    assert gate.entered.wait(WAIT_S)
    waiting = [engine.submit(job) for _ in range(3)]
    gate.open.set()
    for future in (running, *waiting):
        with pytest.raises(EngineStopped):
            future.result(WAIT_S)
    engine.close()
    assert not engine.health().alive
    with pytest.raises(EngineStopped):
        engine.submit(job)


def test_a_full_queue_refuses_at_once(gate: Gate, loaded: tuple[Store, Job]) -> None:
    store, job = loaded
    engine = ThreadEngine(gate, store, max_waiting=2)
    futures = [engine.submit(job) for _ in range(2)]
    with pytest.raises(Overloaded) as caught:
        engine.submit(job)
    assert caught.value.retry_after_s >= 1
    gate.open.set()
    engine.start()
    assert all(future.result(WAIT_S).logits for future in futures)
    engine.close()


def test_a_cancelled_job_is_never_computed(gate: Gate, loaded: tuple[Store, Job]) -> None:
    store, job = loaded
    engine = ThreadEngine(gate, store)
    kept, dropped = engine.submit(job), engine.submit(job)
    assert dropped.cancel()
    gate.open.set()
    engine.start()
    assert kept.result(WAIT_S).logits
    engine.close()
    assert gate.sizes == [1]
    with pytest.raises(CancelledError):
        dropped.result(0)


def test_close_answers_what_is_queued(gate: Gate, loaded: tuple[Store, Job]) -> None:
    store, job = loaded
    gate.open.set()
    engine = ThreadEngine(gate, store, max_batch_tokens=1)
    futures = [engine.submit(job) for _ in range(4)]
    engine.start()
    engine.close()
    assert all(future.result(0).logits for future in futures)
    with pytest.raises(EngineStopped):
        engine.submit(job)


def test_jobs_of_an_engine_that_never_ran_are_answered_at_close(gate: Gate, loaded: tuple[Store, Job]) -> None:
    store, job = loaded
    engine = ThreadEngine(gate, store)
    future = engine.submit(job)
    engine.close()
    with pytest.raises(EngineStopped):
        future.result(0)


def test_a_version_that_is_not_loaded_is_refused(gate: Gate, loaded: tuple[Store, Job]) -> None:
    store, job = loaded
    with pytest.raises(AdapterNotFound):
        ThreadEngine(gate, store).submit(replace(job, version="000000000000"))


def test_an_adapter_that_is_unloaded_stays_whole_for_the_jobs_that_have_it(
    gate: Gate, bert_base: BaseModel, tmp_path: Path
) -> None:
    store = Store(bert_base)
    make_adapter(tmp_path / "a", bert_base.folder, peft_configs("bert")["lora-qv"], 3, seed=0)
    folder = adapter_folder.read(tmp_path, "a", bert_base)
    store.load(folder)
    engine = ThreadEngine(gate, store)
    future = engine.submit(Job("a", folder.version, (2, 9, 3), (0, 0, 0)))
    store.unregister(f"a@{folder.version}")
    with pytest.raises(AdapterNotFound):
        engine.submit(Job("a", folder.version, (2, 9, 3), (0, 0, 0)))
    gate.open.set()
    engine.start()
    assert len(future.result(WAIT_S).logits) == 3
    engine.close()
    assert store.stats().resident_bytes == 0


class Disk:
    """The real file reader behind a gate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        monkeypatch.setattr("server.store.read_block", self)

    def __call__(self, weights: WeightsFile, sha256: str) -> Tensor:
        assert self.open.wait(WAIT_S)
        return read_block(weights, sha256)


@pytest.fixture
def unloaded(bert_base: BaseModel, tmp_path: Path) -> tuple[Store, Job]:
    """A known adapter that is still on disk."""
    store = Store(bert_base)
    make_adapter(tmp_path / "a", bert_base.folder, peft_configs("bert")["lora-qv"], 3, seed=0)
    folder = adapter_folder.read(tmp_path, "a", bert_base)
    store.register(folder)
    return store, Job("a", folder.version, (2, 9, 3), (0, 0, 0))


def test_texts_wait_for_their_adapter_and_others_do_not(
    gate: Gate,
    loaded: tuple[Store, Job],
    bert_base: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, job = loaded
    make_adapter(tmp_path / "slow", bert_base.folder, peft_configs("bert")["ia3-paper"], 2, seed=0)
    folder = adapter_folder.read(tmp_path, "slow", bert_base)
    store.register(folder)
    disk = Disk(monkeypatch)
    gate.open.set()
    engine = ThreadEngine(gate, store)
    engine.start()
    slow = [engine.submit(Job("slow", folder.version, (2, 9, 3), (0, 0, 0))) for _ in range(3)]
    assert len(engine.submit(job).result(WAIT_S).logits) == 3
    assert not any(future.done() for future in slow)
    assert engine.health().num_waiting == 3
    disk.open.set()
    assert {len(future.result(WAIT_S).logits) for future in slow} == {2}
    engine.close()


def test_texts_that_wait_for_an_adapter_count_and_give_their_places_back_when_they_leave(
    gate: Gate, unloaded: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = unloaded
    disk = Disk(monkeypatch)
    engine = ThreadEngine(gate, store, max_waiting=2)
    futures = [engine.submit(job) for _ in range(2)]
    with pytest.raises(Overloaded):
        engine.submit(job)
    for future in futures:
        assert future.cancel()
    assert engine.health().num_waiting == 0
    disk.open.set()
    gate.open.set()
    engine.start()
    assert len(engine.submit(job).result(WAIT_S).logits) == 3
    engine.close()
    assert store.stats().num_loads == 1


def test_close_answers_texts_that_wait_for_their_adapter(
    gate: Gate, unloaded: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = unloaded
    disk = Disk(monkeypatch)
    gate.open.set()
    engine = ThreadEngine(gate, store)
    engine.start()
    future = engine.submit(job)
    closing = threading.Thread(target=engine.close)
    closing.start()
    disk.open.set()
    assert len(future.result(WAIT_S).logits) == 3
    closing.join(WAIT_S)
    assert not closing.is_alive()


def test_an_adapter_that_is_damaged_fails_its_texts_with_the_reason(
    gate: Gate, unloaded: tuple[Store, Job], tmp_path: Path
) -> None:
    store, job = unloaded
    path = tmp_path / "a" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"ruin")
    engine = ThreadEngine(gate, store)
    with pytest.raises(AdapterFailed, match="sha256"):
        engine.submit(job).result(WAIT_S)
    assert engine.health().num_waiting == 0


def test_a_failed_batch_teaches_the_budget_nothing(gate: Gate, loaded: tuple[Store, Job]) -> None:
    store, job = loaded
    gate.open.set()
    engine = ThreadEngine(gate, store)
    engine.start()
    engine.submit(job).result(WAIT_S)
    before = engine._budget.tokens()
    gate.error = RuntimeError("at once")
    for _ in range(3):
        with pytest.raises(ForwardFailed):
            engine.submit(job).result(WAIT_S)
    assert engine._budget.tokens() == before
    engine.close()


def test_a_log_that_is_full_stops_nothing(
    gate: Gate, loaded: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = loaded
    gate.open.set()
    engine = ThreadEngine(gate, store)
    engine.start()
    with monkeypatch.context() as patch, Path("/dev/full").open("w") as full:
        patch.setattr("sys.stderr", full)
        gate.error = RuntimeError("out of luck")
        with pytest.raises(ForwardFailed):
            engine.submit(job).result(WAIT_S)
        gate.error = None
        assert engine.submit(job).result(WAIT_S).logits
        assert engine.health().alive
        with contextlib.suppress(OSError):
            full.close()
    engine.close()


def test_the_rows_that_a_prefix_brings_count_as_tokens(bert_base: BaseModel, tmp_path: Path) -> None:
    """Otherwise a batch of short texts with long prefixes would take more memory than the budget bounds."""
    make_adapter(tmp_path / "a", bert_base.folder, peft_configs("bert")["prefix"], 2, seed=0)
    adapter = Store(bert_base).load(adapter_folder.read(tmp_path, "a", bert_base))
    assert Waiting(Job("a", "v", (1, 2, 3), (0, 0, 0)), adapter).num_tokens == 3 + 6


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _after_a_first_pass(gate: Gate, store: Store, job: Job, **options: float) -> tuple[ThreadEngine, Clock]:
    """A running engine that has answered once, before a closed gate."""
    clock = Clock()
    engine = ThreadEngine(gate, store, clock=clock, **options)  # type: ignore[arg-type]
    engine.start()
    gate.open.set()
    engine.submit(job).result(WAIT_S)
    gate.open.clear()
    gate.entered.clear()
    return engine, clock


def test_an_engine_whose_forward_pass_does_not_come_back_is_not_alive(gate: Gate, loaded: tuple[Store, Job]) -> None:
    store, job = loaded
    engine, clock = _after_a_first_pass(gate, store, job, stall_s=60)
    clock.now += 1000  # idle for however long: nothing runs
    assert engine.health() == EngineHealth(alive=True, num_waiting=0)
    running = engine.submit(job)
    assert gate.entered.wait(WAIT_S)
    clock.now += 60
    assert engine.health() == EngineHealth(alive=True, num_waiting=0, num_running=1)
    clock.now += 0.1
    assert engine.health() == EngineHealth(alive=False, num_waiting=0, num_running=1, stalled=True)
    with pytest.raises(EngineStopped, match="does not come back"):
        engine.submit(job)
    gate.open.set()
    assert running.result(WAIT_S).logits
    wait_until(lambda: engine.health() == EngineHealth(alive=True, num_waiting=0))
    engine.close()


def test_the_first_pass_may_take_ten_times_as_long(gate: Gate, loaded: tuple[Store, Job]) -> None:
    store, job = loaded
    clock = Clock()
    engine = ThreadEngine(gate, store, stall_s=60, clock=clock)
    engine.start()
    running = engine.submit(job)
    assert gate.entered.wait(WAIT_S)
    clock.now += 600
    assert engine.health().alive
    clock.now += 1
    assert not engine.health().alive
    gate.open.set()
    assert running.result(WAIT_S).logits
    engine.close()


def test_a_watchdog_that_is_off_never_barks(gate: Gate, loaded: tuple[Store, Job]) -> None:
    store, job = loaded
    engine, clock = _after_a_first_pass(gate, store, job, stall_s=0)
    running = engine.submit(job)
    assert gate.entered.wait(WAIT_S)
    clock.now += 1e9
    assert engine.health().alive
    gate.open.set()
    assert running.result(WAIT_S).logits
    engine.close()


def test_a_stalled_engine_is_given_up_at_close_and_everything_is_answered(
    gate: Gate, loaded: tuple[Store, Job], capsys: pytest.CaptureFixture[str]
) -> None:
    store, job = loaded
    engine, clock = _after_a_first_pass(gate, store, job, stall_s=60)
    futures = [engine.submit(job)]
    assert gate.entered.wait(WAIT_S)
    futures += [engine.submit(job) for _ in range(3)]
    clock.now += 61
    engine.close()  # does not wait for the pass
    for future in futures:
        with pytest.raises(EngineStopped):
            future.result(0)
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["event"] == "engine_given_up"
    gate.open.set()  # and if the pass does come back, its answers go nowhere and the thread ends
    wait_until(lambda: not engine._thread.is_alive())


def test_a_batch_that_does_not_fit_into_memory_is_split_until_it_does(
    gate: Gate, loaded: tuple[Store, Job], capsys: pytest.CaptureFixture[str]
) -> None:
    store, job = loaded
    reports: list[BatchReport] = []
    gate.most_tokens = 9
    engine = ThreadEngine(gate, store, on_batch=reports.append)
    futures = [engine.submit(job) for _ in range(5)]  # of 4 tokens each
    large = engine.submit(replace(job, token_ids=(2, *range(40, 48), 3), type_ids=(0,) * 10))
    gate.open.set()
    engine.start()
    assert all(len(future.result(WAIT_S).logits) == 3 for future in futures)
    with pytest.raises(OutOfMemory, match="10 tokens"):
        large.result(WAIT_S)
    assert engine.submit(job).result(WAIT_S).logits
    engine.close()
    assert reports[0].failed
    assert reports[0].num_splits == len(gate.sizes) // 2 - 1
    assert (reports[1].failed, reports[1].num_splits) == (False, 0)
    [event] = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (event["event"], event["reason"], event["num_texts"]) == ("batch_split", "memory", 6)


def test_memory_that_was_short_makes_later_batches_smaller(gate: Gate, loaded: tuple[Store, Job]) -> None:
    store, job = loaded
    long = replace(job, token_ids=(2, *([40] * 98), 3), type_ids=(0,) * 100)
    gate.open.set()
    engine = ThreadEngine(gate, store, batch_ms=1e6)
    engine.start()
    engine.submit(long).result(WAIT_S)  # now the budget is in the thousands
    engine.close()
    assert engine._budget.tokens() == 8192
    gate.most_tokens = 500
    second = ThreadEngine(gate, store, batch_ms=1e6)
    second._budget = engine._budget
    futures = [second.submit(long) for _ in range(20)]
    second.start()
    assert all(future.result(WAIT_S).logits for future in futures)
    gate.sizes.clear()
    futures = [second.submit(long) for _ in range(20)]
    assert all(future.result(WAIT_S).logits for future in futures)
    second.close()
    assert max(gate.sizes) <= 5


def test_an_adapter_that_makes_the_pass_raise_fails_alone(
    gate: Gate, bert_base: BaseModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, jobs = Store(bert_base), []
    for seed, name in enumerate(("a", "b", "c")):
        make_adapter(tmp_path / name, bert_base.folder, peft_configs("bert")["lora-qv"], 3, seed=seed)
        folder = adapter_folder.read(tmp_path, name, bert_base)
        adapter = store.load(folder)
        if name == "b":  # weights of a wrong shape that got past every check
            rows = {site: LowRank(torch.zeros(7, 2), torch.zeros(2, 7), 1.0) for site in adapter.rows}
            object.__setattr__(adapter, "rows", rows)
        jobs.append(Job(name, folder.version, (2, 9, 3), (0, 0, 0)))
    engine = ThreadEngine(gate, store)
    futures = [engine.submit(job) for job in jobs * 3]
    gate.open.set()
    engine.start()
    for job, future in zip(jobs * 3, futures, strict=True):
        if job.adapter_id == "b":
            with pytest.raises(ForwardFailed):
                future.result(WAIT_S)
        else:
            assert len(future.result(WAIT_S).logits) == 3
    assert engine.health().alive
    engine.close()
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events == ["batch_failed", "batch_split"]


def test_a_device_that_has_failed_ends_the_engine_so_that_the_server_is_restarted(
    gate: Gate, loaded: tuple[Store, Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, job = loaded
    card = PlantedCard(1 << 30)
    card.is_lost = True
    monkeypatch.setattr(store, "memory", card)
    engine = ThreadEngine(gate, store)
    engine.start()
    gate.error = torch.AcceleratorError(ILLEGAL)
    running = engine.submit(job)
    assert gate.entered.wait(WAIT_S)
    waiting = [engine.submit(job) for _ in range(3)]
    gate.open.set()
    for future in (running, *waiting):
        with pytest.raises(EngineStopped):
            future.result(WAIT_S)
    wait_until(lambda: not engine.health().alive)
    engine.close()
