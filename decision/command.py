"""`adaptermux-decide`: which PEFT method to use, and what that rests on."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from server import __version__

if TYPE_CHECKING:
    from decision.question import Question
    from decision.tree import Tree

ASKED = "--task-type intent --train-rows 800 --adapters 500 --hot 50 --rps 200 --p95-ms 50 --memory-gib 8 --device cpu"
EXAMPLES = {
    "ask": f"adaptermux-decide ask {ASKED}",
    "sensitivity": "adaptermux-decide sensitivity --move train-rows --task-type topic --train-rows 500",
    "matrix": "adaptermux-decide matrix --adapters 100 --rps 50",
    "render": "adaptermux-decide render --output tree.svg",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 misuse."""
    flags = make_parser().parse_args(arguments)
    from decision.errors import DecisionError, QuestionError
    from decision.rows import RowsError

    try:
        return int(flags.verb_function(flags))
    except QuestionError as error:
        print(f"adaptermux-decide: {error}", file=sys.stderr)
        return 2
    except (DecisionError, RowsError) as error:
        print(f"adaptermux-decide: {error}", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """The flags of every verb."""
    raw = argparse.RawDescriptionHelpFormatter
    examples = "\n".join(f"  {example}" for example in EXAMPLES.values())
    parser = argparse.ArgumentParser(
        prog="adaptermux-decide", description="Say which PEFT method to use, and what that rests on.",
        epilog=f"examples:\n{examples}", formatter_class=raw,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"adaptermux {__version__}")
    choices = parser.add_subparsers(required=True, metavar="VERB")

    def add_verb(name: str, purpose: str) -> argparse.ArgumentParser:
        verb = choices.add_parser(
            name, help=purpose[0].lower() + purpose[1:-1], description=purpose,
            epilog=f"example:\n  {EXAMPLES[name]}", formatter_class=raw,
        )  # fmt: skip
        verb.add_argument("--evidence", type=Path, metavar="DIR", help="folder of rows (those that come with it)")
        verb.add_argument("--prices", type=Path, metavar="FILE", help="table of prices (our examples)")
        return verb

    ask = add_verb("ask", "Answer one question.")
    _add_question(ask)
    ask.add_argument("--json", action="store_true", help="print the answer as JSON")
    ask.set_defaults(verb_function=_ask)

    moved = add_verb("sensitivity", "Say how the answer changes as one input moves.")
    moved.add_argument("--move", required=True, metavar="INPUT", help="the flag of the input, such as train-rows")
    moved.add_argument("--from", dest="low", type=float, metavar="X", help="lowest value (a thirtieth of it)")
    moved.add_argument("--to", dest="high", type=float, metavar="X", help="highest value (thirty times it)")
    _add_question(moved)
    moved.add_argument("--json", action="store_true", help="print JSON, one object a line")
    moved.set_defaults(verb_function=_sensitivity)

    matrix = add_verb("matrix", "Answer every kind of task at every measured number of rows.")
    matrix.add_argument("--format", choices=("text", "md", "json"), default="text", help="(%(default)s)")
    matrix.add_argument("--rows", type=int, action="append", default=[], metavar="N", help="(the measured ones)")
    _add_question(matrix, leaves_out=("task_type", "train_rows"))
    matrix.set_defaults(verb_function=_matrix)

    render = add_verb("render", "Write the whole tree, on one page.")
    render.add_argument(
        "--format", choices=("pdf", "svg", "png", "md", "html"), help="(by the ending of --output, else md)"
    )
    render.add_argument("--output", type=Path, metavar="FILE", help="file to write (tree.FORMAT; Markdown to stdout)")
    render.set_defaults(verb_function=_render)
    return parser


def _add_question(parser: argparse.ArgumentParser, leaves_out: Sequence[str] = ()) -> None:
    """One flag for every field of a question."""
    from decision.question import Question

    for name, field in Question.model_fields.items():
        if name in leaves_out:
            continue
        flag, shown = f"--{name.replace('_', '-')}", (field.description or "").replace("%", "%%")
        choices = [str(value) for value in get_args(field.annotation) if isinstance(value, str)]
        if field.annotation is bool:
            parser.add_argument(flag, action="store_true", default=None, help=shown)
        elif field.is_required():
            parser.add_argument(flag, required=True, metavar="X", help=shown)
        else:
            default = "" if field.default is None else f" (default {field.default})"
            parser.add_argument(flag, choices=choices or None, metavar=None if choices else "X", help=shown + default)


def _ask(flags: argparse.Namespace) -> int:
    answer = _tree(flags).answer(question_of(flags))
    print(answer.model_dump_json(indent=2) if flags.json else answer.text(), end="\n" if flags.json else "")
    return 0


def _sensitivity(flags: argparse.Namespace) -> int:
    from decision.sensitivity import sensitivity

    field = flags.move.lstrip("-").replace("-", "_")
    spans = sensitivity(_tree(flags), question_of(flags), field, flags.low, flags.high)
    for span in spans:
        if flags.json:
            print(json.dumps(span.record()))
        else:
            print(span.text(field))
    return 0


def _matrix(flags: argparse.Namespace) -> int:
    from decision.matrix import matrix, render

    tree = _tree(flags)
    question = question_of(flags, task_type=tree.task_types()[0], train_rows=1)
    print(render(matrix(tree, question, flags.rows), flags.format), end="")
    return 0


def _render(flags: argparse.Namespace) -> int:
    from decision.drawing import FORMS, render
    from decision.errors import QuestionError
    from decision.outline import markdown

    form = flags.format or (flags.output.suffix[1:] if flags.output else "md")
    if form not in FORMS:
        text = f"--output `{flags.output}` ends in none of {', '.join(FORMS)}; name one with --format"
        raise QuestionError(text, "output")
    if form == "md" and flags.output is None:
        print(markdown(_tree(flags)), end="")
        return 0
    path = flags.output or Path(f"tree.{form}")
    render(_tree(flags), path, form)
    print(path)
    return 0


def _tree(flags: argparse.Namespace) -> Tree:
    from decision.cost import FILE, Prices
    from decision.evidence import FOLDER, Evidence
    from decision.tree import Tree

    return Tree(Evidence.read(flags.evidence or FOLDER), Prices.read(flags.prices or FILE))


def question_of(flags: argparse.Namespace, **others: Any) -> Question:
    """What flags ask. Raises QuestionError."""
    from decision.question import Question, ask

    values: dict[str, Any] = vars(flags) | others
    return ask({name: values[name] for name in Question.model_fields if values.get(name) is not None})
