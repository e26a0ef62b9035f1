"""`adaptermux-train dummy`: write adapters with random weights, for load tests."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

HELP = "write adapters with random weights, for load tests"
DESCRIPTION = """Write adapters with seeded random weights, as fast to serve and as large as trained ones. What they
answer means nothing; their manifest and model card say so."""
EXAMPLE = "adaptermux-train dummy --method lora --count 16 --output adapters"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What can be told of them."""
    parser.add_argument("--method", action="append", required=True, help="PEFT method; may be given several times")
    parser.add_argument("--count", type=int, default=1, help="adapters in all, as many of each method (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder in which they are written")
    parser.add_argument(
        "--base", default="sentence-transformers/all-MiniLM-L6-v2", help="folder or hub id (%(default)s)"
    )
    parser.add_argument("--labels", type=int, default=6, metavar="N", help="labels of each (%(default)s)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="METHOD.NAME=NUMBER", help="such as lora.rank=4"
    )
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")


def run(flags: argparse.Namespace) -> int:
    from server.errors import RecipeError
    from server.methods import method_named
    from training import dummy

    if flags.count < 1 or flags.labels < 1:
        raise RecipeError("--count and --labels must be at least 1")
    methods = [method_named(name) for name in dict.fromkeys(flags.method)]
    options: dict[str, dict[str, float]] = {method.name: {} for method in methods}
    for text in flags.option:
        method_name, name, value = _option(text, options)
        options[method_name][name] = value
    for index, method in enumerate(methods):
        count = flags.count // len(methods) + (index < flags.count % len(methods))
        chosen = options[method.name]
        names = dummy.make(flags.output, method, count, flags.base, flags.labels, options=chosen, seed=flags.seed)
        print(f"{sum(1 for _ in names)} {method.name} adapters with random weights are in {flags.output}")
    return 0


def _option(text: str, methods: Collection[str]) -> tuple[str, str, float]:
    from server.errors import RecipeError

    place, _, value = text.partition("=")
    method, _, name = place.partition(".")
    try:
        if method not in methods:
            raise ValueError
        return method, name, float(value)
    except ValueError:
        known = ", ".join(methods)
        raise RecipeError(f"--option {text}: it must be METHOD.NAME=NUMBER, METHOD one of {known}") from None
