"""Draws plots as inline SVG: small panels that a narrow screen can put below each other."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from loadtest.outcome import Across

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d31")
"""Okabe and Ito 2008 without yellow and black, told apart by colour-blind readers, and two more."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
SIGNS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "⬟")
"""What a legend in text shows for each marker."""
MOST_LINES = len(COLOURS)
INK, GRID, BAD = "#303030", "#e4e4e4", "#c01c28"
WIDTH_INCHES, HEIGHT_INCHES = 4.4, 2.6
ROW_INCHES = 0.4
MOST_ROWS = 10
LEFT, RIGHT, BOTTOM, TOP = 0.64, 0.14, 0.46, 0.32
"""Margins, in inches."""
STYLE: dict[RcKeyType, Any] = {
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "path.simplify": True,
    # text stays text: smaller, and found by a search
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Line:
    """number: of its colour and marker. low, high: where points have a range."""

    number: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """One plot. limit: a line across, at a height; failures: places on the x axis that are marked at the top."""

    title: str
    description: str
    lines: Sequence[Line]
    limit: float | None = None
    failures: Sequence[float] = ()


@dataclass(frozen=True)
class Scale:
    """Of an axis, the same in all panels of a group. ticks: where they stand, if the values are few."""

    label: str
    is_log: bool = False
    ticks: Sequence[float] = ()
    is_share: bool = False
    starts_at_zero: bool = False


@dataclass(frozen=True)
class Row:
    """What one case has in a chart of dots; a point for each of the legend's names, None where it has none."""

    name: str
    points: Sequence[Across | None]


@dataclass(frozen=True)
class Image:
    """title: what is special about it among those beside it."""

    title: str
    svg: str


@dataclass(frozen=True)
class Plots:
    """Panels with one legend and a caption, ready for a page. legend: by number."""

    title: str
    caption: str
    images: Sequence[Image]
    legend: Sequence[str] = ()
    has_failures: bool = False


def panels(title: str, caption: str, found: Sequence[Panel], x: Scale, y: Scale, legend: Sequence[str]) -> Plots:
    """Draw lines; all panels show the same spans of both axes."""
    widths = [value for panel in found for line in panel.lines for value in line.x]
    widths += [value for panel in found for value in panel.failures]
    heights = [value for panel in found for line in panel.lines for value in (*line.y, *line.low, *line.high)]
    heights += [panel.limit for panel in found if panel.limit is not None]
    images = []
    for panel in found:
        whole = f"{title}: {panel.title}" if panel.title else title
        images.append(Image(panel.title, _svg(_lines(panel, x, y, widths, heights), whole, panel.description)))
    return Plots(title, caption, images, legend, any(len(panel.failures) for panel in found))


def dots(title: str, caption: str, rows: Sequence[Row], x: Scale, legend: Sequence[str]) -> Plots:
    """A line a case, its name above it, with a dot for each figure; so many below each other."""
    places = [value for row in rows for point in row.points if point for value in (point.low, point.high)]
    num_panels = math.ceil(len(rows) / MOST_ROWS)
    length = math.ceil(len(rows) / max(1, num_panels))
    images = []
    for start in range(0, len(rows), length):
        shown = rows[start : start + length]
        names = f"{title}: {shown[0].name} to {shown[-1].name}" if num_panels > 1 else title
        images.append(Image("", _svg(_dots(shown, x, places), names, caption)))
    return Plots(title, caption, images, legend)


def _dots(rows: Sequence[Row], x: Scale, places: Sequence[float]) -> Figure:
    with rc_context(STYLE):
        rows_inches, left = ROW_INCHES * len(rows), 0.15
        height = rows_inches + BOTTOM + 0.05
        figure = Figure(figsize=(WIDTH_INCHES, height))
        width = 1 - (left + RIGHT) / WIDTH_INCHES
        axes = figure.add_axes((left / WIDTH_INCHES, BOTTOM / height, width, rows_inches / height))
        for place, row in enumerate(rows):
            middle = len(rows) - place - 0.75
            axes.axhline(middle, color=GRID, linewidth=0.6, zorder=0)
            across = axes.get_yaxis_transform()
            axes.text(0.005, middle + 0.3, row.name, transform=across, fontsize=8, parse_math=False)
            for number, point in enumerate(row.points):
                if point is None or (x.is_log and point.low <= 0):
                    continue
                colour = COLOURS[number % MOST_LINES]
                axes.plot([point.low, point.high], [middle] * 2, color=colour, linewidth=1.6, alpha=0.6)
                axes.plot([point.median], [middle], MARKERS[number % MOST_LINES], color=colour, markersize=5)
        axes.set_ylim(0, len(rows))
        axes.yaxis.set_major_locator(NullLocator())
        axes.spines["left"].set_visible(False)
        _scale(axes, "x", x, places)
        return figure


def _lines(panel: Panel, x: Scale, y: Scale, widths: Sequence[float], heights: Sequence[float]) -> Figure:
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES))
        axes = figure.add_axes(
            (
                LEFT / WIDTH_INCHES,
                BOTTOM / HEIGHT_INCHES,
                1 - (LEFT + RIGHT) / WIDTH_INCHES,
                1 - (BOTTOM + TOP) / HEIGHT_INCHES,
            )
        )
        for line in panel.lines:
            _draw(axes, line)
        if panel.limit is not None:
            axes.axhline(panel.limit, color=INK, linestyle="--", linewidth=1)
        if len(panel.failures):
            top = [0.97] * len(panel.failures)
            axes.plot(panel.failures, top, "x", transform=axes.get_xaxis_transform(), color=BAD, markersize=5)
        _scale(axes, "x", x, widths)
        _scale(axes, "y", y, heights)
        return figure


def _draw(axes: Axes, line: Line) -> None:
    colour, marker = COLOURS[line.number % MOST_LINES], MARKERS[line.number % MOST_LINES]
    axes.plot(
        line.x, line.y, color=colour, linewidth=1.3, marker=marker, markersize=4.5,
        markevery=max(1, len(line.x) // 8),
    )  # fmt: skip
    if len(line.low):
        axes.vlines(line.x, line.low, line.high, colors=colour, linewidth=1.3, alpha=0.6)


def _scale(axes: Axes, which: str, scale: Scale, values: Sequence[float]) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    limits = axes.set_xlim if which == "x" else axes.set_ylim
    if which == "x":
        axes.set_xlabel(scale.label, parse_math=False)
    else:  # lying, so that it is read without turning the head and takes no width
        axes.set_title(scale.label, loc="left", x=-0.13, fontsize=9)
    known = [value for value in values if math.isfinite(value) and (value > 0 or not scale.is_log)]
    low, high = (min(known), max(known)) if known else (1.0, 2.0)
    if scale.is_log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        room = max(1.15, (high / low) ** 0.06)
        limits(low / room, high * room)
        wide = math.log10(high / low) > 1.3
        axis.set_major_locator(LogLocator(subs=(1.0,) if math.log10(high / low) > 2.5 else (1.0, 2.0, 5.0) if wide
                                          else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))  # fmt: skip
    else:
        low = 0.0 if scale.starts_at_zero else low
        room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
        limits(low if scale.starts_at_zero else low - room, high + room)
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    if scale.ticks:
        axis.set_major_locator(FixedLocator(list(scale.ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_percent if scale.is_share else _plain))


def _plain(value: float, _: int | None) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _percent(value: float, _: int | None) -> str:
    return f"{100 * value:g} %"


_THEME = {INK: "currentColor", GRID: "var(--grid)", BAD: "var(--bad)"} | {
    colour: f"var(--line-{number})" for number, colour in enumerate(COLOURS)
}


def _svg(figure: Figure, title: str, description: str) -> str:
    """SVG for the middle of a page: colours by the page's theme, a title and a description for those who cannot see."""
    written = io.StringIO()
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has other fonts
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    _, _, drawn = written.getvalue().partition("<svg ")
    head, _, body = drawn.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+ [\d.]+)"', head)
    assert box is not None
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]*>", _themed, body)
    return (
        f'<svg viewBox="0 0 {box[1]}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{body}"
    )


def _themed(tag: re.Match[str]) -> str:
    """One tag, with the page's colours and font, and without what nobody reads."""
    text = re.sub(r'^<g id="[^"]*"', "<g", tag[0]).replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for colour, name in _THEME.items():
        text = text.replace(colour, name)
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", text).replace("\n", "")
