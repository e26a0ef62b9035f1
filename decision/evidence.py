"""A folder of measurements, and what its rows stand for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from decision.base_shape import bases
from decision.errors import FactsError
from decision.facts import Facts, read_table
from decision.rows import LatencyRow, MemoryRow, QualityRow, Row, TrainedRow, TrialRow, read

FOLDER = Path(__file__).parent / "evidence"
ABOUT = "evidence.toml"
Kept = TypeVar("Kept", QualityRow, TrialRow, LatencyRow, MemoryRow)


class About(Facts):
    """The folder's `evidence.toml`."""

    base: str = "minilm"
    """Of all quality rows, by its name in decision/bases.toml."""
    quality_command: str = "adaptermux-train grid --plan PLAN.toml --results quality.jsonl"
    """What measures more of them."""
    reference: str | None = None
    """The candidate that the others are judged against, named before anything is measured; the best of each task and
    size if not given."""
    shown_plans: tuple[str, ...] = ()
    """Plans whose training runs documents show and nothing is decided by, such as those of settings never tuned."""
    task_types: dict[str, str] = Field(default_factory=dict)
    """Kind of task -> the task that stands for it."""


@dataclass(frozen=True)
class Evidence:
    """Rows by their kind, each measurement once."""

    about: About
    qualities: tuple[QualityRow, ...]
    latencies: tuple[LatencyRow, ...]
    memories: tuple[MemoryRow, ...]

    @staticmethod
    def read(folder: Path = FOLDER) -> Evidence:
        """Every `*.jsonl` of a folder, all kinds mixed. Raises RowsError, FactsError."""
        if not folder.is_dir():
            raise FactsError(f"the evidence `{folder}` is no folder; name one with files of rows (*.jsonl)")
        about = folder / ABOUT
        found = read_table(about, About) if about.exists() else About()
        if found.base not in bases():
            raise FactsError(f"`{about}`: `base` is `{found.base}`, it must be one of {', '.join(bases())}")
        return Evidence.of((row for path in sorted(folder.glob("*.jsonl")) for row in read(path)), found)

    @staticmethod
    def of(rows: Iterable[Row], about: About | None = None) -> Evidence:
        """Of a measurement that was repeated the latest counts."""
        about = about or About()
        kept = [row for row in rows if not (isinstance(row, TrainedRow) and row.plan in about.shown_plans)]
        return Evidence(
            about,
            _latest(
                (row for row in kept if isinstance(row, QualityRow)),
                lambda row: (row.task, row.train_rows, row.candidate, row.seed),
            ),
            _latest(
                (row for row in kept if isinstance(row, LatencyRow)),
                lambda row: (
                    *_served(row),
                    row.part,
                    row.num_users or -1,
                    row.rate_per_s or -1,
                    row.limit_p95_ms or -1,
                ),
            ),
            _latest(
                (row for row in kept if isinstance(row, MemoryRow)),
                lambda row: (*_served(row), row.moment, row.provenance.created),
            ),
        )

    def task_types(self) -> dict[str, str]:
        """Kind of task -> task; tasks that nobody said a kind of are one by themselves."""
        named = self.about.task_types
        others = sorted({row.task for row in self.qualities} - set(named.values()))
        return {**named, **{task: task for task in others}}


def _served(row: LatencyRow | MemoryRow) -> tuple[str | int, ...]:
    machine, adapters = row.provenance.machine, row.adapters
    return (machine, row.target, row.base, row.scenario, row.case, row.dtype, row.device, row.repeat, *adapters)


def _latest(rows: Iterable[Kept], key: Callable[[Kept], Hashable]) -> tuple[Kept, ...]:
    """Of rows with one key the one that was made last, in an order that does not depend on theirs."""
    found: dict[Hashable, Kept] = {}
    for row in rows:
        name = key(row)
        if name not in found or _age(found[name]) <= _age(row):
            found[name] = row
    return tuple(found[name] for name in sorted(found, key=str))


def _age(row: Kept) -> tuple[str, str]:
    return row.provenance.created, row.model_dump_json()
