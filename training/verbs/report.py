"""`adaptermux-train report`: tables and figures of what was measured."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from server.errors import DataError

HELP = "make tables and figures from rows of evidence"
DESCRIPTION = "Compare the candidates of a grid: tables with intervals and tests, and figures."
EXAMPLE = "adaptermux-train report --results decision/evidence/quality.jsonl --output report"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What a report can be told."""
    parser.add_argument(
        "--results", required=True, type=Path, nargs="+", metavar="FILE", help="files that a grid wrote"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="folder of the page and the figures"
    )
    parser.add_argument(
        "--reference",
        metavar="NAME",
        help="candidate to compare the others with; otherwise the best adapter of each cell",
    )
    parser.add_argument(
        "--plan", type=Path, metavar="FILE", help="use only the rows that this plan asks for, under its names"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(flags: argparse.Namespace) -> int:
    from dataclasses import asdict

    from decision import rows
    from training import report
    from training.summary import summarise

    try:
        found = [row for path in flags.results for row in rows.read_trained(path)]
    except rows.RowsError as error:
        raise DataError(str(error)) from error
    if flags.plan is not None:
        from training.grid import rows_of
        from training.grid_plan import read_plan

        found = rows_of(read_plan(flags.plan), found)
    summary = summarise(found, flags.reference)
    written = report.write(summary, flags.output, _command(flags))
    if flags.json:
        print(json.dumps(asdict(summary), indent=2))
    else:
        print("\n".join(map(str, written)))
    return 0


def _command(flags: argparse.Namespace) -> str:
    """What makes the same report again."""
    words = ["adaptermux-train", "report", "--results", *map(str, flags.results), "--output", str(flags.output)]
    for name in ("reference", "plan"):
        if getattr(flags, name) is not None:
            words += [f"--{name}", str(getattr(flags, name))]
    return shlex.join(words)
