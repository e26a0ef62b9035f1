"""The worked example's outcome, for people and for machines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from decision.bootstrap import Interval
from decision.comparison import MARGIN
from server.base_model import EMBEDDED_ID
from training.data import Row
from training.example import ADAPTERS, ROWS, Comparison, Difference, Side

MIB, KIB = 2**20, 2**10
ADDRESS = "http://127.0.0.1:8000"


def markdown(comparison: Comparison, base: str) -> str:
    """The comparison as a document of its own, with where its figures come from."""
    row = comparison.sides[0].rows[0]
    seeds = ", ".join(str(one.seed) for one in comparison.sides[0].rows)
    lines = [
        f"# {' and '.join(side.name for side in comparison.sides)} on `{row.task}`",
        "",
        f"{row.train_rows:,} training rows, {row.num_labels} labels, {row.predictions.num_rows:,} test rows; base "
        f"`{base}`; seeds {seeds}. Accuracy is the mean over the seeds; its 95 % interval covers other seeds and other "
        "test texts. Memory is the most that the whole training process held.",
        "",
        "| | test accuracy | macro-F1 | trained parameters | of which head | adapter, KiB | training, CPU s | wall s "
        "| memory, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(_line, comparison.sides),
    ]
    if comparison.floor is not None:
        value, low, high = comparison.floor.value, comparison.floor.low, comparison.floor.high
        lines.append(f"| floor: TF-IDF | {_accuracy(Interval(value, low, high))} |" + " |" * 7)
    lines += ["", *map(_difference, comparison.differences), ""] if comparison.differences else [""]
    sources = [one.provenance for side in comparison.sides for one in side.rows]
    versions = ", ".join(f"{name} {version}" for name, version in sources[0].versions.items())
    lines += [
        f"Measured on {_each(source.machine for source in sources)}; {versions}; "
        f"commit {_each(source.commit for source in sources)}; {sources[0].created}. Every run is a "
        f"line of `{ROWS}`. To measure it again:",
        "",
        "```bash",
        row.provenance.command,
        "```",
        "",
        "## Serve them",
        "",
        "```bash",
        *next_commands(comparison, base),
        "```",
    ]
    return "\n".join(lines) + "\n"


def next_commands(comparison: Comparison, base: str) -> list[str]:
    """What serves the adapters and asks the first of them about a text of the test split."""
    folders = [side.adapter for side in comparison.sides if side.adapter is not None]
    if not folders:
        return []
    serve = ["adaptermux-serve", "--adapters", str(folders[0].parent)]
    if base != EMBEDDED_ID:
        serve += ["--base", base]
    body = json.dumps({"adapter_id": folders[0].name, "inputs": _input(comparison.text)}, ensure_ascii=False)
    ask = ["curl", "-s", f"{ADDRESS}/v1/classify", "-H", "content-type: application/json", "-d", body]
    return [shlex.join(serve), shlex.join(ask)]


def record(comparison: Comparison, output: Path) -> dict[str, object]:
    """The same as JSON."""
    return {
        "rows": str(output / ROWS),
        "adapters": str(output / ADAPTERS),
        "candidates": {side.name: _figures(side) for side in comparison.sides},
        "differences": [
            {
                "first": one.first,
                "second": one.second,
                "accuracy": _interval(one.accuracy),
                "margin": MARGIN,
                "first_is": one.first_is,
                "second_is": one.second_is,
            }
            for one in comparison.differences
        ],
        "floor_accuracy": None if comparison.floor is None else comparison.floor.value,
    }


def _figures(side: Side) -> dict[str, object]:
    row = side.rows[0]
    return {
        "adapter": None if side.adapter is None else str(side.adapter),
        "test_accuracy": _interval(side.accuracy),
        "test_macro_f1": fmean(row.test_macro_f1 for row in side.rows),
        "num_adapter_parameters": row.num_adapter_parameters,
        "num_head_parameters": row.num_head_parameters,
        "adapter_bytes": row.adapter_bytes,
        "train_cpu_s": fmean(row.train_cpu_s for row in side.rows),
        "train_s": fmean(row.train_s for row in side.rows),
        "peak_memory_bytes": _peak(side),
    }


def _line(side: Side) -> str:
    row, peak = side.rows[0], _peak(side)
    cells = [
        side.name,
        _accuracy(side.accuracy),
        f"{fmean(row.test_macro_f1 for row in side.rows):.3f}",
        f"{row.num_adapter_parameters + row.num_head_parameters:,}",
        f"{row.num_head_parameters:,}",
        f"{row.adapter_bytes / KIB:,.0f}",
        f"{fmean(row.train_cpu_s for row in side.rows):.1f}",
        f"{fmean(row.train_s for row in side.rows):.1f}",
        "" if peak is None else f"{peak / MIB:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _difference(one: Difference) -> str:
    points = Interval(*(100 * value for value in (one.accuracy.value, one.accuracy.low, one.accuracy.high)))
    return (
        f"{one.first} less {one.second}, on the same seeds and texts: {points.value:+.1f} points "
        f"[{points.low:+.1f}, {points.high:+.1f}]. At a margin of {100 * MARGIN:g} point, {one.first} is: "
        f"{one.first_is}; {one.second} is: {one.second_is}."
    )


def _each(values: Iterable[str]) -> str:
    """The different ones: an example that goes on later may have been changed in between."""
    return " and ".join(dict.fromkeys(values))


def _accuracy(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _interval(found: Interval) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _peak(side: Side) -> int | None:
    return max((row.peak_memory_bytes for row in side.rows if row.peak_memory_bytes is not None), default=None)


def _input(row: Row) -> object:
    return row.text if row.text_pair is None else {"text": row.text, "text_pair": row.text_pair}
