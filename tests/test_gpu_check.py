"""`python -m benchmarks.gpu_check` as far as it goes without a GPU: what it compares, times and reports."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import LAUNCHED_PAIRS, PAIRS, Report, main


def test_every_method_equals_plain_peft_and_all_contenders_are_timed(
    base_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "BATCH", 8)
    flags = ["--device", "cpu", "--base", str(base_folders["bert"]), "--shape", "none", "--rounds", "2"]
    for only in ("logits", "speed"):
        output = tmp_path / "new" / f"{only}.json"
        assert main([*flags, "--only", only, "--output", str(output)]) == 0, output.read_text(encoding="utf-8")
    errors = json.loads((tmp_path / "new" / "logits.json").read_text(encoding="utf-8"))["errors"]
    assert {"logits of lora, float32", "logits of prefix, bfloat16", "logits in a mixed batch, bfloat16"} <= set(errors)
    assert errors["logits in a mixed batch, float32"]["cases"] == 6 * 3 * 8
    speeds = json.loads((tmp_path / "new" / "speed.json").read_text(encoding="utf-8"))["speeds"]
    large = {"tiny-bert, skewed", "tiny-bert, 128 tokens each"}
    assert set(speeds) == large | {f"tiny-bert, {num_texts} texts" for num_texts in (1, 4)}
    assert all(set(speeds[name]["ratios"]) == set(PAIRS if name in large else LAUNCHED_PAIRS) for name in speeds)


def test_recorded_passes_are_compared_and_must_be_had(
    base_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--device", "cpu", "--base", str(base_folders["bert"]), "--only", "graphs", "--output"]
    assert main([*flags, str(tmp_path / "absent.json")]) == 1
    assert "cannot be recorded on cpu" in (tmp_path / "absent.json").read_text(encoding="utf-8")
    pytest.importorskip("triton", reason="there is no Triton on this machine")
    from tests.taped import recording

    monkeypatch.setattr(gpu_check, "Forward", recording)
    monkeypatch.setattr(gpu_check, "SMALL_BATCHES", ())
    monkeypatch.setattr(gpu_check, "BATCH", 1)
    monkeypatch.setattr(gpu_check, "skewed_texts", lambda count: [range(4, 9)] * count)
    output = tmp_path / "made.json"
    assert main([*flags, str(output)]) == 0, output.read_text(encoding="utf-8")
    errors = json.loads(output.read_text(encoding="utf-8"))["errors"]
    assert errors["logits of recorded passes"]["cases"] == 4


@pytest.mark.parametrize("error", [0.2, float("nan")])
def test_what_is_too_far_from_the_truth_or_raises_is_a_failure(error: float, tmp_path: Path) -> None:
    report = Report(tmp_path / "report.json", time.monotonic() + 60)
    report.note("logits", "one", 0.1, limit=0.1)
    assert report.failures == []
    report.note("logits", "another", error, limit=0.1)

    def run() -> None:
        raise RuntimeError("no such kernel")

    report.attempt("kernels", run)
    kept = json.loads(report.output.read_text(encoding="utf-8"))["failures"]
    assert [line.partition(":")[0] for line in kept] == ["logits", "kernels"]
