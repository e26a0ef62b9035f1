"""What rank, alpha and the layers of LoRA buy: tables from the rows of the sweep (training/plans/lora.toml)."""

from __future__ import annotations

from decision.measured_cell import measure
from docs import evidence
from docs.experiment import POINT, marked
from docs.tables import NOTHING, percent, plain_table
from training.grid_plan import read_plan
from training.standings import Standing

CHANGES = (
    ("rank 1 for 8, on query and value", "qv-1", "qv-8"),
    ("rank 2 for 8, on query and value", "qv-2", "qv-8"),
    ("rank 36 for 8, on query and value", "qv-36", "qv-8"),
    ("alpha 8 for 16, rank 8 on query and value", "qv-8-alpha-8", "qv-8"),
    ("all linear layers with rank 1, for query and value with rank 8", "all-1", "qv-8"),
    ("the same about 80,000 parameters on all linear layers", "all-2", "qv-8"),
    ("the same 331,776 parameters on all linear layers", "all-8", "qv-36"),
    ("rank 8 for 1, on all linear layers", "all-8", "all-1"),
)
"""What is changed, and the two candidates that differ by it."""


def settings_table() -> str:
    """Every setting of the sweep with its accuracy on each task."""
    cells = evidence.sweep_cells()
    rows = []
    for candidate in read_plan(evidence.SWEEP_PLAN).candidates:
        found = [evidence.standing(cell, candidate.name) for cell in cells]
        sizes = {one.num_adapter_parameters for one in found if one is not None}
        rows.append(
            (
                f"`{candidate.name}`",
                "all linear" if candidate.options.get("all_linears") else "query, value",
                f"{candidate.options['rank']:g}",
                f"{candidate.options['alpha']:g}",
                ", ".join(f"{size:,}" for size in sizes) or NOTHING,
                *(text for one in found for text in _result(one)),
            )
        )
    head = (
        *("candidate", "layers", "rank", "alpha", "parameters"),
        *(text for cell in cells for text in (f"{cell.task}, %", "rate")),
    )
    return plain_table(head, rows, "ll" + "r" * (len(head) - 2))


def changes_table() -> str:
    """What each change brings, paired by seed and text."""
    cells = evidence.sweep_cells()
    measured = [measure([run for run in evidence.sweep_runs() if run.task == cell.task]) for cell in cells]
    rows = []
    for title, new, old in CHANGES:
        found = [one.difference(new, old) for one in measured]
        rows.append((title, f"`{new}` less `{old}`", *(NOTHING if one is None else marked(one) for one in found)))
    note = (
        f"Points of accuracy, paired by seed and text, with 95 % intervals over both. **Bold**: not worse by more than "
        f"{POINT}; *italic*: worse; else undecided."
    )
    head = ("instead", "difference", *(cell.task for cell in cells))
    return f"{plain_table(head, rows, 'll' + 'r' * len(cells))}\n{note}\n"


def _result(one: Standing | None) -> tuple[str, str]:
    """Accuracy, and the rate that was chosen."""
    if one is None:
        return NOTHING, NOTHING
    rates = ", ".join(f"{value:g}" for value in one.tuned)
    return percent(one.accuracy), rates + (" (end)" if one.is_at_end else "")


def basis_part() -> str:
    """What was run."""
    runs = evidence.sweep_runs()
    sizes = sorted({run.train_rows for run in runs})
    seeds = sorted({run.seed for run in runs})
    tests = ", ".join(f"{run.task} {run.predictions.num_rows:,}" for run in {one.task: one for one in runs}.values())
    return (
        f"{len(runs)} final runs with {', '.join(f'{size:,}' for size in sizes)} training rows, seeds "
        f"{', '.join(map(str, seeds))}, test texts: {tests}.\n"
    )
