"""Whether the code for GPUs is right on this card, and how fast, in one command and less than ten minutes.

    python -m benchmarks.gpu_check --output gpu-check.json

First the kernels against torch in float64, over widths, ranks and formats; then every method's logits in half precision
on the card, alone and in a mixed batch, against plain peft in float32 on the CPU; then recorded passes (CUDA graphs)
against launched ones, with adapters that take each other's places; then throughput: batches of 64 texts, each with
another adapter, and smaller ones, of contenders that take turns in an order drawn anew. Ends with status 1 if anything
fails or is further from the truth than it may be. Needs torch, transformers, peft and Triton, but neither pydantic nor
any part of the service. What reads or writes beside its memory may pass here; this finds it:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer python -m benchmarks.gpu_check --only kernels --output o.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from benchmarks.material import even_texts, job, padded, skewed_texts
from benchmarks.passes import wait_for
from benchmarks.random_base import SHAPES, write_base
from decision.provenance import facts
from server import adapter_folder, base_model, device_code
from server.attention import Heads
from server.device_code import TOLERANCE
from server.device_trial import Drawn, attention_error, operation_error
from server.forward import Forward, load_base
from server.grouped import MAX_RANK
from server.loaded_adapter import LoadedAdapter
from server.methods import method_named
from server.products import ACTIVATIONS
from server.store import Store
from server.varlen_attention import HALF, VarlenAttention
from training import dummy
from training.model import PooledClassifier

PARTS = ("kernels", "logits", "graphs", "speed")
METHODS, BARE = ("lora", "ia3", "prefix", "bottleneck"), "head"
WIDTHS = ((384, 384), (384, 1536), (1536, 384), (2048, 2048), (2048, 512), (8192, 2048), (72, 1000))
ALL_HEADS = (Heads(12, 12, 32), Heads(12, 12, 64), Heads(32, 8, 64), Heads(16, 2, 128), Heads(4, 4, 256))
LOGIT_TOLERANCE = {torch.bfloat16: 0.05, torch.float32: 1e-3}
"""Of the largest logit of the batch."""
BATCH, NUM_ROUNDS, WARM_UPS = 64, 20, 3
SMALL_BATCHES = (1, 4, 16)
LAUNCHED_PAIRS = {
    "base_vs_launched_base": ("base", "base without graphs"),
    "mix_vs_launched_mix": ("mix", "mix without graphs"),
}
PAIRS = {
    **{f"{method}_vs_base": (method, "base") for method in METHODS},
    "mix_vs_base": ("mix", "base"),
    "mix_vs_plain_mix": ("mix", "mix without kernels"),
    **LAUNCHED_PAIRS,
    "lora_vs_peft_adapter_names": ("lora", "peft adapter_names"),
    "lora_vs_peft_set_adapter": ("lora", "peft set_adapter a text"),
}
"""What is compared with what: how many times as fast the first is."""
SIZE = 8192
Texts = Sequence[Sequence[int]]
Contender = Callable[[], object]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="cuda", help="(%(default)s)")
    parser.add_argument("--base", default=base_model.EMBEDDED_ID, help="folder or hub id (%(default)s)")
    parser.add_argument("--shape", default="llama-1b", choices=(*SHAPES, "none"), help="second base (%(default)s)")
    parser.add_argument("--only", choices=PARTS, help="leave out the rest")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS, help="turns of every contender (%(default)s)")
    parser.add_argument("--limit-s", type=float, default=540, help="begin nothing new after that (%(default)s)")
    flags = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = base_model.choose_device(flags.device)
    report = Report(flags.output, time.monotonic() + flags.limit_s)
    parts = (flags.only,) if flags.only else PARTS
    with warnings.catch_warnings(), TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")
        root = Path(scratch)
        if "kernels" in parts:
            report.attempt("operations", lambda: check_operations(device, report))
            report.attempt("attention", lambda: check_attention(device, report))
        if "logits" in parts:
            report.attempt("logits", lambda: check_logits(flags.base, device, root / "checked", report))
        if "graphs" in parts:
            report.attempt("graphs", lambda: check_graphs(flags.base, device, root / "recorded", report))
        if "speed" in parts:
            report.attempt("speed", lambda: measure(flags.base, device, root / "timed", flags.rounds, report))
            if flags.shape != "none" and not report.is_over():
                report.attempt("speed", lambda: measure_shape(flags.shape, device, root, flags.rounds, report))
    report.write()
    return 1 if report.failures else 0


@dataclass
class Report:
    """What was found. errors: the worst of each kind, each a part of the largest number in its result."""

    output: Path
    end: float
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    speeds: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def is_over(self) -> bool:
        return time.monotonic() > self.end

    def attempt(self, name: str, run: Callable[[], None]) -> None:
        """What raises is a failure, and the rest goes on."""
        try:
            run()
        except Exception as error:  # whatever it is, it is to be told, and what follows tried
            traceback.print_exc()
            self.failures.append(f"{name}: {type(error).__name__}: {error}"[:500])
        self.write()

    def note(self, kind: str, case: str, error: float, limit: float) -> None:
        """Keep the worst error of a kind. A number that is none is a failure as well."""
        if not error <= limit:
            self.failures.append(f"{kind}: {case}: {error:.3g}, at most {limit:.3g} is right")
            _say(self.failures[-1])
        worst = self.errors.setdefault(kind, {"worst": 0.0, "limit": limit, "cases": 0})
        worst["worst"], worst["cases"] = max(worst["worst"], error), worst["cases"] + 1

    def write(self) -> None:
        record = {
            "schema": 1,
            **facts("python -m benchmarks.gpu_check"),
            "card": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "failures": self.failures,
            "errors": self.errors,
            "speeds": self.speeds,
        }
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")


def check_operations(device: torch.device, report: Report) -> None:
    """Every width, format and number of rows a program has, with low and high ranks side by side."""
    from server import triton_kernels

    ranks = (1, 8, 16, 24, 64, 100, MAX_RANK)
    for dtype, (d_in, d_out), num_rows in product((torch.bfloat16, torch.float16, torch.float32), WIDTHS, (5, 90)):
        if report.is_over():
            return
        for weights in {torch.float32, dtype}:
            drawn = [Drawn("low_rank", num_rows + rank % 7, rank, None, False, weights) for rank in ranks]
            drawn += [
                Drawn("low_rank_of_output", num_rows, rank, activation, True, weights)
                for rank, activation in zip(ranks, (*ACTIVATIONS, *ACTIVATIONS), strict=False)
            ]
            drawn += [Drawn(kind, num_rows, dtype=weights) for kind in ("scale", "scale_input", "shift")]
            case = f"{dtype} with weights in {weights}, {d_in} to {d_out}, {num_rows} rows"
            error = operation_error(triton_kernels, device, dtype, d_in, d_out, drawn)
            report.note(f"operations, {_short(dtype)}", case, error, TOLERANCE[dtype])
    _say(f"operations: {report.errors}")


def check_attention(device: torch.device, report: Report) -> None:
    """Every kind of heads and mask, with and without prefixes, with one text and with many."""
    from server import triton_kernels

    varlen = VarlenAttention(device_code.flash(), triton_kernels.put_in_front).attend
    batches = [[(128, 0)], [(1, 0), (1, 1), (1, 200)], [(length, length % 3 * 10) for length in range(1, 300, 7)]]
    masks = ((False, None, False), (True, None, False), (False, 64, False), (False, None, True))
    for dtype, heads, texts, mask in product(HALF, ALL_HEADS, batches, masks):
        if report.is_over():
            return
        case = f"{dtype}, {heads}, causal, window, reads only: {mask}, {len(texts)} texts"
        for prefix_dtype in (torch.float32, torch.bfloat16, torch.float16):
            error = attention_error(varlen, device, dtype, heads, *mask, texts, prefix_dtype)
            report.note(f"attention, {_short(dtype)}", f"{case}, prefix {prefix_dtype}", error, TOLERANCE[dtype])


def check_logits(spec: str, device: torch.device, root: Path, report: Report) -> None:
    """Every method on the card, alone and in a mixed batch, against plain peft on the CPU."""
    methods = (*METHODS, "bitfit", BARE)
    folder = base_model.locate(spec)
    names = {method: list(dummy.make(root, method_named(method), 3, str(folder))) for method in methods}
    texts = _known(skewed_texts(8), int(AutoConfig.from_pretrained(folder).vocab_size))
    expected = {name: _peft_logits(folder, root / name, texts) for some in names.values() for name in some}
    for dtype, limit in LOGIT_TOLERANCE.items():
        base = load_base(spec, str(device), _short(dtype))
        forward, store = Forward(base), Store(base)
        loaded = {name: store.load(adapter_folder.read(root, name, base)) for name in expected}
        alone = {name: [(job(text), adapter) for text in texts] for name, adapter in loaded.items()}
        for method, some in names.items():
            for name in some:
                found = torch.stack([row.float().cpu() for row in forward.run(alone[name])])
                report.note(f"logits of {method}, {_short(dtype)}", name, _part_of(found, expected[name]), limit)
        mixed = [(name, number) for number in range(len(texts)) for name in loaded]
        answers = forward.run([alone[name][number] for name, number in mixed])
        for (name, number), answer in zip(mixed, answers, strict=True):
            error = _part_of(answer.float().cpu(), expected[name][number], expected[name])
            report.note(f"logits in a mixed batch, {_short(dtype)}", f"{name}, text {number}", error, limit)
        store.close()


def check_graphs(spec: str, device: torch.device, root: Path, report: Report) -> None:
    """Recorded passes against launched ones, in batches of all methods; other adapters need no other recording."""
    dtype = torch.bfloat16
    base = load_base(spec, str(device), _short(dtype))
    forward, launched = Forward(base), Forward(load_base(spec, str(device), _short(dtype)), uses_graphs=False)
    if forward.graphs is None:
        raise RuntimeError(f"passes cannot be recorded on {device}; the log says why (kernels_absent)")
    store = Store(base)
    loaded: list[list[LoadedAdapter]] = [[], []]
    for method in (*METHODS, "bitfit", BARE):
        for some, name in zip(loaded, dummy.make(root, method_named(method), 2, str(base.folder)), strict=True):
            some.append(store.load(adapter_folder.read(root, name, base)))
    for turn, adapters in enumerate((*loaded, *reversed(loaded))):
        for num_texts in (*SMALL_BATCHES, BATCH):
            texts = _known(skewed_texts(num_texts), base.vocabulary_size)
            # all methods at once from the first batch of a size on: they are what it is recorded with
            work = [(job(text), adapters[number % len(adapters)]) for number, text in enumerate(texts)]
            work += [(job((1, 2, 3)), adapter) for adapter in adapters]
            found, expected = (torch.cat([row.float() for row in run(work)]) for run in (forward.run, launched.run))
            error, limit = _part_of(found, expected), LOGIT_TOLERANCE[dtype]
            report.note("logits of recorded passes", f"turn {turn}, {num_texts} texts", error, limit)
        if turn == 0:
            num_recorded = forward.graphs.num_recorded
    if not forward.graphs.token_counts:
        raise RuntimeError("recorded passes were given up; the log says why (kernels_absent)")
    if forward.graphs.num_recorded != num_recorded:
        raise RuntimeError(f"{forward.graphs.num_recorded - num_recorded} passes were recorded for other adapters")
    _say(f"graphs: {num_recorded} recorded, {forward.graphs.held_bytes():,} bytes")
    store.close()


def measure_shape(shape: str, device: torch.device, root: Path, rounds: int, report: Report) -> None:
    """The same as `measure`, with a base of random weights."""
    measure(str(write_base(root / f"random-{shape}", SHAPES[shape], device)), device, root / shape, rounds, report)


def measure(spec: str, device: torch.device, root: Path, rounds: int, report: Report) -> None:
    """Texts per second of all contenders, their ratios, and how much of the card's own rate the base reaches."""
    dtype = "bfloat16"
    base = load_base(spec, str(device), dtype)
    plain = Forward(load_base(spec, str(device), dtype), uses_kernels=False)
    launched = Forward(load_base(spec, str(device), dtype), uses_graphs=False)
    forward, store = Forward(base), Store(base)
    _say(f"{base.name}: making adapters")
    loaded: dict[str, list[LoadedAdapter]] = {}
    for method in (*METHODS, BARE):
        names = list(dummy.make(root, method_named(method), BATCH, str(base.folder)))
        loaded[method] = [store.load(adapter_folder.read(root, name, base)) for name in names]
    mix = [loaded[METHODS[number % len(METHODS)]][number] for number in range(BATCH)]
    peer = _peft(base.folder, [root / f"lora-{number}" for number in range(BATCH)]).to(device, torch.bfloat16)
    for kind, texts in (("skewed", skewed_texts(BATCH)), ("128 tokens each", even_texts(BATCH, 128))):
        texts = _known(texts, base.vocabulary_size)
        contenders = {
            "base": _ours(forward, loaded[BARE], texts),
            **{method: _ours(forward, loaded[method], texts) for method in METHODS},
            "mix": _ours(forward, mix, texts),
            "mix without kernels": _ours(plain, mix, texts),
            "base without graphs": _ours(launched, loaded[BARE], texts),
            "mix without graphs": _ours(launched, mix, texts),
            **_of_peft(peer, texts, device),
        }
        seconds = interleave(contenders, device, rounds, report.is_over)
        if not all(seconds.values()):
            report.failures.append(f"{base.name}, {kind}: there was no time for one round")
            return
        medians = {name: statistics.median(some) for name, some in seconds.items()}
        num_tokens = sum(map(len, texts))
        rate = 2 * num_tokens * sum(site.weight.numel() for site in base.layers.values()) / medians["base"]
        report.speeds[f"{base.name}, {kind}"] = {
            "tokens": num_tokens,
            "ms": {name: round(median * 1e3, 3) for name, median in medians.items()},
            "ratios": {name: _speed(seconds[mine], seconds[theirs]) for name, (mine, theirs) in PAIRS.items()},
            "base_vs_matrix_rate": round(rate / matrix_rate(device), 4),
        }
        _say(json.dumps(report.speeds, indent=1))
    for num_texts in filter(BATCH.__gt__, SMALL_BATCHES):
        texts = _known(skewed_texts(num_texts), base.vocabulary_size)
        contenders = {
            "base": _ours(forward, loaded[BARE][:num_texts], texts),
            "base without graphs": _ours(launched, loaded[BARE][:num_texts], texts),
            "mix": _ours(forward, mix[:num_texts], texts),
            "mix without graphs": _ours(launched, mix[:num_texts], texts),
        }
        seconds = interleave(contenders, device, rounds, report.is_over)
        if all(seconds.values()):
            report.speeds[f"{base.name}, {num_texts} texts"] = {
                "tokens": sum(map(len, texts)),
                "ms": {name: round(statistics.median(some) * 1e3, 3) for name, some in seconds.items()},
                "ratios": {
                    name: _speed(seconds[mine], seconds[theirs]) for name, (mine, theirs) in LAUNCHED_PAIRS.items()
                },
            }
    store.close()


def interleave(
    contenders: Mapping[str, Contender], device: torch.device, rounds: int, is_over: Callable[[], bool]
) -> dict[str, list[float]]:
    """Seconds of every contender in every round, the device waited for; what comes in the first rounds is left out."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-WARM_UPS, rounds):
        for name in random.Random(number).sample(list(contenders), len(contenders)):
            if is_over():
                return found
            wait_for(device)
            began = time.perf_counter()
            contenders[name]()
            wait_for(device)
            if number >= 0:
                found[name].append(time.perf_counter() - began)
    return found


def matrix_rate(device: torch.device) -> float:
    """Operations a second of one large product in bfloat16: the median of ten."""
    size = SIZE if device.type == "cuda" else 256
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = interleave({"product": lambda: left @ right}, device, 10, lambda: False)["product"]
    return 2 * size**3 / statistics.median(seconds)


def _ours(forward: Forward, adapters: Sequence[LoadedAdapter], texts: Texts) -> Contender:
    work = [(job(text), adapter) for text, adapter in zip(texts, adapters, strict=True)]
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

    return {"peft adapter_names": together, "peft set_adapter a text": one_by_one}


def _peft(base: Path, folders: Sequence[Path]) -> PeftModel:
    adapter = json.loads((folders[0] / "adapter.json").read_text(encoding="utf-8"))
    bare = PooledClassifier.load(str(base), len(adapter["labels"]), adapter["pooling"])
    model = PeftModel.from_pretrained(bare, folders[0], adapter_name="a0")
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=f"a{number}")
    return model.eval()


@torch.inference_mode()
def _peft_logits(base: Path, folder: Path, texts: Texts) -> Tensor:
    """What plain peft answers on the CPU, [texts, labels]."""
    model = _peft(base, [folder]).float()
    inputs = [torch.tensor([list(text)]) for text in texts]
    return torch.cat([model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for ids in inputs])


def _known(texts: Texts, vocabulary_size: int) -> list[list[int]]:
    """The texts as ids that a base knows."""
    return [[token % vocabulary_size for token in text] for text in texts]


def _speed(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times as fast, round by round: the median, and the quartiles."""
    ratios = [other / one for one, other in zip(mine, theirs, strict=False)]
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"median": round(median, 3), "low": round(low, 3), "high": round(high, 3)}


def _part_of(found: Tensor, expected: Tensor, all_expected: Tensor | None = None) -> float:
    scale = (expected if all_expected is None else all_expected).abs().max()
    return float((found - expected).abs().max() / scale)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
