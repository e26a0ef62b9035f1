"""Figures of a summary: accuracy against adapter bytes, against training rows, and what tuning brought."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from decision.rows import BASELINES, FULL, MAJORITY, PROBE, WORDS
from training.standings import Cell, Standing

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
"""Okabe and Ito 2008 without yellow and black, told apart by colour-blind readers, and two more."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
BASELINE_STYLES: Mapping[str, tuple[Literal[":", "-.", "--", "-"], str]] = {
    MAJORITY: (":", "#808080"),
    WORDS: ("-.", "#909090"),
    PROBE: ("--", "#606060"),
    FULL: ("-", "#202020"),
}
STYLE: dict[RcKeyType, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "figure.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#808080",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.color": "#404040",
    "ytick.color": "#404040",
    "legend.frameon": False,
    # the same figure is the same file, and looks alike without the fonts
    "svg.fonttype": "path",
    "svg.hashsalt": "adaptermux",
}
SIDE_BY_SIDE = 0.03
"""Least distance of two points, as a share of the axis."""
WITHIN_SIGHT = 0.5
"""A baseline further from the adapters than this share of their range is named at the edge instead of drawn."""
INK, FAINT = "#303030", "#606060"


@dataclass(frozen=True, slots=True)
class Look:
    colour: str
    marker: str


@dataclass(frozen=True, slots=True)
class _Label:
    height: float
    """In units of the axis."""
    text: str
    colour: str
    marker: str = ""


def accuracy_by_bytes(cells: Sequence[Cell]) -> Figure:
    """One panel a task and number of rows; adapters are points, baselines lines."""
    with rc_context(STYLE):
        looks = looks_of(cells)
        figure, panels = _grid(cells, "weights file, head included", "test accuracy, %")
        sizes = [standing.adapter_bytes for cell in cells for standing in _adapters(cell)]
        low, high = _log_range(sizes)
        for cell, axes in panels:
            adapters = _adapters(cell)
            places = spread(
                [math.log10(max(1, found.adapter_bytes)) for found in adapters], SIDE_BY_SIDE * (high - low)
            )
            for standing, place in zip(adapters, places, strict=True):
                _point(axes, 10**place, standing, looks[standing.candidate])
            axes.set_xscale("log")
            axes.set_xlim(10**low, 10**high)
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high - low > 1.5 else (1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(EngFormatter("B"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            _accuracy_axis(axes, [cell], WITHIN_SIGHT)
            _baselines(axes, cell)
        note = (
            "Bars are 95 % intervals over seeds and test texts, bands those of the baselines. "
            "Adapters of nearly the same size are moved apart sideways."
        )
        figure.suptitle("Accuracy against adapter size", x=0.01, ha="left")
        _legend(figure, looks, {standing.candidate for cell in cells for standing in _adapters(cell)}, note)
        return figure


def accuracy_by_rows(cells: Sequence[Cell]) -> Figure:
    """One panel a task; every candidate is a line, named at its end."""
    with rc_context(STYLE):
        looks = looks_of(cells)
        tasks = sorted({cell.task for cell in cells})
        columns = min(2, len(tasks))
        rows = math.ceil(len(tasks) / columns)
        figure = Figure(figsize=(5.1 * columns, 3.8 * rows + 0.6), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for task, axes in zip(tasks, grid, strict=False):
            _lines_by_rows(axes, [cell for cell in cells if cell.task == task], looks)
            axes.set_title(task)
            axes.set_xlabel("training rows")
            axes.set_ylabel("test accuracy, %")
        for axes in grid[len(tasks) :]:
            axes.set_visible(False)
        figure.suptitle("Accuracy against number of training rows", x=0.01, ha="left")
        note = "Bars are 95 % intervals over seeds and test texts. At the right: mean accuracy with the most rows."
        figure.supxlabel(_wrapped(figure, note), x=0.01, ha="left", color=FAINT)
        return figure


def tuning(cells: Sequence[Cell]) -> Figure:
    """One panel a task and number of rows: the best validation accuracy to expect from so many trials."""
    with rc_context(STYLE):
        looks = looks_of(cells)
        shown = [cell for cell in cells if cell.tunings]
        figure, panels = _grid(shown, "trials", "validation accuracy, %")
        for cell, axes in panels:
            for found in cell.tunings:
                look = looks[found.candidate]
                trials = range(1, found.num_trials + 1)
                values = [100 * value for value in found.expected_best]
                axes.plot(trials, values, color=look.colour, marker=look.marker, markersize=4, linewidth=1.2)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        figure.suptitle("What tuning brings", x=0.01, ha="left")
        note = "Expected best of so many trials (Dodge et al. 2019), mean over seeds."
        _legend(figure, looks, {found.candidate for cell in shown for found in cell.tunings}, note)
        return figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as SVG and PNG; the same figure gives the same bytes."""
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    with rc_context(STYLE):
        paths[0].write_bytes(svg(figure))
        figure.savefig(paths[1], dpi=150)
    return paths


def svg(figure: Figure) -> bytes:
    """In the style that is set where it is called."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def looks_of(cells: Sequence[Cell]) -> Mapping[str, Look]:
    """Colour and marker of every candidate: a colour a method, or a candidate where all are one method."""
    ordered = sorted(
        {(entry.method, entry.candidate) for cell in cells for entry in cell.standings}
        | {(entry.method, entry.candidate) for cell in cells for entry in cell.tunings},
        key=lambda pair: (pair[0], _by_number(pair[1])),
    )
    methods = sorted({method for method, _ in ordered} - set(BASELINES))
    looks = {}
    for method, name in ordered:
        if method in BASELINES:
            looks[name] = Look(BASELINE_STYLES[method][1], "*")
            continue
        number = [other for each, other in ordered if each == method].index(name)
        colour = methods.index(method) if len(methods) > 1 else number
        looks[name] = Look(COLOURS[colour % len(COLOURS)], MARKERS[number % len(MARKERS)])
    return looks


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Move values as little as possible (least squares) so that any two are at least a gap apart, in the same order."""
    if not values:
        return []
    from scipy.optimize import isotonic_regression

    order = sorted(range(len(values)), key=lambda index: values[index])
    steps = gap * np.arange(len(values))
    moved = isotonic_regression(np.array([values[index] for index in order]) - steps).x + steps
    places = [0.0] * len(values)
    for index, place in zip(order, moved, strict=True):
        places[index] = float(place)
    return places


def _adapters(cell: Cell) -> list[Standing]:
    return [standing for standing in cell.standings if standing.method not in BASELINES]


def _grid(cells: Sequence[Cell], x: str, y: str) -> tuple[Figure, list[tuple[Cell, Axes]]]:
    """A row of panels for each task, a column for each number of rows; what was not measured stays blank."""
    tasks = sorted({cell.task for cell in cells})
    sizes = sorted({cell.train_rows for cell in cells})
    if len(sizes) == 1:
        return _row(cells, x, y)
    figure = Figure(figsize=(3.6 * len(sizes), 2.45 * len(tasks) + 1.2), layout="constrained")
    grid = figure.subplots(len(tasks), len(sizes), squeeze=False)
    by_place = {(cell.task, cell.train_rows): cell for cell in cells}
    panels = []
    for row, task in enumerate(tasks):
        for column, size in enumerate(sizes):
            axes = grid[row][column]
            axes.set_title(f"{task}, {size:,} rows")
            cell = by_place.get((task, size))
            if cell is None:
                axes.set_axis_off()
                axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#808080")
                continue
            panels.append((cell, axes))
            if column == 0:
                axes.set_ylabel(y)
            if row == len(tasks) - 1:
                axes.set_xlabel(x)
    return figure, panels


def _row(cells: Sequence[Cell], x: str, y: str) -> tuple[Figure, list[tuple[Cell, Axes]]]:
    """Panels of one number of rows, beside each other."""
    columns = min(2, len(cells))
    rows = math.ceil(len(cells) / columns)
    figure = Figure(figsize=(5.4 * columns, 3.2 * rows + 1.2), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell, axes in zip(cells, grid, strict=False):
        axes.set_title(f"{cell.task}, {cell.train_rows:,} rows")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    for axes in grid[len(cells) :]:
        axes.set_visible(False)
    return figure, list(zip(cells, grid, strict=False))


def _point(axes: Axes, x: float, standing: Standing, look: Look) -> None:
    found = standing.accuracy
    error = [[100 * (found.value - found.low)], [100 * (found.high - found.value)]]
    axes.errorbar(
        [x], [100 * found.value], yerr=error, color=look.colour, marker=look.marker, markersize=6,
        markeredgecolor="white", markeredgewidth=0.6, elinewidth=1.3, linestyle="none", zorder=3,
    )  # fmt: skip


def _accuracy_axis(axes: Axes, cells: Sequence[Cell], sight: float) -> None:
    """From the adapters' intervals; baselines are in it if they are within sight."""
    standings = [standing for cell in cells for standing in _adapters(cell)]
    standings = standings or [standing for cell in cells for standing in cell.standings]
    low = min(standing.accuracy.low for standing in standings)
    high = max(standing.accuracy.high for standing in standings)
    reach = sight * max(high - low, 0.02)
    for baseline in (standing for cell in cells for standing in cell.standings if standing.method in BASELINES):
        if low - reach <= baseline.accuracy.value <= high + reach:
            low, high = min(low, baseline.accuracy.value), max(high, baseline.accuracy.value)
    margin = 0.06 * max(high - low, 0.02)
    axes.set_ylim(100 * (low - margin), 100 * (high + margin))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))


def _baselines(axes: Axes, cell: Cell) -> None:
    """Lines across, named at the right edge; an arrow shows where one lies outside."""
    low, high = axes.get_ylim()
    labels = []
    for standing in cell.standings:
        if standing.method not in BASELINES:
            continue
        dashes, colour = BASELINE_STYLES[standing.method]
        value = 100 * standing.accuracy.value
        if low <= value <= high:
            axes.axhline(value, color=colour, linestyle=dashes, linewidth=1, zorder=1)
            axes.axhspan(100 * standing.accuracy.low, 100 * standing.accuracy.high, color=colour, alpha=0.07, zorder=0)
        arrow = " ↓" if value < low else " ↑" if value > high else ""
        labels.append(_Label(min(high, max(low, value)), f"{standing.candidate} {value:.1f}{arrow}", colour))
    axes.set_ylim(low, high)
    _name_at_the_edge(axes, labels)


def _lines_by_rows(axes: Axes, cells: Sequence[Cell], looks: Mapping[str, Look]) -> None:
    sizes = sorted({cell.train_rows for cell in cells})
    _accuracy_axis(axes, cells, WITHIN_SIGHT / 4)
    low, high = axes.get_ylim()
    names = sorted({standing.candidate for cell in cells for standing in cell.standings})
    labels = []
    for index, name in enumerate(names):
        found = [(cell.train_rows, entry) for cell in cells for entry in cell.standings if entry.candidate == name]
        values = [100 * entry.accuracy.value for _, entry in found]
        method, look = found[0][1].method, looks[name]
        if method in BASELINES:
            dashes = BASELINE_STYLES[method][0]
            axes.plot([rows for rows, _ in found], values, color=look.colour, linestyle=dashes, linewidth=1.2, zorder=2)
        else:
            shift = 1 + 0.02 * (index - (len(names) - 1) / 2)  # so that intervals lie beside each other
            places = [rows * shift for rows, _ in found]
            axes.plot(places, values, color=look.colour, linewidth=1, alpha=0.7, zorder=2)
            for place, (_, entry) in zip(places, found, strict=True):
                _point(axes, place, entry, look)
        if found[-1][0] < sizes[-1]:
            continue  # its line ends before the edge; the table says what is missing
        arrow = " ↓" if values[-1] < low else " ↑" if values[-1] > high else ""
        marker = "" if method in BASELINES else look.marker
        labels.append(_Label(min(high, max(low, values[-1])), f"{name} {values[-1]:.1f}{arrow}", look.colour, marker))
    axes.set_xscale("log")
    axes.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_ylim(low, high)
    _name_at_the_edge(axes, labels)


def _name_at_the_edge(axes: Axes, labels: Sequence[_Label]) -> None:
    """Write names beside the right edge, apart from each other, each joined to its height."""
    low, high = axes.get_ylim()
    panel_inches = axes.get_window_extent().height / axes.figure.dpi  # before the layout: a little too much
    gap = min(1 / max(1, len(labels) - 1), 0.13 / panel_inches)
    heights = [(label.height - low) / (high - low) for label in labels]
    places = spread(heights, gap)
    beyond = max(0.0, max(places, default=0.0) - 1) - max(0.0, -min(places, default=0.0))
    places = spread([min(1.0, max(0.0, place - beyond)) for place in places], gap)
    for label, height, place in zip(labels, heights, places, strict=True):
        across = axes.transAxes
        axes.plot([1.0, 1.045], [height, place], transform=across, color=label.colour, linewidth=0.6, clip_on=False)
        start = 1.06
        if label.marker:
            axes.plot([start], [place], label.marker, transform=across, color=label.colour, markersize=4, clip_on=False)
            start += 0.02
        axes.text(start, place, label.text, transform=across, color=INK, fontsize=7, va="center")


def _by_number(name: str) -> list[int | str]:
    """A key that puts rank 2 before rank 16."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _legend(figure: Figure, looks: Mapping[str, Look], shown: Collection[str], note: str) -> None:
    """Below the panels, under a note."""
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle="none", markersize=6, label=name)
        for name, look in looks.items()
        if name in shown
    ]
    if not handles:
        return
    fitting = max(1, int(figure.get_figwidth() / 1.15))
    rows = math.ceil(len(handles) / fitting)
    legend = figure.legend(
        handles=handles,
        title=_wrapped(figure, note),
        alignment="left",
        loc="outside lower left",
        ncols=math.ceil(len(handles) / rows),
        handletextpad=0.2,
        columnspacing=1.2,
    )
    legend.get_title().set_color(FAINT)


def _wrapped(figure: Figure, note: str) -> str:
    return "\n".join(wrap(note, int(17 * figure.get_figwidth())))


def _log_range(sizes: Sequence[int]) -> tuple[float, float]:
    """Of the axis, in powers of ten."""
    if not sizes:
        return 0.0, 1.0
    low, high = math.log10(max(1, min(sizes))), math.log10(max(1, *sizes))
    room = max(0.1, 0.08 * (high - low))
    return low - room, high + room
