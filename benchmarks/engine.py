"""The mixed-method batch against the bare base model, the library's and peft's own ways, and the processor's limit.

    python -m benchmarks.engine

All in one process with one thread, in process CPU time. The two that a ratio compares run one behind the other in every
round, and the ratio is the median over rounds. Prints tables and writes `benchmarks/results/latest.json`. Texts are
skewed in length (about 20 tokens in the mean, at most 128) and every text of a batch uses another adapter, unless a
name says otherwise. Heads are the architecture's own, which read [CLS].
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from benchmarks import store as store_benchmark
from benchmarks.material import (
    NUM_LABELS,
    even_texts,
    job,
    make_folders,
    padded,
    skewed_texts,
)
from benchmarks.timing import Contender, Timings, interleave, machine
from server import adapter_folder, base_model
from server.forward import Forward, load_base
from server.frozen_linear import FrozenLinear
from server.heads import Head
from server.loaded_adapter import LoadedAdapter
from server.manifest import Pooling
from server.store import Store
from training.model import PooledClassifier

RESULT = Path(__file__).parent / "results" / "latest.json"
METHODS = ("lora", "ia3", "prefix", "bottleneck")
BATCH, SMALL_BATCH, NUM_RESIDENT = 64, 32, 1000
Texts = list[list[int]]
PAIRS = {
    "base_vs_transformers": ("base", "transformers"),
    "base_vs_transformers_mean": ("base, mean pooling", "transformers, mean pooling"),
    "base_vs_transformers_even": ("base, even", "transformers, even"),
    "mix_vs_base": ("mix, 64 adapters", "base"),
    **{f"{name}_vs_base": (f"{name}, 64 adapters", "base") for name in METHODS},
    "resident_1000_vs_64": ("mix of 1000 resident", "mix of 64 resident"),
    "lora_vs_peft_adapter_names": ("lora, 64 adapters", "peft adapter_names"),
    "lora_vs_peft_set_adapter": ("lora, 32 texts", "peft set_adapter a text, 32 texts"),
    "bf16_vs_fp32": ("mix, bfloat16", "mix, 64 adapters"),
    "base_vs_onednn": ("base", "matrix products, oneDNN"),
    "base_vs_mkl": ("base", "matrix products, F.linear"),
    "onednn_vs_mkl": ("matrix products, oneDNN", "matrix products, F.linear"),
}
"""What is compared with what."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file to write (%(default)s)")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        bench = Bench(Path(folder))
        timings = interleave(bench.contenders(), PAIRS, flags.rounds)
        load = store_benchmark.measure(bench.root, bench.lora_names, bench.base)
        against_files = store_benchmark.bytes_against_files(bench.root, bench.names, bench.base)
    record = {
        "schema": 2,
        "command": "python -m benchmarks.engine",
        "rounds": flags.rounds,
        **machine(),
        "texts": {"skewed_mean_tokens": round(bench.num_tokens / BATCH, 1), "skewed_longest": 128, "even": 64},
        "headline": _headline(timings, load, against_files),
        "ratios": {name: timings.speed(name) for name in PAIRS},
        "cpu_ms": {name: round(statistics.median(values) * 1e3, 2) for name, values in timings.alone.items()},
        "store": load,
        "resident_bytes_vs_file": against_files,
    }
    flags.output.parent.mkdir(exist_ok=True)
    flags.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _print(record)
    return 0


class Bench:
    """The contenders, on one set of texts and adapters."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = load_base(base_model.EMBEDDED_ID, "cpu", "float32")
        self._forward = Forward(self.base)
        self._rough = Forward(load_base(base_model.EMBEDDED_ID, "cpu", "bfloat16"))
        self._library = Forward(load_base(base_model.EMBEDDED_ID, "cpu", "float32"), "library")
        self._texts, self._fewer, self._even = skewed_texts(BATCH), skewed_texts(SMALL_BATCH), even_texts(SMALL_BATCH)
        self.num_tokens = sum(map(len, self._texts))
        share = NUM_RESIDENT // len(METHODS)
        counts = {name: NUM_RESIDENT if name == "lora" else share for name in METHODS}
        self.names = {name: make_folders(root, name, counts[name]) for name in METHODS}
        self.lora_names = self.names["lora"]
        store = Store(self.base)
        self._adapters = {
            name: [store.load(adapter_folder.read(root, one, self.base)) for one in self.names[name][:share]]
            for name in METHODS
        }

    def contenders(self) -> dict[str, Contender]:
        """What is timed, by name. The resident ones take other adapters in every round."""
        mix = [self._adapters[METHODS[i % len(METHODS)]][i] for i in range(BATCH)]
        everyone = [adapter for name in METHODS for adapter in self._adapters[name]]
        found: dict[str, Contender] = {
            "transformers": self._transformers(self._texts),
            "transformers, mean pooling": self._transformers_mean(self._texts),
            "base": self._ours(self._bare(BATCH)),
            "base, mean pooling": self._ours(self._bare(BATCH, "mean")),
            "base, the library's code": self._ours(self._bare(BATCH), forward=self._library),
            "base, bfloat16": self._ours(self._bare(BATCH), forward=self._rough),
            "matrix products, oneDNN": self._products(True),
            "matrix products, F.linear": self._products(False),
        }
        for name in METHODS:
            for distinct in (1, 8, BATCH):
                found[f"{name}, {distinct} adapters"] = self._ours(_spread(self._adapters[name], distinct))
        for distinct in (4, 8, BATCH):
            found[f"mix, {distinct} adapters"] = self._ours(_spread(mix, distinct))
        found["mix, bfloat16"] = self._ours(mix, forward=self._rough)
        for resident in (10, 100, NUM_RESIDENT):
            found[f"mix of {resident} resident"] = self._drawn(everyone, resident)
        found["mix of 64 resident"] = self._drawn(mix, BATCH)
        found |= self._of_other_sizes(mix) | self._of_peft()
        return found

    def _of_other_sizes(self, mix: list[LoadedAdapter]) -> dict[str, Contender]:
        found: dict[str, Contender] = {
            "transformers, even": self._transformers(self._even),
            "base, even": self._ours(self._bare(SMALL_BATCH), self._even),
            "lora, even": self._ours(self._adapters["lora"][:SMALL_BATCH], self._even),
            "mix, even": self._ours(mix[:SMALL_BATCH], self._even),
        }
        for size in (1, 8, SMALL_BATCH):
            texts = self._texts[:size]
            found[f"transformers, batch {size}"] = self._transformers(texts)
            found[f"base, batch {size}"] = self._ours(self._bare(size), texts)
            found[f"mix, batch {size}"] = self._ours(mix[:size], texts)
        return found

    def _of_peft(self) -> dict[str, Contender]:
        """peft's own ways of serving many LoRA adapters. Its `adapter_names` are right for LoRA only."""
        model = self._peft(BATCH)
        batch = padded(self._texts)
        names = [f"a{index}" for index in range(BATCH)]
        grouped = [(f"a{group}", padded(self._texts[group::8])) for group in range(8)]

        def one_by_one(_: int) -> None:
            for name, text in zip(names, self._fewer, strict=False):
                model.set_adapter(name)
                model(input_ids=torch.tensor([text]))

        def by_group(_: int) -> None:
            for name, inputs in grouped:
                model.set_adapter(name)
                model(**inputs)

        return {
            "lora, 32 texts": self._ours(self._adapters["lora"][:SMALL_BATCH], self._fewer),
            "peft set_adapter a text, 32 texts": one_by_one,
            "peft set_adapter a group, 8 adapters": by_group,
            "peft adapter_names": lambda _: model(**batch, adapter_names=names),
        }

    def _peft(self, count: int) -> PeftModel:
        first = self.root / self.lora_names[0]
        bare = PooledClassifier.load(base_model.EMBEDDED_ID, NUM_LABELS, "native")
        model = PeftModel.from_pretrained(bare, first, adapter_name="a0")
        for index in range(1, count):
            model.load_adapter(self.root / self.lora_names[index], adapter_name=f"a{index}")
        return model.eval()

    def _ours(
        self, adapters: Sequence[LoadedAdapter], texts: Texts | None = None, forward: Forward | None = None
    ) -> Contender:
        work = [(job(tokens), one) for tokens, one in zip(texts or self._texts, adapters, strict=True)]
        return lambda _: (forward or self._forward).run(work)

    def _drawn(self, adapters: Sequence[LoadedAdapter], resident: int) -> Contender:
        """A batch of other adapters in every round, drawn from those that are resident."""

        def run(number: int) -> None:
            chosen = list(adapters[:: len(adapters) // resident][:resident])
            random.Random(number).shuffle(chosen)
            drawn = (chosen * (BATCH // resident + 1))[:BATCH]
            self._forward.run([(job(tokens), one) for tokens, one in zip(self._texts, drawn, strict=True)])

        return run

    def _bare(self, count: int, pooling: Pooling = "native") -> list[LoadedAdapter]:
        """Heads without adapters."""
        some = self._adapters["lora"]
        if pooling == "native":
            return [LoadedAdapter(f"bare-{i}", a.method, pooling, {}, a.head, 0) for i, a in enumerate(some[:count])]
        head = Head(
            self.base.family.linear_head(), {k: v for k, v in some[0].head.tensors.items() if "classifier" in k}
        )
        return [LoadedAdapter(f"bare-{i}", some[0].method, pooling, {}, head, 0) for i in range(count)]

    def _transformers(self, texts: Texts) -> Contender:
        model = AutoModelForSequenceClassification.from_pretrained(self.base.folder, num_labels=NUM_LABELS).eval()
        return lambda _: model(**padded(texts))

    def _transformers_mean(self, texts: Texts) -> Contender:
        model, head = AutoModel.from_pretrained(self.base.folder).eval(), nn.Linear(self.base.hidden_size, NUM_LABELS)

        def run(_: int) -> Tensor:
            batch = padded(texts)
            weights = batch["attention_mask"][..., None].float()
            logits: Tensor = head((model(**batch).last_hidden_state * weights).sum(1) / weights.sum(1))
            return logits

        return run

    def _products(self, is_reordered: bool) -> Contender:
        """The bare matrix products that our base makes for these texts: nothing in between."""
        config: Any = self.base.backbone.config
        hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        widths = [(hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden)]
        shapes = [(self.num_tokens, *width) for width in widths]
        # the last layer runs for one row a text but for keys and values; then comes the pooling layer
        few = [(hidden, hidden), (hidden, hidden), (hidden, inner), (inner, hidden), (hidden, hidden)]
        last = [(self.num_tokens, hidden, 2 * hidden), *((BATCH, *width) for width in few)]
        made = {shape: nn.Linear(*shape[1:]) for shape in {*shapes, *last}}
        inputs = {shape: torch.randn(shape[:2]) for shape in made}
        products = {
            shape: FrozenLinear([layer], torch.float32, torch.float32) if is_reordered else layer
            for shape, layer in made.items()
        }
        order = shapes * (layers - 1) + last
        return lambda _: [products[shape](inputs[shape]) for shape in order]


def _headline(timings: Timings, load: Mapping[str, float], against_files: Mapping[str, float]) -> dict[str, float]:
    """The ratios that the project is judged by; above 1 is faster than what stands behind `vs`."""
    ratios = {name: timings.speed(name)["median"] for name in PAIRS}
    limit = min(ratios.pop("base_vs_onednn"), ratios.pop("base_vs_mkl"))
    return ratios | {
        "base_vs_gemm": limit,
        "load_500th_ms": load["load_500th_ms"],
        "resident_bytes_vs_file": max(against_files.values()),
    }


def _spread(adapters: Sequence[LoadedAdapter], distinct: int) -> list[LoadedAdapter]:
    return [adapters[index % distinct] for index in range(BATCH)]


def _print(record: Mapping[str, Any]) -> None:
    print(f"{'64 texts unless said, 1 thread':<42}{'CPU ms':>10}")
    for name, milliseconds in record["cpu_ms"].items():
        print(f"{name:<42}{milliseconds:>10.1f}")
    print("\nratios, median (quartiles)")
    for name, ratio in record["ratios"].items():
        print(f"  {name:<40}{ratio['median']:>8.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})")
    for part in ("store", "resident_bytes_vs_file", "headline"):
        print(f"\n{part}")
        for name, value in record[part].items():
            print(f"  {name:<40}{value:>10.3f}")


if __name__ == "__main__":
    sys.exit(main())
