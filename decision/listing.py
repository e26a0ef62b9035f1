"""The tree as an indented drawing, for a page of print: the full width for what stands at an end."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, groupby, pairwise
from typing import TYPE_CHECKING, Any, Literal

from decision.drawing import FILLS
from decision.errors import DecisionError
from decision.outline import Label, brief
from decision.tree import Arm, Branch, Node, Shortlist, Tree, rows_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.font_manager import FontProperties
    from matplotlib.typing import RcKeyType

LARGEST_FONT, SMALLEST_FONT, FONT_STEP = 8.6, 6.4, 0.2
LINE = 1.22
"""Of a font's size, from one line to the next."""
INDENT, PADDING, GAP = 1.7, 0.42, 0.3
"""Of a font's size: a level deeper, within a box, between boxes."""
INK, FAINT = "#1c1f24", "#8a9099"
STYLE: dict[RcKeyType, Any] = {
    "font.family": "STIXGeneral",
    "svg.fonttype": "path",
    "svg.hashsalt": "adaptermux",
}
Kind = Literal["arm", "title", "line"]


@dataclass(frozen=True, slots=True)
class _Run:
    """Words in one style; left: in points, from where the text begins."""

    kind: Kind
    text: str
    left: float


@dataclass(frozen=True, slots=True)
class _Row:
    node: Node
    depth: int
    label: Label


@dataclass(frozen=True, slots=True)
class _Layout:
    rows: list[_Row]
    font: float
    lines: list[list[list[_Run]]]
    """Of each row each line's runs."""
    heights: list[float]


def picture(tree: Tree, width_in: float, height_in: float) -> bytes:
    """An SVG of that size, without fonts of its own: the same tree gives the same bytes.

    Where all ends are too many, neighbours of one cheapest candidate are drawn as one. Raises DecisionError where even
    these do not fit in letters that can be read.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width_in, height_in))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, 72 * width_in)  # points
        axes.set_ylim(0, 72 * height_in)
        width, height = 72 * width_in, 72 * height_in
        layout = _lay_out(list(_rows(tree, 0, None, tree.root)), width, height)
        layout = layout or _lay_out(list(_rows(tree, 0, None, tree.root, is_joined=True)), width, height)
        if layout is None:
            raise DecisionError(
                f"the tree does not fit into {width_in:g} x {height_in:g} in in letters that can be read"
            )
        _draw(axes, layout, width, height)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _rows(tree: Tree, depth: int, arm: Arm | None, node: Node, is_joined: bool = False) -> Iterator[_Row]:
    """A branch with one arm only is told in the row of what lies behind it."""
    found = brief(tree, arm, node)
    if isinstance(node, Branch) and len(node.arms) == 1:
        only = node.arms[0]
        behind = brief(tree, only, only.then)
        lines = (f"{found.title} {only.label}: {only.because}", *(one for one in behind.lines if one != only.because))
        yield _Row(only.then, depth, Label(found.arm, behind.title, lines))
        node = only.then
    else:
        yield _Row(node, depth, found)
    if isinstance(node, Branch) and is_joined and all(isinstance(inner.then, Shortlist) for inner in node.arms):
        yield from _joined(tree, depth + 1, node.arms)
    elif isinstance(node, Branch):
        for inner in node.arms:
            yield from _rows(tree, depth + 1, inner, inner.then, is_joined)


def _joined(tree: Tree, depth: int, arms: Sequence[Arm]) -> Iterator[_Row]:
    """Neighbouring shortlists whose cheapest is the same, as one."""
    briefs = [(arm, brief(tree, arm, arm.then)) for arm in arms]
    for title, group in groupby(briefs, lambda pair: pair[1].title):
        own = [arm for arm, _ in group]
        first = brief(tree, own[0], own[0].then)
        names = [arm.then.names for arm in own if isinstance(arm.then, Shortlist)]
        always = [name for name in names[0] if name != title and all(name in one for one in names)]
        some = [name for name in dict.fromkeys(chain(*names)) if name != title and name not in always]
        lines = [line for line in first.lines if not line.startswith("or ")]
        lines += [f"or {', '.join(always)}"] * bool(always) + [f"for some also {', '.join(some)}"] * bool(some)
        arm = rows_label(own[0].start or 1, own[-1].end)
        yield _Row(own[0].then, depth, Label(arm, title, tuple(lines)))


def _lay_out(rows: list[_Row], width: float, height: float) -> _Layout | None:
    """In the largest letters that fit; None if none do."""
    font = LARGEST_FONT
    while font >= SMALLEST_FONT:
        lines = [_flow(row.label, width - font * (INDENT * row.depth + 2 * PADDING), font) for row in rows]
        heights = [font * (LINE * len(found) + PADDING) for found in lines]
        if sum(heights) + GAP * font * (len(rows) - 1) <= height:
            return _Layout(rows, font, lines, heights)
        font -= FONT_STEP
    return None


def _draw(axes: Axes, layout: _Layout, width: float, height: float) -> None:
    gap = (height - sum(layout.heights)) / max(1, len(layout.rows) - 1)
    tops, top = [], height
    for each in layout.heights:
        tops.append(top)
        top -= each + gap
    _connect(axes, layout, tops)
    for row, lines, each, top in zip(layout.rows, layout.lines, layout.heights, tops, strict=True):
        _draw_row(axes, row, lines, each, top, width, layout.font)


def _flow(label: Label, width: float, font: float) -> list[list[_Run]]:
    """Words into lines: the arm, the title, then what stands beneath, one after the other."""
    parts: list[tuple[Kind, str]] = [("arm", f"{label.arm}:")] if label.arm else []
    parts.append(("title", label.title))
    beneath = "; ".join(line for line in label.lines if line)
    if beneath:
        parts.append(("line", "— " + re.sub(r"(?<![\w])-(?=\d)", "−", beneath.replace("`", ""))))
    lines: list[list[_Run]] = [[]]
    left = 0.0
    for kind, text in parts:
        held: list[str] = []
        start = left
        for word in text.split():
            if left > 0 and start + _width(kind, " ".join([*held, word]), font) > width:
                if held:
                    lines[-1].append(_Run(kind, " ".join(held), start))
                lines.append([])
                held, start = [], 0.0
            held.append(word)
            left = start + _width(kind, " ".join(held) + " ", font)
        lines[-1].append(_Run(kind, " ".join(held), start))
    return lines


def _connect(axes: Axes, layout: _Layout, tops: Sequence[float]) -> None:
    """From each branch down to each of its arms."""
    rows, font = layout.rows, layout.font
    middles = [top - font * (PADDING + LINE) / 2 for top in tops]
    for index, row in enumerate(rows):
        children = []
        for other, later in enumerate(rows[index + 1 :], index + 1):
            if later.depth <= row.depth:
                break
            if later.depth == row.depth + 1:
                children.append(other)
        x = font * (INDENT * row.depth + INDENT / 2)
        for child in children:
            axes.plot([x, font * INDENT * (row.depth + 1)], [middles[child]] * 2, color=FAINT, linewidth=0.7)
        for low, high in pairwise([index, *children]):
            begin = tops[index] - layout.heights[index] if low == index else middles[low]
            axes.plot([x, x], [begin, middles[high]], color=FAINT, linewidth=0.7, solid_capstyle="projecting")


def _draw_row(
    axes: Axes, row: _Row, lines: Sequence[Sequence[_Run]], height: float, top: float, width: float, font: float
) -> None:
    from matplotlib.patches import FancyBboxPatch

    fill, edge = FILLS[type(row.node)]
    left = font * INDENT * row.depth
    axes.add_patch(
        FancyBboxPatch(
            (left, top - height), width - left - 0.5, height, boxstyle=f"round,pad=0,rounding_size={0.3 * font}",
            facecolor=fill, edgecolor=edge, linewidth=0.6,
        )
    )  # fmt: skip
    y = top - font * (PADDING + LINE) / 2
    for line in lines:
        for run in line:
            axes.text(
                left + font * PADDING + run.left, y, run.text, fontproperties=_font(run.kind), fontsize=font,
                color=edge if run.kind == "arm" else INK, va="center_baseline", parse_math=False,
            )  # fmt: skip
        y -= font * LINE


@cache
def _font(kind: Kind) -> FontProperties:
    from matplotlib.font_manager import FontProperties

    return FontProperties(
        family="STIXGeneral",
        weight="bold" if kind == "title" else "normal",
        style="italic" if kind == "arm" else "normal",
    )


def _width(kind: Kind, text: str, font: float) -> float:
    return font * _width_of_one(kind, text)


@cache
def _width_of_one(kind: Kind, text: str) -> float:
    """In letters of one point."""
    from matplotlib.textpath import TextToPath

    properties = _font(kind).copy()
    properties.set_size(100)
    width, _, _ = TextToPath().get_text_width_height_descent(text, properties, ismath=False)
    return float(width) / 100
