"""Figures of the documents, drawn by code: the same bytes each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

from docs.experiment_figures import accuracy_figure, differences_figure, sizes_figure, sweep_figure, tree_figure
from training.figures import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

INK, FROZEN, FROZEN_EDGE, LINE = "#202020", "#ececec", "#8a8a8a", "#505050"
LORA, BOTTLENECK, PREFIX, IA3 = "#0072B2", "#D55E00", "#009E73", "#A6417F"
TINTS = {LORA: "#d6e8f4", BOTTLENECK: "#fbe0d0", PREFIX: "#d2efe5", IA3: "#f3dbe9"}
STYLE: dict[RcKeyType, Any] = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 9,
    "svg.fonttype": "path",
    "svg.hashsalt": "adaptermux",
}
WIDTH_IN, HEIGHT_IN, SCALE = 7.0, 2.42, 18.0
"""SCALE: units of the drawing to an inch."""


def methods_figure() -> bytes:
    """Where each method acts in a transformer block, as SVG."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, WIDTH_IN * SCALE)
        axes.set_ylim(0, HEIGHT_IN * SCALE)
        axes.set_axis_off()
        _draw_block(axes)
        _draw_legend(axes)
        return svg(figure)


FIGURES: dict[str, Callable[[], bytes]] = {
    "methods": methods_figure,
    "tree": tree_figure,
    "accuracy": accuracy_figure,
    "differences": differences_figure,
    "sizes": sizes_figure,
    "lora": sweep_figure,
}
"""By file name, without ending, in `docs/figures`."""


def _draw_block(axes: Axes) -> None:
    rows = {"q": 36.0, "k": 27.0, "v": 18.0}
    main = rows["k"]
    _line(axes, (1, main), (5, main))
    axes.text(1.2, main + 1, "$x$", ha="left", va="bottom", color=INK)
    for name, y in rows.items():
        _line(axes, (5, main), (5, y), (8, y), arrow=True)
        _linear(axes, 8, y, f"$W_{name}$", is_default=name != "k")
        if name == "q":
            _line(axes, (14.5, y), (34, y), arrow=True)
        else:
            _line(axes, (14.5, y), (18.6, y), arrow=True)
            _gate(axes, 20.2, y, f"$\\ell_{name}$")
            _line(axes, (21.8, y), (34, y), arrow=True)
            _box(axes, 25, y - 3.9, 5.6, 3.2, f"$P_{name.upper()}$", PREFIX)
            _line(axes, (30.6, y - 2.3), (34, y - 2.3), colour=PREFIX, arrow=True)
    _box(axes, 34, 13.2, 8.5, 25.4, "atten-\ntion\n\n$\\mathrm{softmax}$\n$(qK^{\\top})V$", FROZEN_EDGE, size=7.5)
    _line(axes, (42.5, main), (45, main), arrow=True)
    _linear(axes, 45, main, "$W_o$")
    _line(axes, (51.5, main), (53.5, main), arrow=True)
    _bottleneck(axes, 53.5, main)
    _line(axes, (61, main), (63.4, main), arrow=True)
    _add(axes, 64.8, main)
    _line(axes, (5, main), (5, 42.5), (64.8, 42.5), (64.8, main + 1.4), arrow=True)
    _line(axes, (66.2, main), (68, main), arrow=True)
    _box(axes, 68, main - 2.6, 4, 5.2, "LN", FROZEN_EDGE, size=7.5)
    _line(axes, (72, main), (77, main), arrow=True)
    _linear(axes, 77, main, "$W_1$")
    _line(axes, (83.5, main), (85.2, main), arrow=True)
    _box(axes, 85.2, main - 2.6, 3.6, 5.2, "$\\phi$", FROZEN_EDGE)
    _line(axes, (88.8, main), (90.7, main), arrow=True)
    _gate(axes, 92.3, main, "$\\ell_f$")
    _line(axes, (93.9, main), (95.8, main), arrow=True)
    _linear(axes, 95.8, main, "$W_2$")
    _line(axes, (102.3, main), (104.2, main), arrow=True)
    _bottleneck(axes, 104.2, main)
    _line(axes, (111.7, main), (113.6, main), arrow=True)
    _add(axes, 115, main)
    _line(axes, (74.5, main), (74.5, 42.5), (115, 42.5), (115, main + 1.4), arrow=True)
    _line(axes, (116.4, main), (118, main), arrow=True)
    _box(axes, 118, main - 2.6, 4, 5.2, "LN", FROZEN_EDGE, size=7.5)
    _line(axes, (122, main), (125.2, main), arrow=True)


def _draw_legend(axes: Axes) -> None:
    entries = (
        (LORA, "LoRA: $Wx + \\frac{\\alpha}{r}BAx$; dashed: where all linear layers are chosen"),
        (BOTTLENECK, "Bottleneck: $h + W_{\\uparrow}\\,\\sigma(W_{\\downarrow}h)$; Pfeiffer's variant: the right one"),
        (PREFIX, "Prefix: $p$ learnt rows in front of $K$ and $V$"),
        (IA3, "IA3: products by elements, $\\ell_k \\odot K$, $\\ell_v \\odot V$, $\\ell_f \\odot \\phi(W_1x)$"),
    )  # fmt: skip
    for index, (colour, text) in enumerate(entries):
        y = 15.4 - 3.9 * index
        axes.add_patch(Rectangle((47, y - 0.9), 2.6, 1.8, facecolor=TINTS[colour], edgecolor=colour, linewidth=0.9))
        axes.text(50.8, y, text, ha="left", va="center", color=INK, fontsize=8.2)
    axes.text(1.2, 7.6, "grey: frozen, shared by all", ha="left", va="center", color=INK, fontsize=8.2)
    axes.text(1.2, 4.2, "LN: layer norm; $\\phi$: activation", ha="left", va="center", color=INK, fontsize=8.2)


def _linear(axes: Axes, x: float, y: float, text: str, is_default: bool = False) -> None:
    """A frozen linear layer with LoRA's product in parallel above it."""
    _box(axes, x, y - 2.2, 6.5, 4.4, text, FROZEN_EDGE)
    _box(axes, x + 0.7, y + 2.9, 5.1, 2.5, "$BA$", LORA, is_dashed=not is_default, size=7)


def _bottleneck(axes: Axes, x: float, y: float) -> None:
    _box(axes, x, y - 3.6, 7.5, 7.2, "$W_{\\uparrow}\\sigma\\,W_{\\downarrow}$", BOTTLENECK, size=7.4)


def _gate(axes: Axes, x: float, y: float, text: str) -> None:
    axes.add_patch(Circle((x, y), 1.6, facecolor=TINTS[IA3], edgecolor=IA3, linewidth=0.9))
    axes.text(x, y - 0.05, "$\\odot$", ha="center", va="center", color=IA3, fontsize=8)
    axes.text(x, y + 2.0, text, ha="center", va="bottom", color=INK, fontsize=8.5)


def _add(axes: Axes, x: float, y: float) -> None:
    axes.add_patch(Circle((x, y), 1.4, facecolor="white", edgecolor=LINE, linewidth=0.8))
    axes.text(x, y - 0.1, "+", ha="center", va="center", color=INK, fontsize=8)


def _box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str,
    colour: str,
    size: float = 8.5,
    is_dashed: bool = False,
) -> None:
    patch = FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.6",
        facecolor=TINTS.get(colour, FROZEN),
        edgecolor=colour,
        linewidth=0.9,
        linestyle=(0, (2.2, 1.4)) if is_dashed else "solid",
    )
    axes.add_patch(patch)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=INK, fontsize=size)


def _line(axes: Axes, *points: tuple[float, float], colour: str = LINE, arrow: bool = False) -> None:
    axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.8, solid_capstyle="butt", zorder=0.5)
    if arrow:
        head = {"arrowstyle": "-|>,head_width=0.14,head_length=0.3", "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=points[-1], xytext=points[-2], arrowprops={"color": colour, "linewidth": 0.8, **head})
