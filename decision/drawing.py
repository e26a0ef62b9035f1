"""The tree on one page, as PDF or SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decision.errors import DecisionError
from decision.outline import Label, label, markdown, note
from decision.tree import Arm, Branch, Node, Published, Shortlist, Tree, Unmeasured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMS = ("pdf", "svg", "png", "md")
PAGE_INCHES = (11.69, 8.27)
"""A4, across."""
MARGIN_INCHES = 0.3
GAP = 0.12
"""Part of a column that is left free for lines."""
LINE_POINTS = 1.25
"""Of a font's size, from one line to the next."""
STYLE: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",
    "svg.hashsalt": "adaptermux",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
FILLS: Mapping[type, tuple[str, str]] = {
    Branch: ("#ffffff", "#5b6470"),
    Shortlist: ("#e3f1e6", "#2f7d46"),
    Published: ("#ece7f5", "#6b4fa0"),
    Unmeasured: ("#f3f3f3", "#9a9a9a"),
}


def render(tree: Tree, path: Path, form: str) -> None:
    """Write the tree; the same tree gives the same bytes. form: of `FORMS`. Raises DecisionError."""
    if form == "md":
        path.write_text(markdown(tree), encoding="utf-8")
        return
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise DecisionError("drawing needs matplotlib: pip install 'adaptermux[docs]', or take --format md") from error
    from matplotlib.figure import Figure

    with rc_context(dict(STYLE)):
        figure = Figure(figsize=PAGE_INCHES)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, PAGE_INCHES[0])
        axes.set_ylim(0, PAGE_INCHES[1])
        _draw(axes, tree)
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(path, format=form, dpi=200, metadata=dates.get(form))


@dataclass
class _Box:
    """A node with its text, wrapped to its column; top and bottom are set when all are known."""

    node: Node
    depth: int
    text: Label
    children: list[_Box]
    middle: float = 0.0

    def leaves(self) -> Iterator[_Box]:
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()

    def all(self) -> Iterator[_Box]:
        yield self
        for child in self.children:
            yield from child.all()


def _box(tree: Tree, depth: int, arm: Arm | None, node: Node) -> _Box:
    children = [_box(tree, depth + 1, inner, inner.then) for inner in node.arms] if isinstance(node, Branch) else []
    return _Box(node, depth, label(tree, arm, node), children)


def _draw(axes: Axes, tree: Tree) -> None:
    root = _box(tree, 0, None, tree.root)
    columns = 1 + max(box.depth for box in root.all())
    width = (PAGE_INCHES[0] - 2 * MARGIN_INCHES) / columns
    top, bottom = PAGE_INCHES[1] - 0.75, 0.55
    leaves = list(root.leaves())
    font = 6.2
    lines = {id(box): _wrapped(box, width * (1 - GAP), font) for box in root.all()}
    heights = {id(box): len(lines[id(box)]) * font * LINE_POINTS / 72 + 0.08 for box in root.all()}
    needed = sum(heights[id(leaf)] + 0.06 for leaf in leaves)
    if needed > top - bottom:  # more than a page: smaller letters
        font *= (top - bottom) / needed
        lines = {id(box): _wrapped(box, width * (1 - GAP), font) for box in root.all()}
        heights = {id(box): len(lines[id(box)]) * font * LINE_POINTS / 72 + 0.06 for box in root.all()}
        needed = sum(heights[id(leaf)] + 0.06 for leaf in leaves)
    spare = max(0.0, (top - bottom - needed) / max(1, len(leaves)))
    y = top
    for leaf in leaves:
        height = heights[id(leaf)]
        leaf.middle = y - height / 2
        y -= height + 0.06 + spare
    _place(root)
    axes.text(MARGIN_INCHES, PAGE_INCHES[1] - 0.4, "Which PEFT method?", fontsize=14, weight="bold", va="center")
    for row, line in enumerate(textwrap.wrap(note(tree), 210)):
        axes.text(MARGIN_INCHES, 0.38 - 0.12 * row, line, fontsize=6, color="#444444", va="center")
    for box in root.all():
        _draw_box(axes, box, lines[id(box)], heights[id(box)], width, font)
        for child in box.children:
            _connect(axes, box, child, width)


def _place(box: _Box) -> None:
    for child in box.children:
        _place(child)
    if box.children:
        box.middle = (box.children[0].middle + box.children[-1].middle) / 2


def _wrapped(box: _Box, inches: float, font: float) -> list[tuple[str, str]]:
    """Lines with their kind: the arm, the title, what stands beneath."""
    letters = max(12, int(inches * 72 / (font * 0.56)))
    found = [("arm", line) for line in textwrap.wrap(box.text.arm, letters)]
    found += [("title", line) for line in textwrap.wrap(box.text.title, letters)]
    return found + [("line", one) for text in box.text.lines if text for one in textwrap.wrap(text, letters)]


def _draw_box(axes: Axes, box: _Box, lines: list[tuple[str, str]], height: float, width: float, font: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    fill, edge = FILLS[type(box.node)]
    left = MARGIN_INCHES + box.depth * width
    dashes = "-" if isinstance(box.node, Branch | Shortlist) else (0, (3, 2))
    axes.add_patch(
        FancyBboxPatch(
            (left, box.middle - height / 2), width * (1 - GAP), height,
            boxstyle="round,pad=0,rounding_size=0.05", facecolor=fill, edgecolor=edge, linewidth=0.7, linestyle=dashes,
        )
    )  # fmt: skip
    step = font * LINE_POINTS / 72
    y = box.middle + len(lines) * step / 2 - step / 2
    for kind, line in lines:
        weight, style = ("bold", "normal") if kind == "title" else ("normal", "italic" if kind == "arm" else "normal")
        colour = edge if kind == "arm" else "#1c1f24"
        axes.text(left + 0.05, y, line, fontsize=font, weight=weight, style=style, color=colour, va="center")
        y -= step


def _connect(axes: Axes, box: _Box, child: _Box, width: float) -> None:
    start = MARGIN_INCHES + (box.depth + 1 - GAP) * width
    end = MARGIN_INCHES + child.depth * width
    middle = (start + end) / 2
    axes.plot(
        [start, middle, middle, end],
        [box.middle, box.middle, child.middle, child.middle],
        color="#5b6470",
        linewidth=0.7,
        solid_joinstyle="round",
    )
