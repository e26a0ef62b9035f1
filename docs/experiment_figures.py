"""Figures of the worked example and of the tree, drawn from the rows of evidence: the same bytes each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from decision.comparison import MARGIN
from decision.listing import picture
from decision.rows import BASELINES, MAJORITY
from docs import evidence
from docs.experiment import headlines
from training import figures
from training.figures import BASELINE_STYLES, looks_of, svg
from training.standings import Cell, Standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

WIDTH_IN = 6.9
TREE_IN = 6.9, 6.9
SIZE_COLOURS = ("#56B4E9", "#0072B2", "#1c2b39", "#7A5195", "#D55E00")
"""Of numbers of rows, the fewest first."""
SIGHT = 8.0
"""Points either side of the reference that are shown; what lies beyond is at the edge."""
FLOOR_BELOW = 0.02
"""A baseline that lies further below the adapters is left to the table."""
STYLE: dict[RcKeyType, Any] = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#808080",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "adaptermux",
}


def tree_figure() -> bytes:
    return picture(evidence.tree(), *TREE_IN)


def sizes_figure() -> bytes:
    """A panel a task and number of rows: accuracy over the bytes of an adapter, as `adaptermux-train report` has it."""
    with rc_context(figures.STYLE):
        return svg(figures.accuracy_by_bytes(evidence.cells()))


def sweep_figure() -> bytes:
    """The same of LoRA's settings."""
    with rc_context(figures.STYLE):
        return svg(figures.accuracy_by_bytes(evidence.sweep_cells()))


def accuracy_figure() -> bytes:
    """A panel a task: accuracy over the number of rows."""
    cells = evidence.cells()
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    floors = set(BASELINES) - {MAJORITY}
    shown = [one.name for one in evidence.plan().candidates if one.name in headlines() or one.method in floors]
    looks = looks_of(cells)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 2.5), layout="constrained")
        for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            own = [cell for cell in cells if cell.task == task]
            floor = min(one.accuracy.low for cell in own for one in cell.standings if one.candidate in headlines())
            for index, name in enumerate(shown):
                found = [(cell, one) for cell in own if (one := evidence.standing(cell, name)) is not None]
                if found:
                    _line(axes, found, looks[name].colour, looks[name].marker, 1 + 0.035 * (index - len(shown) / 2))
            sizes = [cell.train_rows for cell in own]
            axes.set_xscale("log")
            axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
            axes.minorticks_off()
            axes.set_ylim(bottom=100 * (floor - 4 * FLOOR_BELOW))
            axes.set_title(task)
            axes.set_xlabel("training rows")
        figure.axes[0].set_ylabel("test accuracy, %")
        handles = [_handle(name, looks[name].colour, looks[name].marker) for name in shown if name in looks]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.1)
        return svg(figure)


def differences_figure() -> bytes:
    """A panel a task: every candidate's difference to the reference at every size."""
    cells = evidence.cells()
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    sizes = sorted({cell.train_rows for cell in cells})
    names = [one.name for one in evidence.plan().candidates if one.name not in (evidence.reference(), MAJORITY)]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 0.26 * len(names) + 0.9), layout="constrained")
        panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
        for axes, task in zip(panels, tasks, strict=True):
            axes.axvline(0, color="#606060", linewidth=0.8)
            axes.axvline(-100 * MARGIN, color="#606060", linewidth=0.8, linestyle=(0, (4, 2)))
            for cell in (cell for cell in cells if cell.task == task):
                place = sizes.index(cell.train_rows)
                for row, name in enumerate(names):
                    one = evidence.standing(cell, name)
                    if one is not None and one.comparison is not None:
                        height = row + 0.24 * (place - (len(sizes) - 1) / 2)
                        _interval(axes, one, height, SIZE_COLOURS[place % len(SIZE_COLOURS)])
            axes.set_xlim(-SIGHT, SIGHT)
            axes.set_ylim(len(names) - 0.45, -0.55)
            axes.set_yticks(range(len(names)), names)
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=False, axis="y")
            axes.set_title(task)
            axes.set_xlabel(f"points more than {evidence.reference()}")
        handles = [
            _handle(f"{size:,} rows", SIZE_COLOURS[place % len(SIZE_COLOURS)], "o") for place, size in enumerate(sizes)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return svg(figure)


def _line(axes: Axes, found: Sequence[tuple[Cell, Standing]], colour: str, marker: str, shift: float) -> None:
    values = [100 * one.accuracy.value for _, one in found]
    method = found[0][1].method
    if method in BASELINES:
        axes.plot(
            [cell.train_rows for cell, _ in found],
            values,
            marker="_" if len(found) == 1 else "",  # of one point there is no line
            color=colour,
            markersize=14,
            linewidth=1,
            linestyle=BASELINE_STYLES[method][0],
        )
        return
    below = [100 * (one.accuracy.value - one.accuracy.low) for _, one in found]
    above = [100 * (one.accuracy.high - one.accuracy.value) for _, one in found]
    axes.errorbar(
        [cell.train_rows * shift for cell, _ in found], values, yerr=[below, above], color=colour, marker=marker,
        markersize=3.6, linewidth=0.8, elinewidth=0.8,
    )  # fmt: skip


def _interval(axes: Axes, one: Standing, height: float, colour: str) -> None:
    """Filled, hollow or crossed by the verdict; at the edge where it lies out of sight."""
    assert one.comparison is not None
    found, verdict = one.comparison.difference, one.comparison.verdict
    low, value, high = (max(-SIGHT, min(SIGHT, 100 * end)) for end in (found.low, found.value, found.high))
    axes.plot([low, high], [height, height], color=colour, linewidth=1, solid_capstyle="butt")
    if abs(100 * found.value) > SIGHT:
        marker = "<" if found.value < 0 else ">"
        axes.plot([value], [height], marker, color=colour, markersize=3.2, clip_on=False)
        return
    face = {"not worse": colour, "undecided": "white", "worse": colour}[verdict]
    marker = "x" if verdict == "worse" else "o"
    axes.plot([value], [height], marker, color=colour, markerfacecolor=face, markersize=3.4, markeredgewidth=0.9)


def _handle(name: str, colour: str, marker: str) -> Line2D:
    if marker == "*":
        method = next(one.method for one in evidence.plan().candidates if one.name == name)
        line = Line2D([], [], color=colour, linewidth=1, label=name)
        line.set_linestyle(BASELINE_STYLES[method][0])
        return line
    return Line2D([], [], color=colour, marker=marker, markersize=4, linewidth=0.8, label=name)
