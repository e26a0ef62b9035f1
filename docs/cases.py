"""Questions that teams have, asked of the decision tree: the generated parts of docs/cases.md."""

from __future__ import annotations

import argparse
import shlex
from functools import cache
from pathlib import Path
from textwrap import shorten

from pydantic import Field

from decision.answer import GIB, Answer, money
from decision.base_shape import bases
from decision.command import make_parser, question_of
from decision.facts import Facts, read_tables
from decision.fit import QUANTISED_BYTES, WEIGHT_BYTES
from decision.literature import chapters
from decision.method_facts import PARAMETER_BYTES, facts_of
from docs import evidence
from docs.tables import MIB, NOTHING, table

FILE = Path(__file__).parent / "cases.toml"
LONGEST = 200
"""Letters of a reason in a table."""


class Case(Facts):
    title: str
    situation: str
    ask: str
    """Flags of `adaptermux-decide ask`."""
    others: dict[str, str] = Field(default_factory=dict)
    """What is changed of it, by what that is called: flags that come after."""


@cache
def cases() -> dict[str, Case]:
    return read_tables(FILE, Case)


@cache
def answer(flags: str) -> Answer:
    """What the command would answer."""
    parsed: argparse.Namespace = make_parser().parse_args(["ask", *shlex.split(flags)])
    return evidence.tree().answer(question_of(parsed))


def cases_part() -> str:
    """Every case: what is asked, the answer as the command prints it, and what becomes of it when something changes."""
    parts = []
    for case in cases().values():
        found = answer(case.ask)
        parts += [f"## {case.title}", "", case.situation.strip(), ""]
        parts += ["```sh", f"adaptermux-decide ask {case.ask}", "```", "", "```text", found.text().rstrip(), "```", ""]
        parts += [_decided(found), "", "What changes it:", ""]
        head = ("if", "the answer", "memory of a replica", "replicas", "cost a month", "because")
        parts += [f"| {' | '.join(head)} |", "|---|---|---|--:|--:|---|"]
        for title, flags in case.others.items():
            other = answer(f"{case.ask} {flags}")
            because = shorten(other.because, LONGEST, placeholder=" …")
            cells = (f"{title} (`{flags}`)", _short(other), _memory(other), *_cost(other), because)
            parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def cases_table() -> str:
    """The cases and their answers in short."""
    rows = []
    for case in cases().values():
        found = answer(case.ask)
        option = found.choice
        accuracy = points_of = cost = NOTHING
        if option is not None and option.accuracy is not None:
            accuracy = (
                f"{100 * option.accuracy.value:.1f} [{100 * option.accuracy.low:.1f}, {100 * option.accuracy.high:.1f}]"
            )
        if option is not None and option.cost is not None:
            cost = money(option.cost.per_month, option.cost.currency)
        if found.runner_up is not None:
            points_of = f"`{found.runner_up.candidate}`"
        rows.append((case.title, _short(found), accuracy, cost, found.confidence, points_of))
    caption = (
        "What the tree answers to three cases (`docs/cases.md` has them whole, with what changes the answer): "
        "accuracy in %, cost a month by the example prices, how sure it is, and what comes next."
    )
    head = ("case", "answer", "accuracy, %", "cost", "confidence", "runner-up")
    return table(head, rows, "llllll", caption, "cases")


def room_table() -> str:
    """What a base of billions and its adapters take on a card, by formula."""
    chapter, card = (
        chapters()["decoder"],
        next(size for case in cases().values() if (size := answer(case.ask).question.memory_gib) and "gpu" in case.ask),
    )
    lines = [
        f"| base | weights, bfloat16 | weights, 4 bits | an adapter | adapters beside it in {card:g} GiB | beside it "
        "in 4 bits |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, shape in bases().items():
        if shape.kind != "decoder":
            continue
        number = facts_of(chapter.method).num_parameters(shape, chapter.options) or 0
        each = PARAMETER_BYTES * number
        whole, packed = shape.parameters * WEIGHT_BYTES["gpu"], shape.parameters * QUANTISED_BYTES
        room = [max(0, int((card * GIB - held) // each)) for held in (whole, packed)]
        lines.append(
            f"| {name} | {whole / GIB:.1f} GiB | {packed / GIB:.1f} GiB | {each / MIB:.0f} MiB | {room[0]:,} | "
            f"{room[1]:,} |"
        )
    shown = ", ".join(f"{option} {value:g}" for option, value in chapter.options.items() if value)
    note = (
        f"By formula, adapters of `{chapter.method}` ({shown}) in float32, without their heads and without what a "
        "pass needs: nothing of it was measured."
    )
    return "\n".join([*lines, "", note]) + "\n"


def _decided(found: Answer) -> str:
    """In a sentence, what would settle what is open."""
    if not found.missing:
        return "Nothing is open."
    first = found.missing[0]
    settled = f" It is settled by `{first.command}`." if first.command else ""
    return f"What is open first: {first.what}.{settled}"


def _memory(found: Answer) -> str:
    option = found.choice or next(iter(found.options), None)
    return NOTHING if option is None or option.memory_gib is None else f"{option.memory_gib:.3g} GiB"


def _cost(found: Answer) -> tuple[str, str]:
    """Replicas, and money a month."""
    cost = None if found.choice is None else found.choice.cost
    return (NOTHING, NOTHING) if cost is None else (f"{cost.replicas:,}", money(cost.per_month, cost.currency))


def _short(found: Answer) -> str:
    if found.choice is None:
        return found.verdict
    marked = {"literature": " (from literature)"}.get(found.verdict, "")
    return f"`{found.choice.candidate}`{marked}"
