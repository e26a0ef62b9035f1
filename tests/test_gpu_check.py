"""`python -m benchmarks.gpu_check` as far as it goes without a GPU: what it compares, times and reports."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.peft_types import PeftType

from benchmarks import goals
from benchmarks.gpu_check import adapters
from benchmarks.gpu_check.__main__ import main
from benchmarks.gpu_check.adapters import METHODS, known_methods, make_sets
from benchmarks.gpu_check.kernels import FIRST, SQUARE, WIDTHS, Operations, attentions, check_operations, operations
from benchmarks.gpu_check.moves import check_expandable, check_moves
from benchmarks.gpu_check.recorded import WAITED, Passes, check_graphs, waits
from benchmarks.gpu_check.report import Report, Shares
from benchmarks.gpu_check.speed import PAIRS, SMALL_PAIRS, Engine
from server import base_model, graphs
from server.attention import Packing
from server.base_model import BaseModel
from server.fixed_batch import FixedBatch
from server.grouped import Rows
from tests.planted_card import PlantedCard

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton on this machine")


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "new" / "report.json")


def never() -> bool:
    return False


def taped() -> Passes:
    """What records on a machine without a GPU."""
    from tests.taped import TapeRecorder, recording

    return Passes(lambda device: TapeRecorder(), lambda base, recorder: recording(base, recorder is not None, recorder))


def read(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def test_every_method_equals_plain_peft(base_folders: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--device", "cpu", "--base", str(base_folders["bert"]), "--only", "logits"]
    assert main([*flags, "--output", str(tmp_path / "o.json")]) == 0, (tmp_path / "o.json").read_text(encoding="utf-8")
    found = read(tmp_path / "o.json")
    kinds = ("float32", "bfloat16")
    assert set(found["errors"]) == {
        *(f"logits of {method}, {kind}" for method in METHODS for kind in kinds),
        *(f"logits in a mixed batch, {kind}" for kind in kinds),
    }
    assert found["errors"]["logits in a mixed batch, float32"]["cases"] == 6 * 2
    assert found["cases"]["logits"] == {"run": 2, "of": 2, "minimum": 2}
    assert found["left_out"] == []
    assert set(found["figures"]["control"]) == {*METHODS} - {"head"}


def test_all_contenders_are_timed_and_goals_are_told(base_folders: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--device", "cpu", "--base", str(base_folders["bert"]), "--shape", "none", "--rounds", "2"]
    assert main([*flags, "--texts", "8", "--only", "speed", "--output", str(tmp_path / "o.json")]) == 0
    found = read(tmp_path / "o.json")
    speeds = found["speeds"]
    large = {"tiny-bert, skewed", "tiny-bert, 128 tokens each"}
    assert set(speeds) == large | {f"tiny-bert, {num_texts} texts" for num_texts in (1, 4)}
    assert all(set(speeds[name]["ratios"]) == set(PAIRS if name in large else SMALL_PAIRS) for name in speeds)
    assert {goal["name"].rpartition(": ")[2] for goal in found["goals"]} == set(goals.RATIOS)
    assert len(found["goals"]) == len(large) * len(goals.RATIOS)


def test_the_bare_base_has_a_pass_of_its_own_that_has_seen_no_method(
    base_folders: dict[str, Path], tmp_path: Path
) -> None:
    engine = Engine(str(base_folders["bert"]), CPU, tmp_path, 4)
    engine.store.close()
    shared = {id(forward) for name, forward in engine.forwards.items() if name != "base"}
    assert id(engine.forwards["base"]) not in shared


@needs_triton
def test_recorded_passes_are_compared_and_counted(
    base_folders: dict[str, Path], tmp_path: Path, report: Report
) -> None:
    check_graphs(str(base_folders["bert"]), CPU, tmp_path, report, never, taped(), ("ia3", "prefix", "head"), 3)
    assert report.failures == []
    assert report.figures["graphs"]["sizes"] == [64, 128, 256]
    assert report.figures["graphs"]["num_recorded"] == 3
    assert report.errors["recorded passes, prefix"]["cases"] == 4 * 3


@needs_triton
@pytest.mark.parametrize(("part", "method"), [("prefixes", "prefix"), ("addresses", "ia3")])
def test_another_adapters_weights_in_a_recorded_pass_are_seen(
    part: str,
    method: str,
    base_folders: dict[str, Path],
    tmp_path: Path,
    report: Report,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stale(FixedBatch):
        """What is put there first stays."""

        first: torch.Tensor | None = None

        def write(self, inputs: Mapping[str, Sequence[int]], packing: Packing, spans: Sequence[Rows]) -> None:
            super().write(inputs, packing, spans)
            if self.first is None:
                self.first = self._parts[part].clone()
            self._parts[part].copy_(self.first)

    monkeypatch.setattr(graphs, "FixedBatch", Stale)
    check_graphs(str(base_folders["bert"]), CPU, tmp_path, report, never, taped(), (method,), 1)
    wrong = [failure for failure in report.failures if failure.startswith(f"recorded passes, {method}: turn ")]
    assert {failure.split()[4] for failure in wrong} == {"1,", "2,"}  # the other set's turns


@needs_triton
def test_passes_that_are_not_replayed_are_seen(
    base_folders: dict[str, Path], tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FixedBatch, "takes", lambda self, drafts: False)
    check_graphs(str(base_folders["bert"]), CPU, tmp_path, report, never, taped(), ("head", "prefix"), 1)
    said = [failure for failure in report.failures if failure.startswith("graphs: turn ")]
    assert [failure.split(" and ")[0] for failure in said] == [
        f"graphs: turn {turn}, 64 tokens: 1 recorded" for turn in (1, 2, 3)
    ]


@needs_triton
def test_adapters_may_move_while_recorded_passes_run(
    base_folders: dict[str, Path], tmp_path: Path, report: Report
) -> None:
    spec, methods, card = str(base_folders["bert"]), ("ia3", "prefix", "head"), PlantedCard(1 << 30)
    check_moves(spec, CPU, tmp_path, report, never, taped(), methods, 12, 64, card)
    assert report.failures == []
    assert report.errors["recorded passes of what moves, prefix"]["cases"] == 12
    assert report.figures["moves"]["num_replayed"] >= 12
    assert report.figures["memory shared out"]["graphs"] > 0


@needs_triton
def test_adapters_that_another_thread_has_freed_are_seen(
    base_folders: dict[str, Path], tmp_path: Path, report: Report
) -> None:
    """As if the memory of what left were used for what came."""

    class Reusing(PlantedCard):
        def __init__(self) -> None:
            super().__init__(1 << 30)
            self.blocks: dict[int, torch.Tensor] = {}

        def bring(self, block: torch.Tensor) -> torch.Tensor:
            place = self.blocks.setdefault(block.nbytes, super().bring(block))
            place.copy_(block)
            return place

    spec = str(base_folders["bert"])
    check_moves(spec, CPU, tmp_path, report, never, taped(), ("ia3", "prefix"), 12, 64, Reusing())
    assert any(failure.startswith("recorded passes of what moves, ") for failure in report.failures)


def test_a_card_is_needed_for_what_is_recorded(base_folders: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--device", "cpu", "--base", str(base_folders["bert"]), "--only", "graphs"]
    assert main([*flags, "--output", str(tmp_path / "o.json")]) == 1
    failures = read(tmp_path / "o.json")["failures"]
    assert [failure.partition(":")[0] for failure in failures] == ["graphs", "moves"]
    assert all("cannot be recorded on cpu" in failure for failure in failures)


def test_what_a_process_of_its_own_finds_is_told(base_folders: dict[str, Path], tmp_path: Path, report: Report) -> None:
    check_expandable(str(base_folders["bert"]), CPU, tmp_path, report, never)
    (failure,) = report.failures
    assert failure.startswith("with expandable segments: moves: RuntimeError: passes cannot be recorded on cpu")


def test_adapters_that_differ_too_little_are_a_failure_of_the_check(
    bert_base: BaseModel, tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "NOISES", (0.0,))
    sets = make_sets(tmp_path, ("ia3", "lora", "head"), bert_base, 3, report)
    assert [len(some) for some in sets] == [3, 3, 3]
    assert [failure.partition(":")[0] for failure in report.failures] == ["control of ia3", "control of lora"]
    assert "with another's weights, or with none, logits differ by 0 only" in report.failures[0]


def test_a_method_that_peft_lacks_is_left_out_and_told(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_methods(report) == METHODS
    known = {name: member for name, member in PeftType.__members__.items() if name != "BEFT"}
    monkeypatch.setattr(PeftType, "_member_map_", known)
    assert known_methods(report) == tuple(method for method in METHODS if method != "bitfit")
    (told,) = report.left_out
    assert told.startswith("bitfit: peft ")


def test_the_embedded_base_has_to_be_named_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(base_model, "EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(SystemExit) as ended:
        main(["--device", "cpu", "--output", str(tmp_path / "o.json")])
    assert ended.value.code == 2
    assert "--base FOLDER" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@needs_triton
def test_operations_are_tried_and_their_number_told(report: Report) -> None:
    taped()  # has Triton's kernels interpreted
    small = Operations(torch.bfloat16, torch.float32, (72, 40), 5, (1, 24))
    check_operations(CPU, report, never, [small])
    assert report.failures == []
    assert report.cases["operations"] == {"run": 1, "of": 1, "minimum": 1}


def test_the_cases_of_the_kernels_distinguish_programs_first() -> None:
    cases = operations()
    assert cases[: len(FIRST)] == list(FIRST)
    usual = [case for case in FIRST if (case.dtype, case.weights) == (torch.bfloat16, torch.float32)]
    assert {case.widths for case in usual} == set(WIDTHS)
    ranks = {max(16, 1 << (rank - 1).bit_length()) for case in usual if case.widths == SQUARE for rank in case.ranks}
    assert ranks == {16, 32, 64, 128}
    assert len(attentions()) == 20 + 2 * 5 * 3 * 4 * 3


def test_every_part_has_its_share_and_what_one_leaves_is_the_others() -> None:
    now = 0.0
    shares = Shares({"one": 3, "two": 1, "three": 1}, 100, lambda: now)
    first = shares.begin("one")
    now = 59
    assert not first()
    now = 60
    assert first()
    now = 20  # had it ended sooner
    second = shares.begin("two")
    now = 60
    assert second()
    third = shares.begin("three")
    now = 99
    assert not third()


def test_a_part_without_time_for_its_minimum_is_a_failure(report: Report) -> None:
    done: list[int] = []
    report.try_each("enough", range(9), 3, lambda: len(done) >= 3, done.append)
    assert report.failures == []
    report.try_each("short", range(9), 3, lambda: len(done) >= 5, done.append)
    assert report.failures == ["short: there was no time for 3 cases, 2 were run"]
    assert report.cases["short"] == {"run": 2, "of": 9, "minimum": 3}


def test_without_time_every_part_says_so(base_folders: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--device", "cpu", "--base", str(base_folders["bert"]), "--shape", "none", "--texts", "4"]
    for only in ("logits", "speed"):
        assert main([*flags, "--only", only, "--limit-s", "0", "--output", str(tmp_path / "o.json")]) == 1
        (failure,) = read(tmp_path / "o.json")["failures"]
        assert "there was no time for" in failure


def test_waits_for_the_device_are_counted_by_place() -> None:
    def run() -> None:
        for _ in range(3):
            warnings.warn(WAITED, stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    ((place, count),) = waits(run, CPU).items()
    assert place.startswith("tests/test_gpu_check.py:")
    assert count == 3


def test_goals_are_met_at_their_bound_and_missed_below_it() -> None:
    ratios = {name: {"median": bound} for name, bound in goals.RATIOS.items()}
    speeds = {"random-llama-1b, 128 tokens each": {"ratios": ratios, "base_vs_matrix_rate": 0.69}}
    found = goals.of_speeds(speeds | {"random-llama-1b, 4 texts": {"ratios": {"mix_vs_base": {"median": 0.1}}}})
    assert [goal.is_met for goal in found] == [True, True, True, False]


@pytest.mark.parametrize("error", [0.2, float("nan")])
def test_what_is_too_far_from_the_truth_or_raises_is_a_failure(error: float, report: Report) -> None:
    report.note("logits", "one", 0.1, limit=0.1)
    assert report.failures == []
    report.note("logits", "another", error, limit=0.1)

    def run() -> None:
        raise RuntimeError("no such kernel")

    report.attempt("kernels", run)
    kept = read(report.output)["failures"]
    assert [line.partition(":")[0] for line in kept] == ["logits", "kernels"]
