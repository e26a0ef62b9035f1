"""`adaptermux-train merge`: fold an adapter into its base model."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.errors import RecipeError
from training.verbs.evaluate import add_told_flags, columns_for, told
from training.verbs.run import add_column_flags

HELP = "fold an adapter into its base model"
DESCRIPTION = (
    "Write base and adapter as one plain transformers folder, where the method allows it; it is kept only if it "
    "answers as the adapter does."
)
EXAMPLE = "adaptermux-train merge adapters/device-reviews --output merged/device-reviews"

MAX_ROWS = 256


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What a merge can be told."""
    parser.add_argument("adapter", type=Path, help="folder of the adapter, ours or plain PEFT's")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    add_told_flags(parser)
    parser.add_argument(
        "--data", help="compare on the first 256 of these rows (as `evaluate` takes them), not on tokens at random"
    )
    add_column_flags(parser)
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference of logits, relative where they are beyond 1 (%(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output folder that exists")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(flags: argparse.Namespace) -> int:
    if not flags.tolerance > 0:
        raise RecipeError(f"--tolerance is {flags.tolerance:g}, it must be more than 0")
    from training import adapter_reader, merging, whole_folder
    from training.data import load_split
    from training.prediction import encode

    whole_folder.check_free(flags.output, flags.overwrite)
    adapter = adapter_reader.read(flags.adapter, told(flags))
    if flags.data is None:
        texts = merging.probes(adapter)
    else:
        _, rows = load_split(flags.data, None, adapter.manifest.problem_type, columns_for(adapter, flags))
        texts = encode(adapter, rows[:MAX_ROWS])
    parity = merging.merge(adapter, texts, flags.output, flags.tolerance, not flags.quiet)
    print(
        f"{flags.output}: {adapter.name} in {adapter.manifest.base_name}\n"
        f"  largest difference of logits     {parity.difference:.2g}  (of up to {parity.largest:.3g})"
    )
    if parity.num_same is not None:
        print(f"  same labels                      {parity.num_same} of {parity.num_texts} texts")
    for note in adapter.notes:
        print(f"note: {note}")
    return 0
