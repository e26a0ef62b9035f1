"""The mixed-method batch against the bare base model and against plain peft, interleaved in one process.

    python -m benchmarks.mixed_batch

Prints a table and writes `benchmarks/results/latest.json`. Times are process CPU time, one thread.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from server import adapter_folder, base_model
from server.base_model import BaseModel
from server.forward import Forward, Work, load_base
from server.jobs import Job
from server.methods import methods
from server.store import LoadedAdapter, Store
from training.model import PooledClassifier

RESULT = Path(__file__).parent / "results" / "latest.json"
NUM_TEXTS = 64
NUM_LABELS = 4
MIXED = ("lora", "ia3", "prefix", "bottleneck")
LIBRARIES = ("torch", "transformers", "peft")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (%(default)s)")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        contenders = _contenders(Path(folder))
        seconds = _interleave(contenders, flags.rounds)
    _report(seconds, flags.rounds)
    return 0


def _contenders(folder: Path) -> dict[str, Callable[[], object]]:
    """What is timed: each classifies the same 32 texts of skewed length (log-normal, 4 to 128 tokens)."""
    texts = _texts()
    bases = {dtype: load_base(base_model.EMBEDDED_ID, "cpu", dtype) for dtype in ("float32", "bfloat16")}
    forwards = {dtype: Forward(base) for dtype, base in bases.items()}
    plain = AutoModel.from_pretrained(bases["float32"].folder).eval()
    adapters, peers = _adapters(folder, bases["float32"])
    bare = [LoadedAdapter(f"{a.key}-bare", a.method, a.pooling, {}, a.head, 0) for a in adapters["lora"]]
    mixed = [adapters[MIXED[i % len(MIXED)]][i] for i in range(NUM_TEXTS)]

    def ours(chosen: list[LoadedAdapter], dtype: str = "float32") -> Callable[[], object]:
        work: list[Work] = [(_job(tokens), adapter) for tokens, adapter in zip(texts, chosen, strict=True)]
        return lambda: forwards[dtype].run(work)

    def peft_one_by_one() -> None:
        for index, tokens in enumerate(texts):
            peers.set_adapter(f"a{index}")
            peers(input_ids=torch.tensor([tokens]))

    return {
        "transformers base, padded": lambda: plain(**_padded(texts)),
        "our base, no adapters": ours(bare),
        **{f"our {name}, 32 adapters": ours(adapters[name]) for name in MIXED},
        "our mix of all four": ours(mixed),
        "our mix, bfloat16": ours(mixed, "bfloat16"),
        "peft LoRA, set_adapter per text": peft_one_by_one,
    }


def _interleave(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_index in range(rounds + 1):
        for name, run in contenders.items():
            began = time.process_time()
            run()
            if round_index > 0:  # the first round warms up
                seconds[name].append(time.process_time() - began)
        print(f"round {round_index} of {rounds}", file=sys.stderr)
    return seconds


def _report(seconds: Mapping[str, list[float]], rounds: int) -> None:
    reference = seconds["our base, no adapters"]
    rows = {}
    print(f"{'32 texts, skewed lengths, 1 thread':<36}{'CPU ms':>10}{'x our base (min to max)':>28}")
    for name, measured in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(reference, measured, strict=True)]
        rows[name] = {
            "cpu_ms_median": round(statistics.median(measured) * 1e3, 2),
            "speed_vs_our_base": round(statistics.median(ratios), 3),
            "speed_vs_our_base_min": round(min(ratios), 3),
            "speed_vs_our_base_max": round(max(ratios), 3),
        }
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:<36}{statistics.median(measured) * 1e3:>10.1f}{shown:>28}")
    record = {
        "schema": 1,
        "command": "python -m benchmarks.mixed_batch",
        "rounds": rounds,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in LIBRARIES},
        "rows": rows,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _texts() -> list[list[int]]:
    rng = random.Random(0)
    lengths = [min(128, max(4, round(rng.lognormvariate(2.75, 0.7)))) for _ in range(NUM_TEXTS)]
    return [[101, *(rng.randrange(1000, 20000) for _ in range(length - 2)), 102] for length in lengths]


def _job(tokens: list[int]) -> Job:
    return Job("bench", "0", tuple(tokens), (0,) * len(tokens))


def _padded(texts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, texts))
    return {
        "input_ids": torch.tensor([text + [0] * (width - len(text)) for text in texts]),
        "attention_mask": torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts]),
    }


def _adapters(folder: Path, base: BaseModel) -> tuple[dict[str, list[LoadedAdapter]], PeftModel]:
    """32 random adapters of every method as the server holds them, and the LoRA ones as peft does."""
    store, loaded = Store(base), {}
    peers: dict[str, Any] = {}
    for name in MIXED:
        method = methods()[name]
        if method.peft_module is not None:
            importlib.import_module(method.peft_module)
        options = {option: default for option, (default, _, _) in method.options.items()}
        config = method.peft_config(base.family, options)
        torch.manual_seed(0)
        peers[name] = get_peft_model(PooledClassifier.load(base_model.EMBEDDED_ID, NUM_LABELS, "native"), config, "a0")
        for index in range(1, NUM_TEXTS):
            peers[name].add_adapter(f"a{index}", config)
        peers[name].eval().save_pretrained(str(folder / name))
        # peft writes the first adapter into the folder itself and the others below it
        names = [f"a{index}" for index in range(NUM_TEXTS)]
        loaded[name] = [store.load(adapter_folder.read(folder / name, one, base)) for one in names]
    return loaded, peers["lora"]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
