"""Whether the code for GPUs is right on this card, and how fast, in one command and less than ten minutes.

    python -m benchmarks.gpu_check --base FOLDER --output gpu-check.json

First the kernels against torch in float64, over widths, ranks and formats; then every method's logits in half precision
on the card, alone and in a mixed batch, against plain peft in float32 on the CPU; then recorded passes (CUDA graphs)
against launched ones, with adapters that take each other's places, and while others are loaded and evicted; then
throughput: batches of 64 texts, each with another adapter, and smaller ones, of contenders that take turns in an order
drawn anew. Each part has a share of the time. Ends with status 1 if anything fails, is further from the truth than it
may be, or had no time for what it has to try at least. Needs torch, transformers, peft and Triton, but neither pydantic
nor any part of the service. What reads or writes beside its memory may pass here; this finds it:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer python -m benchmarks.gpu_check --only kernels --output o.json
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers.utils import logging as transformers_logging

from benchmarks import goals
from benchmarks.gpu_check.kernels import attentions, check_attention, check_operations, operations
from benchmarks.gpu_check.logits import check_logits
from benchmarks.gpu_check.moves import check_expandable, check_moves
from benchmarks.gpu_check.recorded import check_graphs
from benchmarks.gpu_check.report import IsOver, Report, Shares
from benchmarks.gpu_check.speed import NUM_ROUNDS, NUM_TEXTS, measure, measure_shape
from benchmarks.material import find_base
from benchmarks.random_base import SHAPES
from server import base_model
from server.errors import BaseModelError

WEIGHTS = {
    "operations": 24,
    "attention": 8,
    "logits": 12,
    "graphs": 12,
    "moves": 6,
    "expandable": 6,
    "speed": 10,
    "speed of a shape": 24,
}
"""The parts, in order, and how the time is shared among them."""
GROUPS = {
    "kernels": ("operations", "attention"),
    "logits": ("logits",),
    "graphs": ("graphs", "moves", "expandable"),
    "moves": ("moves",),
    "speed": ("speed", "speed of a shape"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="cuda", help="(%(default)s)")
    parser.add_argument("--base", default=base_model.EMBEDDED_ID, help="folder or hub id (%(default)s)")
    parser.add_argument("--shape", default="llama-1b", choices=(*SHAPES, "none"), help="second base (%(default)s)")
    parser.add_argument("--only", choices=GROUPS, help="leave out the rest")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS, help="turns of every contender (%(default)s)")
    parser.add_argument("--texts", type=int, default=NUM_TEXTS, help="of a large batch (%(default)s)")
    parser.add_argument("--limit-s", type=float, default=540, help="begin nothing new after that (%(default)s)")
    parser.add_argument("--goals", action="store_true", help="end with status 1 if a goal is missed, too")
    flags = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        device = base_model.choose_device(flags.device)
        find_base(flags.base)
    except BaseModelError as error:
        parser.error(str(error))
    report = Report(flags.output)
    chosen = [part for part in WEIGHTS if flags.only is None or part in GROUPS[flags.only]]
    if device.type != "cuda" and "expandable" in chosen:
        chosen.remove("expandable")
    if flags.shape == "none" and "speed of a shape" in chosen:
        chosen.remove("speed of a shape")
    shares = Shares({part: WEIGHTS[part] for part in chosen}, flags.limit_s)
    with warnings.catch_warnings(), TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")
        root = Path(scratch)
        runs: dict[str, Callable[[Path, IsOver], None]] = {
            "operations": lambda _, is_over: check_operations(device, report, is_over, operations()),
            "attention": lambda _, is_over: check_attention(device, report, is_over, attentions()),
            "logits": lambda place, is_over: check_logits(flags.base, device, place, report, is_over),
            "graphs": lambda place, is_over: check_graphs(flags.base, device, place, report, is_over),
            "moves": lambda place, is_over: check_moves(flags.base, device, place, report, is_over),
            "expandable": lambda place, is_over: check_expandable(flags.base, device, place, report, is_over),
            "speed": lambda place, is_over: measure(
                flags.base, device, place, flags.rounds, report, is_over, flags.texts
            ),
            "speed of a shape": lambda place, is_over: measure_shape(
                flags.shape, device, place, flags.rounds, report, is_over, flags.texts
            ),
        }
        for part in chosen:
            is_over = shares.begin(part)
            report.attempt(part, partial(runs[part], root / part.replace(" ", "-"), is_over))
    report.goals = goals.of_speeds(report.speeds)
    goals.tell(report.goals)
    report.write()
    is_missed = flags.goals and not all(goal.is_met for goal in report.goals)
    return 1 if report.failures or is_missed else 0


if __name__ == "__main__":
    sys.exit(main())
