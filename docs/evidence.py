"""The rows of evidence that documents show, read once."""

from __future__ import annotations

from functools import cache

from decision import evidence
from decision.cost import Prices
from decision.rows import QualityRow, read_trained
from decision.tree import Tree
from training.grid_plan import GridPlan, read_plan
from training.standings import Cell, Standing
from training.summary import Summary, summarise
from training.verbs.example import ROOT

FOLDER = evidence.FOLDER
QUALITY, SWEEP, EXAMPLE = "quality.jsonl", "lora.jsonl", "example.jsonl"
PLAN, SWEEP_PLAN = ROOT / "plans" / "cpu.toml", ROOT / "plans" / "lora.toml"
SWEEP_REFERENCE = "qv-8"
"""LoRA as it usually comes: the others of the sweep are compared with it."""


@cache
def plan() -> GridPlan:
    return read_plan(PLAN)


@cache
def tree() -> Tree:
    """What `adaptermux-decide` answers by."""
    return Tree(evidence.Evidence.read(FOLDER), Prices.read())


def reference() -> str:
    """What candidates are compared with."""
    found = tree().evidence.about.reference
    assert found is not None, "decision/evidence/evidence.toml names none"
    return found


@cache
def summary() -> Summary:
    """Of the comparison, against the reference; drawn as often as for the tree, so both agree."""
    return summarise(read_trained(FOLDER / QUALITY), reference())


@cache
def cells() -> tuple[Cell, ...]:
    """Every task with every number of rows."""
    order = list(tree().evidence.task_types().values())
    return tuple(sorted(summary().cells, key=lambda cell: (order.index(cell.task), cell.train_rows)))


@cache
def runs() -> tuple[QualityRow, ...]:
    return tree().evidence.qualities


@cache
def sweep_cells() -> tuple[Cell, ...]:
    """Of LoRA's settings: each task, against `SWEEP_REFERENCE`."""
    return summarise(read_trained(FOLDER / SWEEP), SWEEP_REFERENCE).cells


@cache
def sweep_runs() -> tuple[QualityRow, ...]:
    return tuple(row for row in read_trained(FOLDER / SWEEP) if isinstance(row, QualityRow))


@cache
def example_rows() -> tuple[QualityRow, ...]:
    """Of `adaptermux-train example`; none if it has not run."""
    path = FOLDER / EXAMPLE
    if not path.exists():
        return ()
    return tuple(row for row in read_trained(path) if isinstance(row, QualityRow))


def standing(cell: Cell, candidate: str) -> Standing | None:
    return next((one for one in cell.standings if one.candidate == candidate), None)
