"""Tables, lists and figures of numbers as the documents write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from decision.bootstrap import Interval

KIB, MIB = 2**10, 2**20
NOTHING = "–"


def plain_table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """align: a letter a column, l or r; all l by default."""
    rule = {"l": "---", "r": "--:"}
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(rule[one] for one in align or 'l' * len(head))}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str, caption: str, label: str) -> str:
    """With a caption, as the printed documents have it."""
    return f"{plain_table(head, rows, align)}\n: {caption} {{#tbl:{label}}}\n"


def bullets(sentences: Iterable[str]) -> str:
    return "".join(f"- {sentence}\n" for sentence in sentences)


def listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:-1]) + " and " + found[-1] if len(found) > 1 else "".join(found)


def quoted(names: Iterable[str]) -> str:
    return listed(f"`{name}`" for name in names)


def percent(found: Interval) -> str:
    """Of a share, with its interval."""
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def difference(found: Interval) -> str:
    """Of shares, in points, with its interval."""
    return f"{points(found.value)} [{points(found.low)}, {points(found.high)}]"


def points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")
