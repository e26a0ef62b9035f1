"""The tree on one page, as PDF or SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decision.errors import DecisionError
from decision.outline import Label, label, markdown, note
from decision.tree import Arm, Branch, Node, Published, Shortlist, Tree, Unmeasured
from decision.web.sheet import sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

FORMS = ("pdf", "svg", "png", "md", "html")
PAGE_INCHES = (11.69, 8.27)
"""A4, across."""
MARGIN_INCHES = 0.3
GAP_INCHES = 0.22
"""Between columns, for lines."""
PADDING_INCHES = 0.09
LARGEST_FONT, SMALLEST_FONT = 7.5, 4.0
FULL_LETTERS, NARROWEST = 34, 0.5
"""A column with a text so long has the full width; the narrowest has that part of it."""
LINE_POINTS = 1.25
"""Of a font's size, from one line to the next."""
STYLE: dict[RcKeyType, Any] = {
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
    if form == "html":
        path.write_text(sheet(tree), encoding="utf-8")
        return
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise DecisionError("drawing needs matplotlib: pip install 'adaptermux[docs]', or take --format md") from error
    from matplotlib.figure import Figure

    with rc_context(STYLE):
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
    """A branch with one arm only is a line in the box of what lies behind it."""
    if isinstance(node, Branch) and len(node.arms) == 1:
        only = node.arms[0]
        found, behind = _box(tree, depth, only, only.then), label(tree, arm, node)
        line = f"{behind.title} {only.label}: {only.because}"
        own = tuple(one for one in found.text.lines if one != only.because)
        return replace(found, text=Label(behind.arm, found.text.title, (*own, line, *behind.lines)))
    children = [_box(tree, depth + 1, inner, inner.then) for inner in node.arms] if isinstance(node, Branch) else []
    return _Box(node, depth, label(tree, arm, node), children)


@dataclass(frozen=True)
class _Layout:
    """Where columns begin, how wide they are, and each box's lines and height, for one size of letters."""

    font: float
    lefts: list[float]
    widths: list[float]
    lines: dict[int, list[tuple[str, str]]]
    heights: dict[int, float]

    @staticmethod
    def of(boxes: list[_Box], font: float) -> _Layout:
        columns = range(1 + max(box.depth for box in boxes))
        texts = [[line for box in boxes if box.depth == depth for line in box.text.all()] for depth in columns]
        shares = [min(1.0, max(NARROWEST, max(map(len, found)) / FULL_LETTERS)) for found in texts]
        unit = (PAGE_INCHES[0] - 2 * MARGIN_INCHES) / sum(shares)
        lefts = [MARGIN_INCHES + unit * sum(shares[:depth]) for depth in columns]
        widths = [unit * share - GAP_INCHES for share in shares]
        lines = {id(box): _wrapped(box, widths[box.depth], font) for box in boxes}
        heights = {key: len(found) * font * LINE_POINTS / 72 + PADDING_INCHES for key, found in lines.items()}
        return _Layout(font, lefts, widths, lines, heights)


def _draw(axes: Axes, tree: Tree) -> None:
    root = _box(tree, 0, None, tree.root)
    boxes, leaves = list(root.all()), list(root.leaves())
    top, bottom = PAGE_INCHES[1] - 0.75, 0.6
    font = LARGEST_FONT
    while True:
        layout = _Layout.of(boxes, font)
        needed = sum(layout.heights[id(leaf)] + PADDING_INCHES for leaf in leaves)
        if needed <= top - bottom or font <= SMALLEST_FONT:
            break
        font -= 0.2
    spare = max(0.0, (top - bottom - needed) / max(1, len(leaves)))
    y = top
    for leaf in leaves:
        height = layout.heights[id(leaf)]
        leaf.middle = y - height / 2
        y -= height + PADDING_INCHES + spare
    _place(root)
    axes.text(MARGIN_INCHES, PAGE_INCHES[1] - 0.4, "Which PEFT method?", fontsize=14, weight="bold", va="center")
    for row, line in enumerate(textwrap.wrap(note(tree), 190)):
        axes.text(MARGIN_INCHES, 0.42 - 0.12 * row, line, fontsize=6.5, color="#444444", va="center")
    for box in boxes:
        for child in box.children:
            _connect(axes, box, child, layout)
    for box in boxes:
        _draw_box(axes, box, layout)


def _place(box: _Box) -> None:
    for child in box.children:
        _place(child)
    if box.children:
        box.middle = (box.children[0].middle + box.children[-1].middle) / 2


def _wrapped(box: _Box, inches: float, font: float) -> list[tuple[str, str]]:
    """Lines with their kind: the arm, the title, what stands beneath."""
    inside = (inches - PADDING_INCHES) * 72 / font  # in letters' heights
    plain, bold = max(10, int(inside / 0.58)), max(10, int(inside / 0.66))
    found = [("arm", line) for line in textwrap.wrap(box.text.arm, plain)]
    found += [("title", line) for line in textwrap.wrap(box.text.title, bold)]
    return found + [("line", one) for text in box.text.lines if text for one in textwrap.wrap(text, plain)]


def _draw_box(axes: Axes, box: _Box, layout: _Layout) -> None:
    from matplotlib.patches import FancyBboxPatch

    fill, edge = FILLS[type(box.node)]
    left, width, height = layout.lefts[box.depth], layout.widths[box.depth], layout.heights[id(box)]
    axes.add_patch(
        FancyBboxPatch(
            (left, box.middle - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=fill,
            edgecolor=edge,
            linewidth=0.7,
            linestyle="-" if isinstance(box.node, Branch | Shortlist) else (0, (3, 2)),
        )
    )
    lines = layout.lines[id(box)]
    step = layout.font * LINE_POINTS / 72
    y = box.middle + (len(lines) - 1) * step / 2
    for kind, line in lines:
        axes.text(
            left + PADDING_INCHES / 2,
            y,
            line,
            fontsize=layout.font,
            weight="bold" if kind == "title" else "normal",
            style="italic" if kind == "arm" else "normal",
            color=edge if kind == "arm" else "#1c1f24",
            va="center",
        )
        y -= step


def _connect(axes: Axes, box: _Box, child: _Box, layout: _Layout) -> None:
    start = layout.lefts[box.depth] + layout.widths[box.depth]
    end = layout.lefts[child.depth]
    middle = (start + end) / 2
    corners = [start, middle, middle, end], [box.middle, box.middle, child.middle, child.middle]
    axes.plot(*corners, color="#5b6470", linewidth=0.7, solid_joinstyle="round")
