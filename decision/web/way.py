"""The way through the tree, with what was compared at every step; and the tree as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from decision.answer import Answer, Step, describe
from decision.base_shape import bases
from decision.comparison import MARGIN
from decision.outline import label
from decision.question import Question
from decision.tree import Arm, Branch, Node, Tree
from decision.web.markup import Markup, code, element, joined, prose
from decision.web.query import link


def taken(tree: Tree, path: Sequence[Step]) -> list[tuple[Branch, Arm]]:
    """The nodes of a path, with the arm that was taken at each."""
    found: list[tuple[Branch, Arm]] = []
    node: Node = tree.root
    for step in path:
        assert isinstance(node, Branch), "a path ends at an end of the tree"
        arm = next(one for one in node.arms if one.label == step.answer)
        found.append((node, arm))
        node = arm.then
    return found


def way(tree: Tree, answer: Answer, move: str) -> Markup:
    """Every step with all of its arms: those that were not taken lead to a question that takes them."""
    question = answer.question
    steps = [
        element(
            "li",
            element("p", element("strong", branch.asks), *_compared(question, branch, arm)),
            element(
                "ul", *(_arm(question, branch, one, one is arm, move, f"{place}-{index}")
                        for index, one in enumerate(branch.arms)), class_="arms",
            ),
            _because(arm, place),
        )
        for place, (branch, arm) in enumerate(taken(tree, answer.path))
    ]  # fmt: skip
    steps.append(element("li", _end(answer)))
    return element("section", element("h2", "The way here"), element("ol", *steps, class_="way"), class_="panel")


def whole(tree: Tree, path: Sequence[Step] = (), question: Question | None = None, move: str = "") -> Markup:
    """All of the tree as nested lists, with the path marked; arms are links where there is a question to change."""
    on_path = {id(arm) for _, arm in taken(tree, path)}
    top = label(tree, None, tree.root)

    def shown(branch: Branch, changes: Mapping[str, object]) -> Markup:
        return element("ul", *(line(branch, arm, changes) for arm in branch.arms))

    def line(branch: Branch, arm: Arm, changes: Mapping[str, object]) -> Markup:
        told = label(tree, arm, arm.then)
        name = element("em", arm.label)
        if question is not None:
            changes = {**changes, **_changes(question, branch, arm)}
            name = element("a", arm.label, href=link(question, move, **changes))
        lines = [element("span", one, class_="hint") for one in told.lines if one]
        here = joined([name, " ", element("strong", told.title), *lines])
        inner = shown(arm.then, changes) if isinstance(arm.then, Branch) else ""
        return element("li", here, inner, class_="on" if id(arm) in on_path else None)

    assert isinstance(tree.root, Branch)
    return element("div", element("p", element("strong", top.title)), shown(tree.root, {}), class_="full-tree")


def _compared(question: Question, branch: Branch, arm: Arm) -> list[str]:
    """The number that was asked, between the ends of the arm that it falls into."""
    given = getattr(question, branch.field)
    if arm.start is None and arm.end is None:
        return [" ", element("span", "you say ", code(_plain(given)), class_="hint")]
    low = f"{arm.start:,} ≤ " if arm.start is not None and arm.start > 1 else ""
    high = f" < {arm.end:,}" if arm.end is not None else ""
    numbers = element("span", low, element("strong", f"{given:,}"), high, class_="compared")
    return [" ", numbers]


def _arm(question: Question, branch: Branch, arm: Arm, is_taken: bool, move: str, place: str) -> Markup:
    if is_taken:
        return element("li", element("span", arm.label, class_="arm", aria_current="step", id=f"arm-{place}"))
    to = link(question, move, **_changes(question, branch, arm))
    return element("li", element("a", arm.label, class_="arm", href=to, id=f"arm-{place}"))


def _changes(question: Question, branch: Branch, arm: Arm) -> dict[str, object]:
    """As few as make a question take that arm."""
    if arm.start is not None or arm.end is not None:
        given: int = getattr(question, branch.field)
        if not arm.takes(given):
            start, end = arm.start or 1, arm.end
            given = start if given < start or end is None else end - 1
        return {branch.field: given}
    if branch.field in Question.model_fields:
        return {branch.field: arm.value == "yes" if arm.value in ("yes", "no") else arm.value}
    if getattr(question, branch.field) == arm.value:
        return {}
    # what follows from the base is asked of the first one of which it holds
    others = [question.model_copy(update={"base": name, "base_parameters": None}) for name in bases()]
    first = next(one for one in others if getattr(one, branch.field) == arm.value)
    return {"base": first.base, "base_parameters": None}


def _because(arm: Arm, place: int) -> Markup:
    if not arm.because and not arm.basis:
        return Markup("")
    rows = [element("li", describe(one)) for one in arm.basis]
    told = element("summary", prose(arm.because or "rows"))
    return element("details", told, element("ul", *rows), class_="hint", id=f"rows-{place}")


def _end(answer: Answer) -> Markup:
    """What is at the end of the path, and how it was concluded."""
    good = [one for one in answer.options if one.quality == "not worse"]
    if answer.verdict == "literature" or not answer.path or not answer.options:
        return element("p", element("strong", "No row decides here."), " ", prose(answer.because))
    meeting = [one for one in good if one.serving == "meets"]
    counts = f"{len(answer.options)} measured, {len(good)} good enough, {len(meeting)} of them within the limits"
    worse = f"worse than {answer.yardstick} by {100 * MARGIN:g} point"
    asks = f"Of those not {worse}: which is the cheapest that meets the limits?"
    return element("p", element("strong", asks), " ", element("span", counts, class_="compared"))


def _plain(given: object) -> str:
    if isinstance(given, bool):
        return "yes" if given else "no"
    return str(given)
