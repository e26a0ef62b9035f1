"""A chart as inline SVG: axes with round ticks, marks with their intervals, lines, and names that do not overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10

from decision.web.markup import Markup, element, joined

LETTER, LINE = 6.2, 13.0
"""Width and height of a letter, about."""
SIDE_TICKS, BOTTOM_TICKS = 5, 6
"""At most, along an axis."""
DECADE = (1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Axis:
    """Values from low to high, drawn from start to end."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool
    show: Callable[[float], str]

    def at(self, value: float) -> float:
        """Where a value is drawn; one beyond the axis at its end."""
        kept = min(max(value, self.low), self.high)
        if self.is_log:
            share = log10(kept / self.low) / log10(self.high / self.low)
        else:
            share = (kept - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values along it."""
        return _log_ticks(self.low, self.high, most) if self.is_log else _even_ticks(self.low, self.high, most)


def log_axis(values: Iterable[float], start: float, end: float, show: Callable[[float], str]) -> Axis:
    """With a little room on both sides."""
    found = [value for value in values if value > 0] or [1.0]
    return Axis(min(found) / 1.25, max(found) * 1.25, start, end, True, show)


def even_axis(
    values: Iterable[float], start: float, end: float, show: Callable[[float], str], has_zero: bool = False
) -> Axis:
    """From round value to round value."""
    found = [*values, *([0.0] if has_zero else [])] or [0.0]
    low, high = min(found), max(found)
    step = _even_step(low, high, SIDE_TICKS)
    low, high = floor(low / step) * step, ceil(high / step) * step
    return Axis(low, high if high > low else low + step, start, end, False, show)


@dataclass(frozen=True, slots=True)
class Box:
    """A place in the chart."""

    left: float
    top: float
    width: float
    height: float

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.top < other.top + other.height
            and other.top < self.top + self.height
        )


@dataclass
class Plot:
    """One chart on two axes; what is added later is drawn above."""

    width: float
    height: float
    x: Axis
    y: Axis
    parts: list[Markup] = field(default_factory=list)
    taken: list[Box] = field(default_factory=list)
    """Places where no name can stand."""

    def grid(self) -> None:
        """Lines and values of both axes."""
        self.grid_up()
        self.grid_across()

    def grid_up(self) -> None:
        """Of the axis at the side only."""
        for value in self.y.ticks(SIDE_TICKS):
            y = self.y.at(value)
            self.parts.append(element("line", class_="grid", x1=self.x.start, x2=self.x.end, y1=y, y2=y))
            self.write(self.x.start - 5, y + 4, self.y.show(value), anchor="end")

    def grid_across(self) -> None:
        """Of the lower axis only."""
        room = -1e9
        for value in self.x.ticks(BOTTOM_TICKS):
            x, shown = self.x.at(value), self.x.show(value)
            self.parts.append(element("line", class_="grid", x1=x, x2=x, y1=self.y.start, y2=self.y.start + 4))
            half = len(shown) * LETTER / 2
            if x - half > room + 4:
                self.write(min(x, self.width - half), self.y.start + 16, shown, anchor="middle")
                room = x + half

    def line(self, points: Sequence[tuple[float, float | None]], kind: str) -> None:
        """Through values in order; None is a gap."""
        run: list[tuple[float, float]] = []
        for x, y in [*points, (0.0, None)]:
            if y is not None:
                run.append((self.x.at(x), self.y.at(y)))
                continue
            if len(run) > 1:
                self.parts.append(element("polyline", class_=kind, points=_corners(run)))
            elif run:
                self.parts.append(element("circle", class_=f"mark {kind}", cx=run[0][0], cy=run[0][1], r=2))
            run = []

    def ribbon(self, points: Sequence[tuple[float, float, float]], kind: str) -> None:
        """From low to high at every x."""
        if len(points) > 1:
            there = [(self.x.at(x), self.y.at(low)) for x, low, _ in points]
            back = [(self.x.at(x), self.y.at(high)) for x, _, high in reversed(points)]
            self.parts.append(element("polygon", class_=kind, points=_corners([*there, *back])))

    def mark(self, x: float, y: float, kind: str, tells: str, ends: tuple[float, float] | None = None) -> None:
        """A point with what it tells when it is pointed at; ends: of its interval."""
        px, py = self.x.at(x), self.y.at(y)
        size = 5.0 if kind in ("choice", "runner") else 3.6
        shapes = []
        if ends is not None:
            shapes.append(element("line", class_="whisker", x1=px, x2=px, y1=self.y.at(ends[0]), y2=self.y.at(ends[1])))
            self.taken.append(Box(px - 1, self.y.at(ends[1]), 2, self.y.at(ends[0]) - self.y.at(ends[1])))
        if kind == "runner":
            shapes.append(element("polygon", points=_corners(_diamond(px, py, size + 1))))
        elif kind == "worse":
            corner = f"M{px - 3:.1f} {py - 3:.1f}l6 6m0 -6l-6 6"
            shapes.append(element("path", d=corner))
        else:
            shapes.append(element("circle", cx=px, cy=py, r=size))
        self.parts.append(element("g", element("title", tells), *shapes, class_=f"mark {kind}"))
        self.taken.append(Box(px - size, py - size, 2 * size, 2 * size))

    def name(self, x: float, y: float, text: str, kind: str = "") -> None:
        """Beside a point, where there is room; left out where there is none."""
        px, py, width = self.x.at(x), self.y.at(y), len(text) * LETTER
        for left, low in (
            (px + 8, py + 4), (px - 8 - width, py + 4), (px - width / 2, py - 9), (px - width / 2, py + 18),
            (px + 8, py - 8), (px - 8 - width, py - 8), (px + 8, py + 16), (px - 8 - width, py + 16),
        ):  # fmt: skip
            box = Box(left, low - LINE + 3, width, LINE)
            inside = self.x.start <= left and left + width <= self.width and self.y.end - 4 <= box.top
            if inside and low < self.y.start - 1 and not any(box.meets(one) for one in self.taken):
                self.taken.append(box)
                self.write(left, low, text, kind=kind)
                return

    def write(self, x: float, y: float, text: str, anchor: str | None = None, kind: str = "") -> None:
        self.parts.append(element("text", text, x=x, y=y, text_anchor=anchor, class_=kind or None))

    def upright(self, x: float, kind: str) -> None:
        """A line from bottom to top."""
        px = self.x.at(x)
        self.parts.append(element("line", class_=kind, x1=px, x2=px, y1=self.y.end - 3, y2=self.y.start))

    def svg(self, in_words: str) -> Markup:
        """All of it; in_words: for those who do not see it."""
        return drawing(self.width, self.height, self.parts, in_words)


def drawing(width: float, height: float, parts: Sequence[Markup], in_words: str) -> Markup:
    box = f"0 0 {width:g} {height:g}"
    return element("svg", joined(parts), viewBox=box, role="img", aria_label=in_words)


def _corners(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _diamond(x: float, y: float, size: float) -> list[tuple[float, float]]:
    return [(x - size, y), (x, y - size), (x + size, y), (x, y + size)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for steps in (DECADE, (1.0,)):
        found = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(found) <= most:
            return found
    return found[:: ceil(len(found) / most)]


def _even_ticks(low: float, high: float, most: int) -> list[float]:
    step = _even_step(low, high, most)
    return [step * number for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def _even_step(low: float, high: float, most: int) -> float:
    """A round number, of which not many more than that fit between the two."""
    rough = max((high - low) / most, abs(high) * 1e-6, 1e-12)
    power = 10.0 ** floor(log10(rough))
    return next(step * power for step in (*DECADE, 10.0) if step * power >= rough * 0.999)
