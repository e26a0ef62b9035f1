"""The memory of a GPU: shared out at the start, never exceeded, filled beside the batches, and lost with the device."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from torch import Tensor

from server import adapter_folder
from server.adapter_folder import AdapterFolder
from server.app import create_app
from server.base_model import BaseModel
from server.device_memory import STAGE_BYTES, CardMemory, HostMemory, memory_of
from server.engine import ThreadEngine
from server.errors import BaseModelError, EngineStopped, ForwardFailed, LoadFailed
from server.forward import Forward, Work, load_base
from server.jobs import Job
from server.memory_budget import MOST_WORKSPACE, RESERVE, acting_bytes, full_batch, pass_bytes, share_out
from server.retries import Retries
from server.service import Service
from server.store import Store
from tests.planted_card import ILLEGAL, PlantedCard
from tests.seeded import MAX_LENGTH
from tests.serving import make_adapters, settings_for, until
from tests.test_batching import waiting

WAIT_S = 20
GIB = 1 << 30


@pytest.fixture(scope="module")
def root(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapters(tmp_path_factory.mktemp("device"), bert_base, ["a0", "a1", "a2", "a3"])


@pytest.fixture(scope="module")
def folders(root: Path, bert_base: BaseModel) -> list[AdapterFolder]:
    return [adapter_folder.read(root, f"a{index}", bert_base) for index in range(4)]


# -- sharing out --


@given(
    total=st.integers(1 << 16, 1 << 34),
    held=st.floats(0, 1),
    token_bytes=st.integers(0, 1 << 20),
    most_tokens=st.integers(1, 32768),
    asked=st.integers(0, 1 << 34),
)
def test_what_is_shared_out_is_there_and_a_base_is_refused_only_where_the_smallest_batch_takes_too_much(
    bert_base: BaseModel, total: int, held: float, token_bytes: int, most_tokens: int, asked: int
) -> None:
    card = PlantedCard(total, int(total * held), token_bytes=token_bytes)
    left = card.free_bytes() - int(total * RESERVE)

    def needs(num_tokens: int) -> int:
        return max(pass_bytes(bert_base, num_tokens), token_bytes * num_tokens) + acting_bytes(bert_base, num_tokens)

    try:
        budget = share_out(card, bert_base, card.run, most_tokens, asked)
    except BaseModelError:
        assert needs(min(most_tokens, 64)) > left * MOST_WORKSPACE
        return
    assert budget.batch_tokens <= most_tokens
    assert budget.batch_tokens > most_tokens // 2 or needs(2 * budget.batch_tokens + 1) > left * MOST_WORKSPACE
    assert budget.parts["workspace"] == needs(budget.batch_tokens)
    assert min(budget.parts.values()) >= 0
    room = left - needs(budget.batch_tokens)
    assert budget.adapter_bytes == budget.parts["adapters"] == (min(asked, room) if asked else room)
    assert sum(budget.parts.values()) == total - room + budget.adapter_bytes


def test_a_base_that_leaves_no_room_is_refused_with_the_bytes(bert_base: BaseModel) -> None:
    card = PlantedCard(GIB, held=GIB - (1 << 20))
    with pytest.raises(BaseModelError, match=r"1,072,693,248 of 1,073,741,824 bytes, 1,048,576 are free"):
        share_out(card, bert_base, card.run, 8192)


def test_a_pass_that_needs_more_than_its_shape_says_makes_batches_smaller(bert_base: BaseModel) -> None:
    card = PlantedCard(GIB, token_bytes=100_000)
    budget = share_out(card, bert_base, card.run, 8192)
    assert budget.batch_tokens == 4096
    assert budget.parts["workspace"] == 4096 * 100_000 + acting_bytes(bert_base, 4096)


def test_the_largest_batch_runs_on_every_family_and_has_all_its_tokens(base: BaseModel, forward: Forward) -> None:
    batch = full_batch(base, MAX_LENGTH + 100)
    lengths = [job.num_tokens for job, _ in batch]
    assert (sum(lengths), lengths[0]) == (MAX_LENGTH + 100, base.max_length)
    assert all(row.shape == (1,) and row.isfinite().all() for row in forward.run(batch))


def test_a_server_tells_what_the_memory_is_for_and_keeps_to_it(
    bert_base: BaseModel, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = PlantedCard(64 << 20, held=8 << 20)
    card.peak = 15 << 20  # of a batch of any size
    monkeypatch.setattr("server.service.memory_of", lambda device: card)
    with Service(settings_for(root, bert_base, state=str(tmp_path))) as service:
        with TestClient(create_app(service.desk, 1 << 20)) as client:
            text = client.get("/metrics").text
            asked = client.post("/v1/classify", json={"adapter_id": "a0", "inputs": "word1"})
        most_tokens = service.engine._budget._most_tokens
    found = {
        line.split('"')[1]: int(float(line.split()[1]))
        for line in text.splitlines()
        if line.startswith("adaptermux_device_memory_bytes{")
    }
    assert found["base"] == 8 << 20
    assert found["reserve"] == int((64 << 20) * RESERVE)
    assert found["workspace"] >= 15 << 20
    assert sum(found.values()) == 64 << 20
    assert most_tokens < 8192
    assert asked.status_code == 200


# -- the way in --


@pytest.mark.parametrize("num_bytes", [0, 1, STAGE_BYTES - 1, STAGE_BYTES, STAGE_BYTES + 1, 3 * STAGE_BYTES + 17])
def test_what_is_brought_is_the_same_bytes_elsewhere(num_bytes: int) -> None:
    block = torch.randint(256, (num_bytes,), dtype=torch.uint8)
    arrived = CardMemory(torch.device("cpu")).bring(block)
    assert torch.equal(arrived, block)
    assert num_bytes == 0 or arrived.data_ptr() != block.data_ptr()


def test_loaders_that_bring_at_once_do_not_mix_their_bytes() -> None:
    card = CardMemory(torch.device("cpu"))
    blocks = [torch.full((STAGE_BYTES + 999,), value, dtype=torch.uint8) for value in range(8)]
    with ThreadPoolExecutor(4) as loaders:
        assert all(map(torch.equal, loaders.map(card.bring, blocks), blocks))


@pytest.mark.skipif(torch.cuda.is_available(), reason="here memory can be pinned")
def test_memory_that_cannot_be_pinned_is_told_of_and_serves_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    card = CardMemory(torch.device("cpu"))
    [event, _] = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (event["event"], event["num_bytes"]) == ("memory_not_pinned", STAGE_BYTES)
    assert card.bring(torch.ones(3, dtype=torch.uint8)).tolist() == [1, 1, 1]


def test_on_a_processor_nothing_is_copied() -> None:
    memory, block = memory_of(torch.device("cpu")), torch.ones(3, dtype=torch.uint8)
    assert isinstance(memory, HostMemory)
    assert memory.bring(block) is block
    assert memory.works()


# -- less room than the budget says --


def test_gaps_between_adapters_cost_evictions_and_no_request(
    bert_base: BaseModel, folders: list[AdapterFolder]
) -> None:
    num_bytes = folders[0].weights.num_bytes
    card = PlantedCard(6 * num_bytes, page=2 * num_bytes)  # only three have room, not six
    store = Store(bert_base, device_bytes=6 * num_bytes, memory=card)
    for folder in [*folders, *reversed(folders), *folders]:
        assert store.load(folder).resident_bytes == num_bytes
        assert card.held == 2 * num_bytes * store.stats().num_resident
    assert card.most <= card.total
    assert store.stats().num_resident == 3
    assert store.stats().num_evictions == store.stats().num_loads - 3
    store.close()


def test_where_all_is_in_use_a_lack_of_memory_is_told_and_passes(
    bert_base: BaseModel, folders: list[AdapterFolder]
) -> None:
    card = PlantedCard(folders[0].weights.num_bytes)
    store = Store(bert_base, memory=card)
    store.register(folders[0])
    used = store.acquire("a0", folders[0].version).result(WAIT_S)
    with pytest.raises(LoadFailed, match="out of memory"):
        store.load(folders[1])
    assert not store.has_lost_device
    store.release(used)
    del used
    store.load(folders[1])
    store.close()


# -- a device that is lost --


def test_a_device_that_is_lost_while_an_adapter_is_loaded_ends_the_server(
    bert_base: BaseModel, folders: list[AdapterFolder]
) -> None:
    card = PlantedCard(GIB)
    store = Store(bert_base, memory=card)
    for folder in folders:
        store.register(folder)
    engine = ThreadEngine(Forward(load_base(str(bert_base.folder), "cpu", "float32")), store)
    engine.start()

    def job(index: int) -> Job:
        return Job(f"a{index}", folders[index].version, (2, 9, 3), (0, 0, 0))

    assert engine.submit(job(0)).result(WAIT_S).logits
    assert engine.health().alive
    card.is_lost = True
    with pytest.raises(LoadFailed, match="illegal memory access"):
        engine.submit(job(1)).result(WAIT_S)
    assert not engine.health().alive
    with pytest.raises(EngineStopped, match="device has failed"):
        engine.submit(job(0))
    engine.close()
    store.close()


@pytest.mark.parametrize("is_lost", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        torch.AcceleratorError("CUDA error: invalid configuration argument"),
    ],
    ids=["library", "launch"],
)
def test_an_error_is_the_devices_where_the_device_does_not_answer_any_more(error: Exception, is_lost: bool) -> None:
    """Of whatever class: a launch that the device has refused leaves it as it was."""
    card = PlantedCard(GIB)
    card.is_lost = is_lost

    def run(work: Sequence[Work]) -> list[Tensor]:
        raise error

    retries = Retries(run, lambda: None, card)
    if is_lost:
        with pytest.raises(EngineStopped, match="device"):
            retries.run([waiting(1, "a")])
    else:
        assert isinstance(retries.run([waiting(1, "a")]).answers[0], ForwardFailed)


def test_a_device_that_is_lost_makes_a_server_of_one_process_not_live(
    bert_base: BaseModel, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = PlantedCard(GIB)
    monkeypatch.setattr("server.service.memory_of", lambda device: card)
    with (
        Service(settings_for(root, bert_base, state=str(tmp_path))) as service,
        TestClient(create_app(service.desk, 1 << 20)) as client,
    ):
        assert client.get("/health/live").status_code == 200

        def run(self: Forward, work: Sequence[Work]) -> list[Tensor]:
            card.is_lost = True
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")

        monkeypatch.setattr(Forward, "run", run)
        answer = client.post("/v1/classify", json={"adapter_id": "a0", "inputs": "word1"})
        assert (answer.status_code, answer.json()["code"]) == (503, "engine_stopped")
        until(lambda: client.get("/health/live").status_code == 503)


PLANTED = f"""
import sys
from pathlib import Path

from server import command, processes

trigger, run_engine = Path(sys.argv[1]), processes.run_engine

def planted(*given):
    import torch
    from server.device_memory import HostMemory
    from server.forward import Forward
    run = Forward.run
    def fail_once(self, work):
        if trigger.exists():
            trigger.unlink()
            HostMemory.works = lambda self: False
            raise torch.AcceleratorError({ILLEGAL!r})
        return run(self, work)
    Forward.run = fail_once
    return run_engine(*given)

processes.run_engine = planted
sys.exit(command.main(sys.argv[2:]))
"""


def test_a_device_that_is_lost_in_a_process_of_its_own_gets_a_new_process(
    bert_base: BaseModel, root: Path, tmp_path: Path
) -> None:
    trigger = tmp_path / "trigger"
    flags = [
        "--adapters", root, "--base", bert_base.folder, "--state", tmp_path / "state", "--port", 0, "--device", "cpu",
        "--dtype", "float32", "--threads", 1, "--kernels", "off", "--http-processes", 1,
    ]  # fmt: skip
    command = [sys.executable, "-c", PLANTED, str(trigger), *map(str, flags)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        events = (json.loads(line) for line in process.stderr)
        try:
            url = next(event["url"] for event in events if event["event"] == "server_started")
            assert _classify(url) == 200
            trigger.touch()
            assert _classify(url) == 503
            ended = next(event for event in events if event["event"] == "process_ended")
            assert (ended["process"], ended["again_in_s"]) == ("engine", 0)
            next(event for event in events if event["event"] == "adapters_loaded")
            until(lambda: _classify(url) == 200)
        finally:
            process.terminate()
            process.stderr.read()
            process.wait(WAIT_S)


def _classify(url: str) -> int:
    body: dict[str, Any] = {"adapter_id": "a0", "inputs": "word1"}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/classify", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
