"""HTML and SVG from pieces. Whatever is not markup already is escaped, so that no name in a row can become any."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

EMPTY = frozenset({"input", "meta", "circle", "line", "path", "polygon", "polyline", "rect"})
"""Elements that hold nothing."""


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float | bool | None) -> Markup:
    """One element. Attributes lose a `_` at their end and have `-` for others; None and False leave one out."""
    shown = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in EMPTY:
        return Markup(f"<{tag}{shown}/>")
    return Markup(f"<{tag}{shown}>{joined(children)}</{tag}>")


def joined(children: Iterable[str], between: str = "") -> Markup:
    """All of them, one after the other."""
    return Markup(between.join(child if isinstance(child, Markup) else escape(child) for child in children))


def code(text: str) -> Markup:
    """A name or a value. It may be written from right to left, and must not move what stands around it."""
    return element("bdi", text, class_="id")


def prose(text: str) -> Markup:
    """A sentence in which names stand between backticks."""
    parts = text.split("`")
    return joined(code(part) if index % 2 else part for index, part in enumerate(parts))


def _attribute(name: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = name.removesuffix("_").replace("_", "-")
    shown = f"{value:.5g}" if isinstance(value, float) else str(value)
    return f" {name}" if value is True else f' {name}="{escape(shown)}"'
