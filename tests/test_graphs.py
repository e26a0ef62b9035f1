"""Recorded passes on a machine without a GPU: a tape in the place of CUDA graphs, launched passes as the oracle."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor

pytest.importorskip("triton", reason="there is no Triton on this machine")
from server import adapter_folder, graphs
from server.attention import Packing
from server.base_model import BaseModel
from server.fixed_batch import FixedBatch, Shape
from server.forward import Forward, Work, load_base
from server.graphs import bound
from server.grouped import MAX_RANK, GroupedSegments, Rows
from server.jobs import Job
from server.loaded_adapter import LoadedAdapter
from server.memory_budget import GROWTH, acting_bytes, share_out
from server.methods.base import KeysValues
from server.products import LowRank
from server.store import Store
from server.varlen_attention import BatchLines
from tests.planted_card import PlantedCard
from tests.seeded import MAX_LENGTH, NAMES, Peer, make_adapter, make_base, peft_configs
from tests.taped import KERNELS, TapeRecorder, recording

CPU = torch.device("cpu")


class Bench:
    """One base under two forward passes, one of which records, and some adapters of every method."""

    def __init__(self, folder: Path, root: Path, recorder: TapeRecorder | None = None, dtype: str = "float32") -> None:
        self.root, self.recorder = root, recorder or TapeRecorder()
        self.names = sorted(path.name for path in root.iterdir() if path != folder)
        base, self.base = (load_base(str(folder), "cpu", dtype) for _ in range(2))
        self.plain = Forward(base, "library", uses_kernels=False)
        self.store = Store(self.base)
        self.forward = recording(self.base, recorder=self.recorder)

    def load(self, name: str) -> LoadedAdapter:
        return self.store.load(adapter_folder.read(self.root, name, self.base))

    def check(self, work: Sequence[Work]) -> None:
        """Both passes answer alike."""
        for found, expected in zip(self.forward.run(work), self.plain.run(work), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def text(adapter: LoadedAdapter, length: int, first: int = 5) -> Work:
    ids = tuple(first + position % 500 for position in range(length))
    return Job(adapter.key, "", ids, (0,) * length), adapter


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """By type of model: a base, and a folder with an adapter of every method."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(model_type: str) -> tuple[Path, Path]:
        if model_type not in made:
            root = tmp_path_factory.mktemp(model_type)
            base = make_base(root / "base", model_type)
            configs = peft_configs(model_type)
            configs["lora-other"] = replace(configs["lora-qv"])
            names = NAMES[model_type].query_value
            configs["lora-wide"] = LoraConfig(task_type="SEQ_CLS", r=MAX_RANK + 2, target_modules=names)
            for number, (name, config) in enumerate(configs.items()):
                make_adapter(root / name, base, config, 2 + number % 3, seed=number)
            made[model_type] = base, root
        return made[model_type]

    return make


@pytest.fixture
def bench(folders: Callable[[str], tuple[Path, Path]]) -> Bench:
    return Bench(*folders("bert"))


@pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term")
@pytest.mark.parametrize("model_type", ["bert", "llama", "modernbert"])
def test_a_recorded_pass_answers_every_batch_as_the_plain_one_does(
    model_type: str, folders: Callable[[str], tuple[Path, Path]]
) -> None:
    """Of other texts, lengths and adapters than those that it was recorded with: all of that is data."""
    bench = Bench(*folders(model_type))
    adapters = [bench.load(name) for name in bench.names if name != "lora-wide"]
    for first in range(0, len(adapters), 8):  # a pass that is recorded runs again at once, to be judged
        bench.check([text(adapter, 3) for adapter in adapters[first : first + 8]])
    num_recorded = bench.recorder.num_recorded
    draw = random.Random(0)
    for num_texts in (1, 4, 8):
        lengths = [draw.choice((1, 2, 5, 13)) for _ in range(num_texts)]
        bench.check([text(draw.choice(adapters), length, draw.randint(5, 60)) for length in lengths])
    assert bench.recorder.num_recorded == num_recorded <= 2
    # one that is recorded runs twice to be judged, without adapters too
    assert bench.recorder.num_replayed == len(range(0, len(adapters), 8)) + num_recorded + 3


def test_an_adapter_that_takes_another_s_place_needs_no_recording(bench: Bench) -> None:
    first, other = bench.load("lora-qv"), bench.load("lora-other")
    bench.check([text(first, 5), text(first, 7)])
    rows = weakref.ref(next(iter(first.rows.values())))
    bench.store.close()
    bench.store = Store(bench.base)
    del first
    gc.collect()
    assert rows() is None
    bench.check([text(other, 9), text(other, 2), text(other, 3)])
    bench.check([text(bench.load("lora-rs"), 9), text(other, 1)])
    assert (bench.recorder.num_recorded, bench.recorder.num_replayed) == (1, 2 + 2)


def test_an_adapter_that_acts_in_a_new_way_is_recorded_once(bench: Bench) -> None:
    """And what was recorded before serves on where it has slots for all that a batch does."""
    lora, ia3 = bench.load("lora-qv"), bench.load("ia3-paper")
    for adapters, num_recorded in (([lora], 1), ([ia3], 2), ([lora], 2), ([lora, ia3], 2), ([ia3], 2)):
        bench.check([text(adapter, 4) for adapter in adapters])
        assert bench.recorder.num_recorded == num_recorded
    bench.check([text(lora, 65)])  # of the next size: with all that is known by now
    bench.check([text(ia3, 65)])
    assert bench.recorder.num_recorded == 3


@pytest.mark.parametrize("reason", ["rank", "tokens", "texts", "prefix rows"])
def test_what_no_recorded_pass_can_do_or_has_room_for_is_launched(
    reason: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST_TOKENS", 64)
    lora = bench.load("lora-qv")
    work = {
        "rank": [text(bench.load("lora-wide"), 3), text(lora, 3)],
        "tokens": [text(lora, 65)],
        "texts": [text(lora, 1, first) for first in range(5, 14)],
        "prefix rows": [text(bench.load("prefix"), 3, first) for first in range(5, 12)],
    }[reason]
    small = Bench(bench.base.folder, bench.root)
    small.check(work)
    assert small.recorder.num_recorded == (reason == "prefix rows")


def test_texts_that_are_read_at_one_token_are_pooled_alike(bench: Bench) -> None:
    lora, head = bench.load("lora-qv"), bench.load("head")
    first, last = replace(lora, key="first", pooling="cls"), replace(head, key="last", pooling="last")
    for length in (3, 11):
        bench.check([text(first, length), text(lora, length + 1), text(last, length + 2)])
    bench.check([text(first, 5), text(last, 1)])
    assert bench.recorder.num_recorded == 1


class Failing(TapeRecorder):
    """Raises, or records what gives something else."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.num_recorded += 1
        if self.fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.fault == "read":
            return super().record(lambda: run() * float(run().sum()))
        return {"wrong": lambda: run() + 1, "nan": lambda: run() * torch.nan}[self.fault]


@pytest.mark.parametrize("fault", ["memory", "read", "wrong", "nan"])
def test_where_recording_fails_all_is_launched_from_then_on(
    fault: str, folders: Callable[[str], tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(*folders("bert"), recorder=Failing(fault))
    lora = bench.load("lora-qv")
    bench.check([text(lora, 5)])
    log = capsys.readouterr().err
    assert log.count("kernels_absent") == log.count("CUDA graphs") == 1
    assert {"memory": "out of memory", "read": "cannot be recorded"}.get(fault, "differs by") in log
    num_recorded = bench.recorder.num_recorded
    bench.check([text(lora, 5), text(bench.load("ia3-paper"), 80)])
    assert bench.recorder.num_recorded == num_recorded
    assert bench.forward.graphs is not None
    assert bench.forward.graphs.held_bytes() == 0
    assert "CUDA graphs" not in capsys.readouterr().err


def test_an_adapter_that_hardly_acts_is_missed_where_it_is_missing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Among others that act, and within the tolerance of what they all give."""
    write = FixedBatch.write

    def forget_the_weak(self: FixedBatch, inputs: Any, packing: Packing, spans: Sequence[Rows]) -> None:
        write(self, inputs, packing, [span for span in spans if span[2] is not missing])

    weak, other = bench.load("lora-qv"), bench.load("lora-other")
    for row in weak.rows.values():
        assert isinstance(row, LowRank)
        row.up.mul_(1e-3)
    assert isinstance(bench.forward._segments, GroupedSegments)
    missing = bench.forward._segments.table(weak)
    work = [text(weak, 5), text(other, 9)]
    bench.check(work)
    assert "graph_recorded" in capsys.readouterr().err
    monkeypatch.setattr(FixedBatch, "write", forget_the_weak)
    bench.check([text(weak, 65), text(other, 9)])
    assert "adapters do not change a recorded pass" in capsys.readouterr().err


@pytest.mark.parametrize("scale", [1, 1e-2, 1e-4, 0])
def test_rounding_is_not_taken_for_a_missing_adapter(
    scale: float, folders: Callable[[str], tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(*folders("bert"), dtype="bfloat16")
    adapter = bench.load("lora-qv")
    for row in adapter.rows.values():
        assert isinstance(row, LowRank)
        row.up.mul_(scale)
    bench.forward.run([text(adapter, length) for length in (3, 20, 41)])
    assert "graph_recorded" in capsys.readouterr().err


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_rotary_embeddings_that_look_at_the_whole_batch_are_held(rope: str, tmp_path: Path) -> None:
    """So that they can be recorded, and a text is the same beside a longer one: by plain peft, alone."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8} if rope == "longrope" else {}
    parameters = {"rope_type": rope, "rope_theta": 10000.0, "factor": 2.0, **factors}
    parameters |= {"original_max_position_embeddings": 40} if factors else {}
    folder = make_base(tmp_path / "base", "llama", rope_parameters=parameters)
    oracle = make_adapter(tmp_path / "one", folder, peft_configs("llama")["lora-qv"], 3, seed=1)
    bench = Bench(folder, tmp_path)
    assert bench.base.max_length == (40 if factors else MAX_LENGTH)
    adapter = bench.load("one")
    work = [text(adapter, length) for length in (3, 20, 40)]
    expected = [Peer(adapter, oracle).logits(list(job.token_ids)) for job, _ in work]
    for _ in range(2):  # launched, then recorded
        for found, right in zip(bench.forward.run(work), expected, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    assert bench.forward.graphs is not None
    assert bench.forward.graphs.token_counts, "recorded passes were given up"


def test_a_batch_that_is_not_finite_judges_no_recording(bench: Bench) -> None:
    lora = bench.load("lora-qv")
    broken = bench.load("lora-other")
    row = next(iter(broken.rows.values()))
    assert isinstance(row, LowRank)
    row.down.fill_(torch.nan)
    assert not any(logits.isfinite().all() for logits in bench.forward.run([text(broken, 4)]))
    assert bench.recorder.num_recorded == 0
    bench.check([text(lora, 4)])
    assert bench.recorder.num_recorded == 1
    one, other = bench.forward.run([text(broken, 4), text(lora, 4)])
    assert (bool(one.isfinite().any()), bool(other.isfinite().all())) == (False, True)


@pytest.mark.parametrize("bytes_each", [1000, 100 << 20])
def test_what_recorded_passes_keep_is_in_the_memory_budget(
    bytes_each: int, bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all sizes, and it is not exceeded; where it is too much there are none, and adapters have the room."""
    monkeypatch.setattr(graphs, "MOST_TOKENS", 128)
    small = Bench(bench.base.folder, bench.root)
    small.recorder.bytes_each = bytes_each
    made = small.forward.graphs
    assert made is not None
    card = PlantedCard(1 << 30)
    budget = share_out(card, small.base, small.forward.run, 8192, graphs=made)
    assert sum(budget.parts.values()) == 1 << 30
    assert small.recorder.num_recorded == 2
    if bytes_each > 1000:
        assert budget.parts["graphs"] == made.held_bytes() == 0
        assert made.token_counts == []
        assert "bytes that are left for adapters" in capsys.readouterr().err
        return
    assert budget.parts["graphs"] == GROWTH * 2000 + acting_bytes(small.base, 128)
    made.keep_within(3000)
    capsys.readouterr()
    for name in ("lora-qv", "ia3-paper", "lora-all"):
        small.check([text(small.load(name), 4)])
    assert small.recorder.num_recorded == 3
    assert capsys.readouterr().err.count("graphs_full") == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=8))
def test_lines_of_a_fixed_batch_are_those_of_the_batch_that_was_written(texts: list[tuple[int, int]]) -> None:
    """And the rows behind them belong to no text that was asked for."""
    prefixes = [KeysValues(*torch.zeros(2, 1, 1, rows, 8)) if rows else None for _, rows in texts]
    packing = Packing([length for length, _ in texts], prefixes, [None] * len(texts), CPU)
    shape = Shape(64, 20)
    if not shape.holds(packing):
        assert packing.starts[-1] > 64 or sum(rows for _, rows in texts) > 64
        return
    fixed = FixedBatch(shape, ["input_ids"], {}, KERNELS, 1, CPU)
    for given_packing in (Packing([1], [None], [None], CPU), packing):
        fixed.write({"input_ids": range(given_packing.starts[-1])}, given_packing, [])
    found, expected = fixed.lines(has_prefixes=True), BatchLines(packing, CPU)
    num_texts, num_keys = len(texts), int(expected.key_starts[-1])
    assert found.token_starts[: num_texts + 1].tolist() == expected.token_starts.tolist()
    assert found.key_starts[: num_texts + 1].tolist() == expected.key_starts.tolist()
    assert found.sources[:num_keys].tolist() == expected.sources.tolist()
    assert found.prefixes[:num_texts].tolist() == expected.prefixes.tolist()
    assert found.token_starts[-1] == 64
    assert bool((found.sources[num_keys:, 0] == -1).all())
    assert bool(((found.sources[:, 1] >= 0) & (found.sources[:, 1] < 64)).all())
    for starts, longest in ((found.token_starts, found.longest_text), (found.key_starts, found.longest_key)):
        assert 0 <= int(starts.diff().min()) <= int(starts.diff().max()) <= longest


def test_only_passes_that_wait_for_the_host_are_recorded(bert_base: BaseModel) -> None:
    """Of a tiny base all sizes; fewer the more a layer multiplies."""
    assert bound(bert_base) == graphs.MOST_TOKENS
    for width, most_tokens in ((768, 2048), (2048, 512), (4096, 128)):  # a layer has six products of that width squared
        sites = {
            name: replace(site, in_features=width, out_features=width) if name else site
            for name, site in bert_base.sites.items()
        }
        assert most_tokens <= bound(replace(bert_base, sites=sites)) < 2 * most_tokens
