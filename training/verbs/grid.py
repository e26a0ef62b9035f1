"""`adaptermux-train grid`: run a comparison that a plan describes."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import RecipeError

if TYPE_CHECKING:
    from decision.rows import TrainedRow
    from training.grid import Outcome
    from training.grid_plan import Cell, GridPlan

HELP = "run a comparison: methods, tasks, sizes, seeds"
DESCRIPTION = """Run the cells of a plan that the results lack; each is kept as soon as it is finished, and running the
same command again goes on. For every candidate the same number of trials is measured on validation rows, on seeds of
their own; then the final seeds are run with what did best, and measured once on test."""
EXAMPLE = "adaptermux-train grid --plan training/plans/smoke.toml --results smoke.jsonl --data-root training/data"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What a comparison can be told."""
    parser.add_argument("--plan", required=True, type=Path, help="TOML file")
    parser.add_argument("--results", required=True, type=Path, help="JSON Lines file to which rows are added")
    parser.add_argument("--data-root", type=Path, help="folder that holds a folder for every task; without it: the hub")
    parser.add_argument("--workers", type=int, help="processes on this machine; default: one a core")
    parser.add_argument("--ray", metavar="ADDRESS", help="run on the Ray cluster at this address, or `auto`")
    parser.add_argument("--stop-after-s", type=float, help="begin no cell after that many seconds")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run and how long it would take")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(flags: argparse.Namespace) -> int:
    """Run what is missing; 1 where a cell failed."""
    if flags.workers is not None and flags.workers < 1:
        raise RecipeError(f"--workers is {flags.workers}, it must be at least 1")
    if flags.workers is not None and flags.ray is not None:
        raise RecipeError("--workers is for this machine, --ray for a cluster; give one of them")
    from decision.provenance import num_cores
    from training.estimate import Estimate
    from training.grid import expected, finished
    from training.grid_plan import read_plan

    plan, rows = read_plan(flags.plan), finished(flags.results)
    estimate, left = Estimate(), []
    for cell in expected(plan, flags.data_root, rows):
        if cell.key in rows:
            estimate.note(cell, rows[cell.key])
        else:
            left.append(cell)
    costs = {cell.key: estimate.cpu_s(cell) for cell in left}
    width = flags.workers or num_cores()
    if flags.dry_run:
        print(_forecast(left, costs, width, flags.json))
        return 0
    try:
        outcome = _run_all(flags, plan, width, costs)
    except KeyboardInterrupt:
        print(
            f"adaptermux-train: stopped; {flags.results} holds what is finished, and the same command goes on",
            file=sys.stderr,
        )
        return 130
    print(json.dumps(_record(outcome), indent=2) if flags.json else _report(outcome, flags.results))
    return 1 if outcome.failures else 0


def _run_all(flags: argparse.Namespace, plan: GridPlan, width: int, costs: Mapping[str, float]) -> Outcome:
    from tqdm import tqdm

    from training.grid import run_grid
    from training.workers import Processes, Ray

    workers = Ray(flags.ray) if flags.ray else Processes(width)
    words = ["adaptermux-train", "grid", "--plan", str(flags.plan), "--results", str(flags.results)]
    if flags.data_root:
        words += ["--data-root", str(flags.data_root)]
    layout = "{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left {postfix}"
    with tqdm(total=sum(costs.values()), bar_format=layout, smoothing=0, disable=flags.quiet) as bar:
        num_done = 0

        def show(cell: Cell, row: TrainedRow) -> None:
            nonlocal num_done
            num_done += 1
            bar.set_description_str(f"{num_done} of {len(costs)} cells")
            bar.set_postfix_str(f"{cell.task} {cell.train_rows} {cell.candidate} {row.validation_accuracy:.3f}")
            # which settings a final run has is not known beforehand: it costs what any of them costs
            bar.update(costs.get(cell.key) or sum(costs.values()) / len(costs))

        return run_grid(plan, flags.data_root, flags.results, workers, shlex.join(words), flags.stop_after_s, show)


def _forecast(cells: Sequence[Cell], costs: Mapping[str, float], width: int, as_json: bool) -> str:
    """How many cells are left, and their CPU hours, by task and size."""
    parts: dict[tuple[str, int], list[float]] = {}
    for cell in cells:
        parts.setdefault((cell.task, cell.train_rows), []).append(costs[cell.key])
    total = sum(costs.values())
    if as_json:
        listed = [
            {"task": task, "train_rows": rows, "num_cells": len(part), "cpu_s": round(sum(part))}
            for (task, rows), part in parts.items()
        ]
        return json.dumps({"num_cells": len(cells), "cpu_s": round(total), "workers": width, "parts": listed}, indent=2)
    lines = [f"{'task':<20}{'rows':>7}{'cells':>8}{'CPU hours':>12}"]
    lines += [f"{task:<20}{rows:>7,}{len(part):>8,}{sum(part) / 3600:>12.2f}" for (task, rows), part in parts.items()]
    lines.append(f"{'all':<27}{len(cells):>8,}{total / 3600:>12.2f}")
    lines.append(f"about {total / 3600 / width:.1f} hours with {width} workers")
    return "\n".join(lines)


def _record(outcome: Outcome) -> dict[str, object]:
    return {
        "num_found": outcome.num_found,
        "num_run": outcome.num_run,
        "num_left": outcome.num_left,
        "diverged": [_place(cell) for cell in outcome.diverged],
        "failures": [{**_place(cell), "reason": reason} for cell, reason in outcome.failures],
    }


def _report(outcome: Outcome, results: Path) -> str:
    lines = [f"{results}: {outcome.num_run:,} cells run, {outcome.num_found:,} were there"]
    if outcome.num_left:
        lines.append("the time was up; run the same command again for the rest")
    lines += [f"diverged, counts as the commonest label: {_named(cell)}" for cell in outcome.diverged]
    lines += [f"failed: {_named(cell)}: {reason}" for cell, reason in outcome.failures]
    return "\n".join(lines)


def _named(cell: Cell) -> str:
    return ", ".join(f"{name} {value}" for name, value in _place(cell).items())


def _place(cell: Cell) -> dict[str, object]:
    return {"task": cell.task, "train_rows": cell.train_rows, "candidate": cell.candidate, "seed": cell.seed}
