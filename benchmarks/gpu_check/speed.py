"""Texts per second of a base with adapters and without, recorded, launched and in plain peft, taking turns."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from benchmarks.gpu_check.adapters import BARE, TIMED, Texts, known
from benchmarks.gpu_check.logits import peft_model
from benchmarks.gpu_check.report import IsOver, Report, say
from benchmarks.material import even_texts, job, padded, skewed_texts
from benchmarks.passes import wait_for
from benchmarks.random_base import SHAPES, write_base
from server import adapter_folder
from server.forward import Forward, load_base
from server.loaded_adapter import LoadedAdapter
from server.methods import method_named
from server.store import Store
from training import dummy

DTYPE = "bfloat16"
NUM_TEXTS, NUM_ROUNDS, WARM_UPS = 64, 20, 3
FEWEST_ROUNDS = 3
SMALL_BATCHES = (1, 4, 16)
LAUNCHED_PAIRS = {
    "base_vs_launched_base": ("base", "base without graphs"),
    "mix_vs_launched_mix": ("mix", "mix without graphs"),
}
SMALL_PAIRS = {"mix_vs_base": ("mix", "base"), **LAUNCHED_PAIRS}
NAMES, ONE_BY_ONE = "peft adapter_names", "peft set_adapter a text"
PAIRS = {
    **{f"{method}_vs_base": (method, "base") for method in TIMED},
    "mix_vs_base": ("mix", "base"),
    "mix_vs_plain_mix": ("mix", "mix without kernels"),
    **LAUNCHED_PAIRS,
    "lora_vs_peft_adapter_names": ("lora", NAMES),
    "lora_vs_peft_set_adapter": ("lora", ONE_BY_ONE),
}
"""What is compared with what: how many times as fast the first is."""
SLOW, SLOW_EVERY = (ONE_BY_ONE, NAMES), 4
"""Contenders that have a turn in every fourth round only."""
SIZE = 8192
Contender = Callable[[], object]


def measure_shape(
    shape: str, device: torch.device, root: Path, rounds: int, report: Report, is_over: IsOver, num_texts: int
) -> None:
    """The same as `measure`, with a base of random weights."""
    folder = write_base(root / f"random-{shape}", SHAPES[shape], device)
    measure(str(folder), device, root / shape, rounds, report, is_over, num_texts)


def measure(
    spec: str, device: torch.device, root: Path, rounds: int, report: Report, is_over: IsOver, num_texts: int
) -> None:
    """Texts per second of all contenders, their ratios, and how much of the card's own rate the base reaches."""
    engine = Engine(spec, device, root, num_texts)
    try:
        for kind, texts in (("skewed", skewed_texts(num_texts)), ("128 tokens each", even_texts(num_texts, 128))):
            speed = engine.time(texts, PAIRS, rounds, is_over)
            if speed is None:
                report.fail(f"speed of {engine.base.name}, {kind}: there was no time for {FEWEST_ROUNDS} rounds")
                return
            rate = 2 * speed["tokens"] * engine.num_weights() / speed["ms"]["base"] * 1e3
            speed["base_vs_matrix_rate"] = round(rate / matrix_rate(device), 4)
            report.speeds[f"{engine.base.name}, {kind}"] = speed
            say(json.dumps(speed, indent=1))
        for count in filter(num_texts.__gt__, SMALL_BATCHES):
            speed = engine.time(skewed_texts(count), SMALL_PAIRS, rounds, is_over)
            if speed is not None:
                report.speeds[f"{engine.base.name}, {count} texts"] = speed
    finally:
        engine.store.close()


class Engine:
    """One base under several forward passes, with as many adapters of every method as texts, and plain peft.

    forwards: whose pass a contender is. Graphs have launches for every method that has come by: the bare base, which
    pays for none of them, has graphs of its own.
    """

    def __init__(self, spec: str, device: torch.device, root: Path, num_texts: int) -> None:
        self.base = load_base(spec, str(device), DTYPE)
        self.store = Store(self.base)
        shared, bare = Forward(self.base), Forward(load_base(spec, str(device), DTYPE))
        launched = Forward(load_base(spec, str(device), DTYPE), uses_graphs=False)
        plain = Forward(load_base(spec, str(device), DTYPE), uses_kernels=False)
        self.forwards = {
            "base": bare,
            **dict.fromkeys((*TIMED, "mix"), shared),
            "mix without kernels": plain,
            "base without graphs": launched,
            "mix without graphs": launched,
        }
        say(f"{self.base.name}: making adapters")
        loaded = {method: self._load(root, method, num_texts) for method in (*TIMED, BARE)}
        mix = [loaded[TIMED[number % len(TIMED)]][number] for number in range(num_texts)]
        self._adapters = {
            "base": loaded[BARE],
            **{method: loaded[method] for method in TIMED},
            "mix": mix,
            "mix without kernels": mix,
            "base without graphs": loaded[BARE],
            "mix without graphs": mix,
        }
        folders = [root / f"lora-{number}" for number in range(num_texts)]
        self._peft = peft_model(self.base.folder, folders).to(device, torch.bfloat16)

    def num_weights(self) -> int:
        """That a token is multiplied with."""
        return sum(site.weight.numel() for site in self.base.layers.values())

    def time(
        self, texts: Texts, pairs: Mapping[str, tuple[str, str]], rounds: int, is_over: IsOver
    ) -> dict[str, Any] | None:
        """Tokens, milliseconds and ratios of a batch; None where there was no time for a few rounds."""
        texts = known(texts, self.base.vocabulary_size)
        names = {name for pair in pairs.values() for name in pair}
        contenders = {name: run for name, run in self._contenders(texts).items() if name in names}
        seconds = interleave(contenders, self.base.device, rounds, is_over)
        if len(seconds["base"]) < min(rounds, FEWEST_ROUNDS) or not all(seconds.values()):
            return None
        return {
            "tokens": sum(map(len, texts)),
            "rounds": len(seconds["base"]),
            "ms": {name: round(statistics.median(some.values()) * 1e3, 3) for name, some in seconds.items()},
            "ratios": {name: _ratio(seconds[mine], seconds[theirs]) for name, (mine, theirs) in pairs.items()},
        }

    def _contenders(self, texts: Texts) -> dict[str, Contender]:
        ours = {name: _ours(forward, self._adapters[name], texts) for name, forward in self.forwards.items()}
        return ours | _of_peft(self._peft, texts, self.base.device)

    def _load(self, root: Path, method: str, count: int) -> list[LoadedAdapter]:
        names = dummy.make(root, method_named(method), count, str(self.base.folder))
        return [self.store.load(adapter_folder.read(root, name, self.base)) for name in names]


def interleave(
    contenders: Mapping[str, Contender], device: torch.device, rounds: int, is_over: IsOver
) -> dict[str, dict[int, float]]:
    """Seconds of every contender by round, the device waited for; what comes in the first rounds is left out.

    Contenders take turns in an order drawn anew. What is begun when the time is over is the last.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in contenders}
    for number in range(-WARM_UPS, rounds):
        turns = [name for name in contenders if name not in SLOW or number % SLOW_EVERY == 0 or number == -1]
        for name in random.Random(number).sample(turns, len(turns)):
            if is_over():
                return found
            wait_for(device)
            began = time.perf_counter()
            contenders[name]()
            wait_for(device)
            if number >= 0:
                found[name][number] = time.perf_counter() - began
    return found


def matrix_rate(device: torch.device) -> float:
    """Operations a second of one large product in bfloat16: the median of ten."""
    size = SIZE if device.type == "cuda" else 256
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = interleave({"product": lambda: left @ right}, device, 10, lambda: False)["product"]
    return 2 * size**3 / statistics.median(seconds.values())


def _ours(forward: Forward, adapters: Sequence[LoadedAdapter], texts: Texts) -> Contender:
    work = [(job(text), adapter) for text, adapter in zip(texts, adapters, strict=False)]
    return lambda: forward.run(work)


def _of_peft(model: PeftModel, texts: Texts, device: torch.device) -> dict[str, Contender]:
    """peft's own ways of serving many LoRA adapters."""
    batch = {name: part.to(device) for name, part in padded(texts).items()}
    singles = [torch.tensor([list(text)], device=device) for text in texts]
    names = [f"a{number}" for number in range(len(texts))]

    @torch.inference_mode()
    def together() -> object:
        return model(**batch, adapter_names=names).logits.cpu()

    @torch.inference_mode()
    def one_by_one() -> object:
        found = []
        for name, ids in zip(names, singles, strict=True):
            model.set_adapter(name)
            found.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
        return torch.cat(found).cpu()

    return {NAMES: together, ONE_BY_ONE: one_by_one}


def _ratio(mine: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, float]:
    """How many times as fast, round by round: the median, and the quartiles."""
    ratios = [theirs[number] / mine[number] for number in mine.keys() & theirs.keys()]
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"median": round(median, 3), "low": round(low, 3), "high": round(high, 3)}
