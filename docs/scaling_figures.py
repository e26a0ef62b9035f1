"""Figures of docs/scaling.md, from the simulation's results."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.figure import Figure

from docs.figures import STYLE
from docs.scaling import record
from training.figures import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#A6417F", "#505050", "#B8860B")
MARKS = "osD^vX"
WIDTH_IN, HEIGHT_IN = 7.0, 2.6


def held_figure() -> bytes:
    """Hit rate against the fleet's memory, by policy; lines are theory."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN / 2 + 0.6, HEIGHT_IN), layout="constrained")
        axes = figure.subplots()
        rows = record()["held"]
        for index, policy in enumerate(dict.fromkeys(row["policy"] for row in rows)):
            own = [row for row in rows if row["policy"] == policy]
            rooms = [row["fleet_room"] for row in own]
            colour = COLOURS[index]
            axes.plot(rooms, [row["hit_rate"] for row in own], MARKS[index], color=colour, markersize=4, label=policy)
            theory = [(row["fleet_room"], row["theory"]) for row in own if row["theory"] is not None]
            if theory and policy in ("random", "hash"):
                axes.plot(*zip(*theory, strict=True), color=colour, linewidth=0.8)
        axes.set_xscale("log", base=2)
        _label(axes, "memory of all replicas over that of all adapters", "hit rate")
        return svg(figure)


def bounds_figure() -> bytes:
    """Hit rate and 95th percentile against the bound, by load."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        left, right = figure.subplots(1, 2)
        found = record()
        routers = found["chart"]["router"]["replicas"]
        rows = [row for row in found["bounds"] if row["num_routers"] == routers]
        for index, load in enumerate(dict.fromkeys(row["load"] for row in rows)):
            own = [row for row in rows if row["load"] == load]
            bounds = [row["bound_percent"] for row in own]
            look = {"color": COLOURS[index], "marker": MARKS[index], "markersize": 4, "linewidth": 0.8}
            left.plot(bounds, [row["hit_rate"] for row in own], label=f"{load:.0%} of capacity", **look)
            right.plot(bounds, [row["p95_ms"] for row in own], label=f"{load:.0%} of capacity", **look)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xticks([110, 150, 200, 300, 500, 1000], ["110", "150", "200", "300", "500", "1000"])
            axes.minorticks_off()
        _label(left, "bound, percent", "hit rate")
        _label(right, "bound, percent", "p95, ms")
        return svg(figure)


def step_figure() -> bytes:
    """Ready replicas and 95th percentile after a step, by rule."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        left, right = figure.subplots(1, 2)
        traces = dict(record()["traces"])
        every_s = traces.pop("")["every_s"][0]
        shown = [name for name in traces if name in SHOWN or name.endswith("(the chart)")]
        for index, name in enumerate(shown):
            minutes = [place * every_s / 60 for place in range(len(traces[name]["ready"]))]
            left.plot(minutes, traces[name]["ready"], color=COLOURS[index], linewidth=1, label=name)
            right.plot(minutes, traces[name]["p95_ms"], color=COLOURS[index], linewidth=1, label=name)
        right.set_yscale("log")
        _label(left, "minutes", "ready replicas")
        _label(right, "minutes", "p95, ms", has_legend=False)
        return svg(figure)


SHOWN = ("queue 100 ms", "rate", "rate, queue 500 ms")
FIGURES: dict[str, Callable[[], bytes]] = {
    "scaling-held": held_figure,
    "scaling-bounds": bounds_figure,
    "scaling-step": step_figure,
}


def _label(axes: Axes, across: str, up: str, has_legend: bool = True) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, linewidth=0.3)
    if has_legend:
        axes.legend(fontsize=7, frameon=False)
