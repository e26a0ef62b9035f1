"""`adaptermux-decide`: which PEFT method to use, and what that rests on."""

from __future__ import annotations

import argparse
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
        verb.add_argument(
            "--prices", type=Path, metavar="FILE", help="table of prices (the examples that come with it)"
        )
        return verb

    ask = add_verb("ask", "Answer one question.")
    _add_question(ask)
    ask.add_argument("--json", action="store_true", help="print the answer as JSON")
    ask.set_defaults(verb_function=_ask)
    return parser


def _add_question(parser: argparse.ArgumentParser) -> None:
    """One flag for every field of a question."""
    from decision.question import Question

    for name, field in Question.model_fields.items():
        flag, shown = f"--{name.replace('_', '-')}", (field.description or "").replace("%", "%%")
        choices = [str(value) for value in get_args(field.annotation) if isinstance(value, str)]
        if field.annotation is bool:
            parser.add_argument(flag, action="store_true", default=None, help=shown)
        elif field.is_required():
            parser.add_argument(flag, required=True, metavar="X", help=shown)
        else:
            default = (
                "" if field.default is None else f" (default {field.default:{'g' * isinstance(field.default, float)}})"
            )
            parser.add_argument(flag, choices=choices or None, metavar=None if choices else "X", help=shown + default)


def _ask(flags: argparse.Namespace) -> int:
    answer = _tree(flags).answer(_question(flags))
    print(answer.model_dump_json(indent=2) if flags.json else answer.text(), end="\n" if flags.json else "")
    return 0


def _tree(flags: argparse.Namespace) -> Tree:
    from decision.cost import FILE, Prices
    from decision.evidence import FOLDER, Evidence
    from decision.tree import Tree

    return Tree(Evidence.read(flags.evidence or FOLDER), Prices.read(flags.prices or FILE))


def _question(flags: argparse.Namespace) -> Question:
    from decision.question import Question, ask

    values: dict[str, Any] = vars(flags)
    return ask({name: values[name] for name in Question.model_fields if values.get(name) is not None})
