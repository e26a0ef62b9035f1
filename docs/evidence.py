"""The rows of evidence that documents show, read once."""

from __future__ import annotations

from functools import cache

from decision import evidence
from decision.cost import Prices
from decision.quality import RESAMPLES
from decision.rows import QualityRow, read_trained
from decision.tree import Tree
from training.grid_plan import GridPlan, read_plan
from training.summary import Cell, Standing, summarise
from training.verbs.example import ROOT

FOLDER = evidence.FOLDER
QUALITY, EXAMPLE = "quality.jsonl", "example.jsonl"
PLAN = ROOT / "plans" / "cpu.toml"


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
def cells() -> tuple[Cell, ...]:
    """Every task with every number of rows, against the reference; drawn as often as for the tree, so both agree."""
    found = summarise(read_trained(FOLDER / QUALITY), reference(), RESAMPLES).cells
    order = list(tree().evidence.task_types().values())
    return tuple(sorted(found, key=lambda cell: (order.index(cell.task), cell.train_rows)))


@cache
def runs() -> tuple[QualityRow, ...]:
    return tree().evidence.qualities


@cache
def example_rows() -> tuple[QualityRow, ...]:
    """Of `adaptermux-train example`; none if it has not run."""
    path = FOLDER / EXAMPLE
    if not path.exists():
        return ()
    return tuple(row for row in read_trained(path) if isinstance(row, QualityRow))


def standing(cell: Cell, candidate: str) -> Standing | None:
    return next((one for one in cell.standings if one.candidate == candidate), None)
