"""Pictures of a measurement, for people to look at. Drawn without a screen, and without matplotlib's global state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.metrics import Bin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from training.measurement import Trust

MAX_NUMBERED = 30
"""With more labels, a number in every cell could not be read."""
MAX_CHARACTERS = 28
DOTS_PER_INCH = 150
BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#6b7280"


def confusion(counts: NDArray[np.int64], labels: Sequence[str], path: Path) -> None:
    """Truth in rows, answers in columns, coloured by the share of the row. counts [truth, predicted].

    Up to 30 labels have their counts written into the cells; with more, colours are spread so that one mistake shows.
    """
    from matplotlib.colors import PowerNorm

    num_labels = len(labels)
    is_numbered = num_labels <= MAX_NUMBERED
    cell, font = (0.42, 8) if is_numbered else (0.15, 5.5)
    margin = 0.075 * min(MAX_CHARACTERS, max(map(len, labels))) + 0.9
    size = max(2.4, cell * num_labels) + margin
    figure = _figure(size + 0.6, size)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(1 if is_numbered else 0.4, vmin=0, vmax=1))
    names = [name if len(name) <= MAX_CHARACTERS else name[: MAX_CHARACTERS - 1] + "…" for name in labels]
    axes.set_xticks(range(num_labels), names, rotation=90, fontsize=font, parse_math=False)
    axes.set_yticks(range(num_labels), names, fontsize=font, parse_math=False)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    if is_numbered:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.55 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=font - 1, color=colour)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label("share of the truth's rows")
    _save(figure, path)


def reliability(before: Sequence[Bin], after: Sequence[Bin], trust: Trust, path: Path) -> None:
    """Accuracy over confidence; what lies on the diagonal can be taken at its word. Sizes of dots follow the rows."""
    figure = _figure(5.2, 4.6)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for bins, colour, name, error in (
        (before, ORANGE, "logits as they are", trust.error_before),
        (after, BLUE, f"temperature {trust.temperature:g}", trust.error_after),
    ):
        x, y = [one.confidence for one in bins], [one.accuracy for one in bins]
        axes.plot(x, y, color=colour, linewidth=1.5, label=f"{name}: error {error:.3f}")
        axes.scatter(x, y, s=[12 + 200 * one.share for one in bins], color=colour, alpha=0.6)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")
    axes.legend(loc="lower right", frameon=False)
    _save(figure, path)


def scatter(truth: NDArray[Any], predicted: NDArray[Any], name: str, path: Path) -> None:
    """Answered numbers over true ones."""
    figure = _figure(5, 4.6)
    axes = figure.add_subplot()
    ends = [float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max()))]
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle="--")
    axes.scatter(truth, predicted, s=10, color=BLUE, alpha=0.4, linewidths=0)
    axes.set_xlabel(f"{name}: truth", parse_math=False)
    axes.set_ylabel(f"{name}: answer", parse_math=False)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks
        figure.savefig(path, dpi=DOTS_PER_INCH, bbox_inches="tight")
