"""What a check has found, written as a file after every part, and how much time each part may take."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.goals import Goal
from decision.provenance import facts

Case = TypeVar("Case")
IsOver = Callable[[], bool]
"""Whether a part's time is up, after which it begins nothing new."""


class Shares:
    """The time of parts that run one behind the other: each may take its share of what is left.

    What one does not need is the others'; one that takes longer takes it from all that follow alike.
    """

    def __init__(self, weights: Mapping[str, float], seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._weights, self._now, self._end = dict(weights), now, now() + seconds

    def begin(self, part: str) -> IsOver:
        """The part's turn: it is over with its share."""
        rest, weight = sum(self._weights.values()), self._weights.pop(part)
        until = self._now() + max(0.0, self._end - self._now()) * weight / rest
        return lambda: self._now() >= until


@dataclass
class Report:
    """What was found. errors: the worst of each kind, each a part of the largest number in its result.

    cases: how many a part has, and how many had their turn. left_out: what could not be checked here, and why.
    """

    output: Path
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    cases: dict[str, dict[str, int]] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    speeds: dict[str, dict[str, Any]] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def attempt(self, name: str, run: Callable[[], None]) -> None:
        """What raises is a failure, and the rest goes on."""
        began = time.monotonic()
        try:
            run()
        except Exception as error:  # whatever it is, it is to be told, and what follows tried
            traceback.print_exc()
            self.fail(f"{name}: {type(error).__name__}: {error}"[:500])
        self.seconds[name] = round(time.monotonic() - began, 1)
        self.write()

    def try_each(
        self, part: str, cases: Sequence[Case], minimum: int, is_over: IsOver, run: Callable[[Case], None]
    ) -> None:
        """Run cases in order until the time is over. Where that is before the minimum, it is a failure."""
        num_run = 0
        for case in cases:
            if is_over():
                break
            run(case)
            num_run += 1
        self.cases[part] = {"run": num_run, "of": len(cases), "minimum": minimum}
        say(f"{part}: {num_run} of {len(cases)} cases")
        if num_run < minimum:
            self.fail(f"{part}: there was no time for {minimum} cases, {num_run} were run")

    def note(self, kind: str, case: str, error: float, limit: float) -> None:
        """Keep the worst error of a kind. A number that is none is a failure as well."""
        if not error <= limit:
            self.fail(f"{kind}: {case}: {error:.3g}, at most {limit:.3g} is right")
        worst = self.errors.setdefault(kind, {"worst": 0.0, "limit": limit, "cases": 0})
        worst["worst"], worst["cases"] = max(worst["worst"], error), worst["cases"] + 1

    def leave_out(self, what: str) -> None:
        if what not in self.left_out:
            self.left_out.append(what)
            say(f"left out: {what}")

    def fail(self, message: str) -> None:
        self.failures.append(message)
        say(message)

    def write(self) -> None:
        record = {
            "schema": 2,
            **facts("python -m benchmarks.gpu_check"),
            "card": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "failures": self.failures,
            "goals": [asdict(goal) for goal in self.goals],
            "left_out": self.left_out,
            "cases": self.cases,
            "errors": self.errors,
            "figures": self.figures,
            "speeds": self.speeds,
            "seconds": self.seconds,
        }
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")


def part_of(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest number that is expected."""
    return float((found - expected).abs().max() / expected.abs().max())


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
