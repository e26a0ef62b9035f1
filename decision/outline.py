"""The tree for people: what stands at each node, and the whole of it as nested lists."""

from __future__ import annotations

from dataclasses import dataclass

from decision.answer import money, percent, size
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
    """What the drawing as a whole rests on."""
    runs = len(tree.evidence.qualities)
    commits = sorted({row.provenance.commit for row in tree.evidence.qualities})
    serving = tree.serving("cpu", bases()[tree.evidence.about.base].id)
    price = money(tree.prices.cpu_per_hour, tree.prices.currency)
    return (
        f"Of the candidates that are shown to be within {100 * MARGIN:g} point of the best, the cheapest that meets "
        f"the limits of latency, rate and memory. Accuracy: {runs} final runs on {tree.evidence.about.base} (commits "
        f"{', '.join(commits) or 'none'}). Rates: the highest of a replica, on {serving.machine or 'no machine'}. "
        f"Prices are examples: {price} an hour of CPU."
    )


def _candidates(tree: Tree, node: Shortlist, arm: Arm | None) -> list[str]:
    """Accuracy where the stretch begins, bytes, and what a replica of the CPU service takes."""
    quality = tree.qualities[node.task_type]
    rows = max(quality.sizes[0], arm.start or 1) if arm is not None else quality.sizes[0]
    question = Question(task_type=node.task_type, train_rows=rows, base=tree.evidence.about.base)
    options = {option.candidate: option for option in tree.answer(question).options}
    lines = []
    for name in node.names:
        option = options[name]
        assert option.accuracy is not None
        rate = f"{option.texts_per_s:,.0f} texts/s" if option.texts_per_s is not None else "serving not measured"
        lines.append(f"{percent(option.accuracy)} at {rows:,} rows, {size(option.adapter_bytes)}, {rate}")
    return lines
