"""`python -m benchmarks.device`: rows of the engine alone, on machines that have torch and peft only."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import goals
from benchmarks.device import main
from benchmarks.passes import Case, interleave, texts_for
from benchmarks.random_base import SHAPES, write_base
from decision.rows import LatencyRow, MemoryRow, Row, read
from server import adapter_folder, base_model
from server.forward import Forward, load_base
from server.methods import method_named
from server.store import Store
from training import dummy

ROOT = Path(__file__).parent.parent
ABSENT = ("pydantic", "fastapi", "starlette", "uvicorn", "locust", "datasets", "sklearn", "scipy", "prometheus_client")
SMALL = {"vocab_size": 600, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
SMALL |= {"num_hidden_layers": 2, "intermediate_size": 112, "max_position_embeddings": 512}


def flags_for(base: Path, output: Path) -> list[str]:
    flags = ["--device", "cpu", "--base", str(base), "--shape", "none", "--output", str(output)]
    return [*flags, "--rounds", "2", "--resident", "70"]


def latencies(rows: Sequence[Row], scenario: str, part: str = "all") -> dict[str, LatencyRow]:
    found = (row for row in rows if isinstance(row, LatencyRow) and row.scenario == scenario)
    return {row.case: row for row in found if row.part == part}


def test_rows_come_of_a_machine_without_pydantic_and_are_read_by_one_with_it(
    base_folders: dict[str, Path], tmp_path: Path
) -> None:
    code = f"import sys\nfor name in {ABSENT!r}: sys.modules[name] = None\n"
    code += "from benchmarks.device import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *flags_for(base_folders["bert"], tmp_path / "new" / "rows.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rows.jsonl"]
    rows = read(tmp_path / "new" / "rows.jsonl")
    passes = latencies(rows, "engine")
    kinds = ("head", "lora", "ia3", "prefix", "bottleneck")
    assert set(passes) == {
        *(f"{kind}, {count} hot" for kind in kinds for count in (1, 8, 64)),
        *(f"mix, {count} hot" for count in (4, 8, 64)),
        "10 a pass of 10 lora",
        "10 a pass of 70 lora",
    }
    assert all(row.num_requests == 2 and row.num_errors == 0 for row in passes.values())
    assert all(row.num_users is None and row.rate_per_s is None for row in passes.values())
    mix = passes["mix, 64 hot"]
    assert mix.methods == dict.fromkeys(kinds[1:], 16)
    assert mix.num_hot == 64
    assert mix.num_registered == 4 * 64 + 70
    assert mix.batch["texts"] == mix.batch["adapters"] == 32
    assert mix.batch["methods"] > 1
    assert mix.tokens_per_s == pytest.approx(mix.texts_per_s * mix.batch["tokens"] / 32, rel=1e-3)
    assert [passes[f"10 a pass of {count} lora"].batch["adapters"] for count in (10, 70)] == [10, 10]
    assert set(latencies(rows, "adapter-load")) == {
        f"{kind} from {tier}" for kind in kinds[1:] for tier in ("disk", "host memory")
    }
    beside = latencies(rows, "engine", "others")
    assert set(beside) == {f"lora, 8 hot, {what}" for what in ("nothing is loaded", "adapters are loaded")}
    assert beside["lora, 8 hot, nothing is loaded"].changes == {}
    assert beside["lora, 8 hot, adapters are loaded"].changes["loads"] > 0
    assert "times 10 a pass of 10 lora: " in done.stderr
    memory = [row for row in rows if isinstance(row, MemoryRow)]
    at_rest = {row.case: row for row in memory if row.moment == "idle"}
    assert set(at_rest) == {"no adapters", *(f"64 {kind}" for kind in kinds), "70 lora"}
    assert at_rest["64 lora"].resident_adapters == 64
    assert {row.case for row in memory if row.moment == "load"} == set(passes)


def test_a_base_of_a_known_shape_in_bfloat16_is_measured(tmp_path: Path) -> None:
    shape = {**SHAPES["llama-1b"], **SMALL}
    base = write_base(tmp_path / "random-llama", shape, base_model.choose_device("cpu"))
    flags = [*flags_for(base, tmp_path / "rows.jsonl"), "--dtype", "bfloat16", "--rounds", "1"]
    assert main(flags) == 0
    passes = latencies(read(tmp_path / "rows.jsonl"), "engine")
    assert {(row.base, row.dtype, row.device) for row in passes.values()} == {("random-llama", "bfloat16", "cpu")}
    assert len(passes) == 20


def test_without_time_it_ends_with_what_it_has(base_folders: dict[str, Path], tmp_path: Path) -> None:
    assert main([*flags_for(base_folders["bert"], tmp_path / "rows.jsonl"), "--limit-s", "0"]) == 0
    assert [(row.kind, row.case) for row in read(tmp_path / "rows.jsonl") if isinstance(row, MemoryRow)] == [
        ("memory", "no adapters")
    ]


def test_cases_take_turns_and_stop_in_the_midst_of_a_round(base_folders: dict[str, Path], tmp_path: Path) -> None:
    base = load_base(str(base_folders["bert"]), "cpu", "float32")
    store = Store(base)
    names = dummy.make(tmp_path, method_named("ia3"), 3, str(base_folders["bert"]))
    adapters = [store.load(adapter_folder.read(tmp_path, name, base)) for name in names]
    forward = Forward(base)
    cases = [
        Case("one", forward, adapters[:1]),
        Case("two of three", forward, adapters, 2),
        Case("three", forward, adapters),
    ]
    num_passes = itertools.count()
    # three rounds warm up; of the third one behind them, one pass is left out
    found = interleave(base, texts_for(base), cases, 9, lambda: next(num_passes) >= 3 * 3 + 3 * 3 - 1)
    assert sorted(len(passes) for passes in found.values()) == [2, 3, 3]
    assert {one.num_adapters for one in found["two of three"]} == {2}


def test_goals_are_judged_by_the_median_row() -> None:
    few, many = "10 a pass of 10 lora", "10 a pass of 1000 lora"
    loads = ("lora from host memory", "lora from disk")

    def reached(medians: dict[str, float]) -> list[bool]:
        rows = [
            {"kind": "latency", "base": "random-llama-1b", "case": case, "part": "all", "latency_ms": {"p50": p50}}
            for case, p50 in medians.items()
        ]
        return [goal.is_met for goal in goals.of_rows(rows, many, few)]

    assert reached({few: 2.0, many: 2.1, loads[0]: 2.0, loads[1]: 30.0}) == [True, True, True]
    assert reached({few: 2.0, many: 2.2, loads[0]: 2.1, loads[1]: 30.1}) == [False, False, False]


def test_the_embedded_base_has_to_be_named_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(base_model, "EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(SystemExit) as ended:
        main(["--device", "cpu", "--output", str(tmp_path / "rows.jsonl")])
    assert ended.value.code == 2
    assert "--base FOLDER" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there_is_refused(
    base_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(base_folders["bert"])
    assert main(["--base", base, "--device", "cuda:99", "--output", str(tmp_path / "rows.jsonl")]) == 1
    assert "device `cuda:99` cannot be used here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
