"""`adaptermux-train example`: the worked example, on our data or yours."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import RecipeError
from training.verbs.run import add_column_flags, add_memory_flags, columns_of, memory_settings

if TYPE_CHECKING:
    from training.grid_plan import GridPlan

HELP = "the worked example: train methods, compare them, leave adapters to serve"
DESCRIPTION = """Train every method of a plan with several seeds on one data set, each run in a process of its own, and
compare them: accuracy with intervals, adapter size, time and memory. The adapters of the first seed can be served at
once. Running the same command again goes on after an interruption."""
EXAMPLE = "adaptermux-train example --output worked-example --seeds 2 --train-rows 300"

ROOT = Path(__file__).parent.parent
DATA, PLAN = ROOT / "data" / "device_reviews", ROOT / "plans" / "example.toml"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What the example can be told."""
    parser.add_argument("--output", required=True, type=Path, help="folder for adapters, rows and the comparison")
    parser.add_argument(
        "--data", default=str(DATA), help="folder with train.csv, a .csv or .jsonl file, or hub:name (%(default)s)"
    )
    parser.add_argument("--plan", type=Path, default=PLAN, help="TOML file with candidates and recipe (%(default)s)")
    parser.add_argument("--methods", help="instead of the plan's, such as ia3,prefix,full")
    parser.add_argument("--base", help="folder or hub id, such as meta-llama/Llama-3.2-1B (the plan's)")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many, from 0 on (the plan's)")
    parser.add_argument("--train-rows", type=int, help="at most that many training rows (the plan's)")
    add_memory_flags(parser)
    add_column_flags(parser)
    parser.add_argument("--overwrite", action="store_true", help="begin anew in an output folder that exists")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(flags: argparse.Namespace) -> int:
    """Train, compare, and say how to serve what came of it."""
    for flag, value in (("--seeds", flags.seeds), ("--train-rows", flags.train_rows)):
        if value is not None and value < 1:
            raise RecipeError(f"{flag} is {value}, it must be at least 1")
    from tqdm import tqdm

    from training.example import TABLE, Example, run_example
    from training.example_table import markdown, next_commands, record
    from training.grid_plan import Cell

    plan = _plan(flags)
    asked = Example(plan, flags.data, flags.output, columns_of(flags), flags.overwrite)
    num_runs = len(plan.candidates) * len(plan.final_seeds)
    with tqdm(total=num_runs, unit="run", disable=flags.quiet) as bar:

        def show(cell: Cell) -> None:
            bar.set_description_str(f"{cell.candidate}, seed {cell.seed}")
            bar.update()

        try:
            comparison = run_example(asked, _command(flags), show)
        except KeyboardInterrupt:
            print("adaptermux-train: stopped; the same command goes on", file=sys.stderr)
            return 130
    table = markdown(comparison, plan.base)
    (flags.output / TABLE).write_text(table, encoding="utf-8")
    if flags.json:
        print(json.dumps(record(comparison, flags.output), indent=2))
        return 0
    print(table.partition("## Serve them")[0].rstrip())
    print("\nServe the adapters, and ask the first:\n")
    print("\n".join(f"  {line}" for line in next_commands(comparison, plan.base)))
    return 0


def _plan(flags: argparse.Namespace) -> GridPlan:
    from training.example import with_methods
    from training.grid_plan import read_plan

    plan = read_plan(flags.plan)
    if flags.methods:
        plan = with_methods(plan, flags.methods.split(","))
    changes: dict[str, object] = {"recipe": plan.recipe.model_copy(update=memory_settings(flags))}
    if flags.base is not None:
        changes["base"] = flags.base
    if flags.seeds is not None:
        changes["final_seeds"] = list(range(flags.seeds))
    changes["train_rows"] = [flags.train_rows or plan.train_rows[0]]
    return plan.model_copy(update=changes)


def _command(flags: argparse.Namespace) -> str:
    """What the user would type to measure it again."""
    words = ["adaptermux-train", "example", "--output", str(flags.output)]
    for name in (
        "data", "plan", "methods", "base", "seeds", "train_rows", "quantize", "text_column", "pair_column",
        "label_column",
    ):  # fmt: skip
        value = getattr(flags, name)
        if value is not None and str(value) not in (str(DATA), str(PLAN)):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--gradient-checkpointing"] if flags.gradient_checkpointing else words)
