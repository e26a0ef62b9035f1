"""How many replicas, adapters and routers a fleet needs, simulated with measured service times.

    python -m benchmarks.scaling --output benchmarks/results/scaling.json

Reads the rows under decision/evidence and the chart's values. The same rows, values and seed give the same figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scaling import affinity, bounds, courses, losses, sheet, sizes, validation
from benchmarks.scaling.pace import measured
from benchmarks.scaling.setting import Chart, Setting
from decision.cost import Prices
from decision.evidence import FOLDER, Evidence
from decision.provenance import facts

RESULT = Path(__file__).parent.parent / "results" / "scaling.json"
COMMAND = "python -m benchmarks.scaling"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--output", type=Path, default=RESULT, help="JSON file to write (benchmarks/results/scaling.json)"
    )
    parser.add_argument("--evidence", type=Path, default=FOLDER, help="folder of rows (decision/evidence)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--size", type=float, default=1.0, help="part of the requests of each run; less is noisier")
    flags = parser.parse_args(arguments)
    evidence = Evidence.read(flags.evidence)
    found = measured(evidence)
    if found is None:
        print(
            f"benchmarks.scaling: `{flags.evidence}` has too few rows of the service; run `make evidence`",
            file=sys.stderr,
        )
        return 1
    setting = Setting(found, Chart.read(), Prices.read(), flags.seed, flags.size)
    record = study(setting, evidence)
    flags.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {flags.output}")
    return 0


def study(setting: Setting, evidence: Evidence) -> dict[str, Any]:
    """All studies, one after the other; how long each took goes to stderr."""
    own = facts(COMMAND)
    timed: dict[str, float] = {}

    def timing(name: str, action: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = action()
        timed[name] = time.process_time() - began
        print(f"{name}: {timed[name]:.1f} CPU s", file=sys.stderr)
        return result

    curve = timing("curve", lambda: courses.curve(setting))
    found_sizes = timing("sizes", lambda: sizes.sizes(setting))
    record = {
        "schema": 1,
        **own,
        "seed": setting.seed,
        "size": setting.size,
        "measured": asdict(setting.measured),
        "chart": setting.chart.model_dump(),
        "exponent": setting.exponent,
        "capacity_per_s": setting.capacity_per_s,
        "curve": {name: np.asarray(column).tolist() for name, column in asdict(curve).items()},
        "validation": _rows(timing("validation", lambda: validation.compared(setting, evidence))),
        "held": _rows(timing("held", lambda: affinity.held(setting))),
        "many": _rows(timing("many", lambda: affinity.many(setting))),
        "moved": {str(number): affinity.num_moved(number, affinity.NUM_ADAPTERS) for number in sizes.FLEETS},
        "bounds": _rows(timing("bounds", lambda: bounds.bounds(setting))),
        "hot": _rows(timing("hot", lambda: bounds.hot(setting))),
        "sizes": _rows(found_sizes),
        "needs": _rows(sizes.needs(setting, found_sizes)),
        "losses": _rows(timing("losses", lambda: losses.losses(setting))),
        "check": asdict(timing("check", lambda: courses.check(setting, curve))),
        "courses": _rows(timing("courses", lambda: courses.ruled(setting, curve))),
        "traces": courses.traces(setting, curve),
        "sheet": _rows(timing("sheet", lambda: sheet.sheet(setting, curve))),
    }
    print(f"{sum(timed.values()):.0f} CPU s in all", file=sys.stderr)
    return _rounded(record)  # type: ignore[no-any-return]


def _rows(found: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(one) for one in found]


def _rounded(value: Any) -> Any:
    """Six significant digits, so that files differ where figures do."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    sys.exit(main())
