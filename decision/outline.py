"""The tree for people: what stands at each node, and the whole of it as nested lists."""

from __future__ import annotations

import re
from dataclasses import dataclass

from decision.answer import Option, money, percent, size
from decision.base_shape import bases
from decision.comparison import MARGIN
from decision.literature import chapters
from decision.question import Question
from decision.tree import Arm, Branch, Node, Published, Shortlist, Tree, Unmeasured


@dataclass(frozen=True, slots=True)
class Label:
    """arm: the answer that leads here; title: what is asked or said; lines: beneath it."""

    arm: str
    title: str
    lines: tuple[str, ...]

    def all(self) -> tuple[str, ...]:
        return self.arm, self.title, *self.lines


def label(tree: Tree, arm: Arm | None, node: Node) -> Label:
    """Of one node."""
    led = "" if arm is None else arm.label
    because = () if arm is None or not arm.because or isinstance(node, Shortlist | Published) else (arm.because,)
    match node:
        case Branch(asks, _, _):
            return Label(led, asks, because)
        case Shortlist(_, names):
            return Label(led, " or ".join(names), tuple(_candidates(tree, node, arm)))
        case Published(name):
            chapter = chapters()[name]
            keys = dict.fromkeys(key for reason in chapter.reasons for key in reason.sources)
            options = ", ".join(f"{option} {value:g}" for option, value in chapter.options.items() if value)
            return Label(led, f"from literature: {chapter.method}", (options, ", ".join(keys)))
        case Unmeasured(what, command):
            return Label(led, "undecided", (what, command))


def brief(tree: Tree, arm: Arm | None, node: Node) -> Label:
    """Of one node, in less: of a shortlist the cheapest for one adapter without limits, and the names of the others."""
    found = label(tree, arm, node)
    if isinstance(node, Published):
        options, keys = found.lines
        return Label(found.arm, found.title, (options, ", ".join(map(_cited, keys.split(", ")))))
    if not isinstance(node, Shortlist):
        return found
    answer = tree.answer(_asked_first(tree, node, arm))
    led = found.arm
    others = [name for name in node.names if answer.choice is None or name != answer.choice.candidate]
    lines = [f"or {', '.join(others)}"] if others and answer.choice is not None else []
    if answer.choice is None:
        return Label(led, " or ".join(node.names), (f"{answer.verdict}: not measured in serving",))
    return Label(led, answer.choice.candidate, (*_figures(answer.choice, answer.question.train_rows), *lines))


def markdown(tree: Tree) -> str:
    """The tree as nested lists."""
    lines = []
    for depth, arm, node in tree.nodes():
        found = label(tree, arm, node)
        led = f"*{found.arm}* → " if found.arm else ""
        beneath = f": {'; '.join(found.lines)}" if found.lines else ""
        lines.append(f"{'  ' * depth}- {led}**{found.title}**{beneath}")
    return "\n".join(lines) + "\n" + f"\n{note(tree)}\n"


def note(tree: Tree) -> str:
    """How the drawing as a whole is to be read, and what it rests on."""
    reference = tree.evidence.about.reference
    yardstick = f"`{reference}`, or to what is shown to be better than it" if reference else "the best"
    return (
        f"Of the candidates that are shown to lose no more than {100 * MARGIN:g} point to {yardstick}, the cheapest "
        f"that meets the limits of latency, rate and memory. {basis(tree)}"
    )


def basis(tree: Tree) -> str:
    """The rows, machines and prices that a tree rests on."""
    commits = sorted({row.provenance.commit for row in tree.evidence.qualities})
    serving = tree.serving("cpu", bases()[tree.evidence.about.base].id)
    price = money(tree.prices.cpu_per_hour, tree.prices.currency)
    return (
        f"Accuracy: {len(tree.evidence.qualities):,} final runs on {tree.evidence.about.base} (commits "
        f"{', '.join(commits) or 'none'}). Rates: the highest of a replica, on {serving.machine or 'no machine'}. "
        f"Prices are examples: {price} an hour of CPU."
    )


def _candidates(tree: Tree, node: Shortlist, arm: Arm | None) -> list[str]:
    """Accuracy where the stretch begins, bytes, and what a replica of the CPU service takes."""
    answer = tree.answer(_asked_first(tree, node, arm))
    options = {option.candidate: option for option in answer.options}
    return [", ".join(_figures(options[name], answer.question.train_rows)) for name in node.names]


def _cited(key: str) -> str:
    """A key of the bibliography for people: the first author and the year."""
    found = re.match(r"([a-z]+)(\d{4})", key)
    return f"{found[1].capitalize()} {found[2]}" if found else key


def _asked_first(tree: Tree, node: Shortlist, arm: Arm | None) -> Question:
    """For one adapter, without limits, with the fewest rows of the stretch that were measured or lie between."""
    fewest = tree.qualities[node.task_type].sizes[0]
    rows = max(fewest, arm.start or 1) if arm is not None else fewest
    return Question(task_type=node.task_type, train_rows=rows, base=tree.evidence.about.base)


def _figures(option: Option, rows: int) -> tuple[str, ...]:
    assert option.accuracy is not None
    rate = f"{option.texts_per_s:,.0f} texts/s" if option.texts_per_s is not None else "serving not measured"
    return f"{percent(option.accuracy)} at {rows:,} rows", size(option.adapter_bytes), rate
