"""The tables of docs/scaling.md, from the simulation's results and, where it is there, the live run's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.scaling.live import compared
from benchmarks.scaling.pace import Pace
from docs.tables import plain_table

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
NOTHING = "–"
Row = Mapping[str, Any]


@cache
def record() -> dict[str, Any]:
    return dict(json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8")))


def pace_table() -> str:
    """What was fitted, and how well."""
    found = record()
    measured, pace = found["measured"], found["measured"]["pace"]
    rows = [
        ("base, format, machine", f"{measured['base'].rpartition('/')[2]}, {measured['dtype']}, {measured['machine']}"),
        ("rows; commits", f"{measured['num_rows']}; {', '.join(measured['commits'])}"),
        (
            "a batch",
            f"{_ms(pace['fixed_s'])} ms, {_us(pace['token_s'])} µs a token, {_us(pace['adapter_s'])} µs an adapter",
        ),
        (
            "error of the fit",
            f"{_percent(measured['median_error'])} in the median, {_percent(measured['worst_error'])} at worst; each "
            f"row from the others: {_percent(measured['left_out_error'])}",
        ),
        ("most tokens of a batch", f"{pace['batch_tokens']:,}"),
        ("a request beside its batch and its wait", f"{_ms(pace['beside_s'])} ms"),
        (
            "a replica that never rests",
            f"{found['capacity_per_s']:.0f} texts/s of {measured['mean_tokens']:.0f} tokens",
        ),
        ("its part of the machine's cores", _percent(measured["cpu_at_full"])),
        ("a load of an adapter", f"{_ms(measured['load_s'])} ms ({measured['load_source']})"),
        ("an adapter", f"{measured['adapter_bytes'] / 2**10:,.0f} KiB"),
        ("seed; made by", f"{found['seed']}; `{found['command']}`, {found['created'][:10]}, commit {found['commit']}"),
    ]
    return plain_table(("what", "value"), rows)


def validation_table() -> str:
    return plain_table(
        ("load test", "asked", "answered/s", "simulated", "p95 ms", "simulated", "hit rate", "simulated"),
        (
            (
                f"{row['scenario']}, {row['case']}",
                f"{row['rate_per_s']:g}/s" if row["rate_per_s"] else f"{row['num_users']} users",
                f"{row['measured_per_s']:.0f}",
                f"{row['simulated_per_s']:.0f}",
                _number(row["measured_p95_ms"]),
                _number(row["simulated_p95_ms"]),
                _part(row["measured_hit_rate"]),
                _part(row["simulated_hit_rate"]),
            )
            for row in record()["validation"]
        ),
    )


def live_table() -> str:
    """Hit rates of the live run of three replicas against theory; says so where there was none."""
    path = RESULTS / "replicas.json"
    if not path.exists():
        return "The live run of three replicas (`benchmarks/results/replicas.json`) has not been made yet.\n"
    measured = record()["measured"]
    found = compared(json.loads(path.read_text(encoding="utf-8")), Pace(**measured["pace"]), measured["load_s"])
    if not found:
        return "`benchmarks/results/replicas.json` has no hit rates to compare with.\n"
    return plain_table(
        ("routing", "measured hit rate", "simulated", "by theory, after a long time"),
        ((one.routing, _part(one.measured), _part(one.simulated), _part(one.theory)) for one in found),
    )


def held_table() -> str:
    rows = record()["held"]
    return plain_table(
        (
            "policy",
            "fleet's memory",
            "adapters a replica",
            "hit rate",
            "by theory",
            "p95 ms",
            "p95 ms, slow loads",
            "busiest, of the mean",
        ),
        (
            (
                row["policy"],
                f"{row['fleet_room']:g}×",
                str(row["room"]),
                _part(row["hit_rate"]),
                _part(row["theory"]),
                _number(row["p95_ms"]),
                _number(row["slow_p95_ms"]),
                f"{row['busiest']:.2f}",
            )
            for row in rows
        ),
    )


def many_table() -> str:
    return plain_table(
        ("adapters", "replicas", "memory of each", "adapters in it", "hash", "random", "hash, simulated"),
        (
            (
                f"{row['num_adapters']:,}",
                str(row["num_replicas"]),
                f"{row['memory_gib']} GiB",
                f"{row['room']:,}",
                _part(row["hash_hit_rate"]),
                _part(row["random_hit_rate"]),
                _part(row["simulated_hit_rate"]),
            )
            for row in record()["many"]
        ),
    )


def bounds_table() -> str:
    found = record()
    rows = [row for row in found["bounds"] if row["num_routers"] == found["chart"]["router"]["replicas"]]
    return plain_table(
        ("load", "bound", "hit rate", "away from home", "p95 ms", "p95 ms, slow loads", "busiest, of the mean"),
        (
            (
                _percent(row["load"]),
                str(row["bound_percent"]),
                _part(row["hit_rate"]),
                _percent(row["away"]),
                _number(row["p95_ms"]),
                _number(row["slow_p95_ms"]),
                f"{row['busiest']:.2f}",
            )
            for row in rows
        ),
    )


def routers_table() -> str:
    rows = record()["bounds"]
    loads = {row["load"] for row in rows if row["num_routers"] != record()["chart"]["router"]["replicas"]}
    kept = [row for row in rows if row["load"] in loads]
    routers = sorted({row["num_routers"] for row in kept})
    by_place = {(row["bound_percent"], row["num_routers"]): row for row in kept}
    return plain_table(
        ("bound", *(f"hit rate, p95 ms with {number} router{'s' * (number > 1)}" for number in routers)),
        (
            (
                str(bound),
                *(
                    f"{_part(by_place[bound, number]['hit_rate'])}, {_number(by_place[bound, number]['p95_ms'])}"
                    for number in routers
                ),
            )
            for bound in sorted({row["bound_percent"] for row in kept})
        ),
    )


def hot_table() -> str:
    return plain_table(
        (
            "part of the traffic",
            "bound",
            "replicas by formula",
            "used",
            "its p95 ms",
            "others' p95 ms",
            "others' hit rate",
            "busiest, of the mean",
        ),
        (
            (
                _percent(row["share"]),
                str(row["bound_percent"]),
                str(row["fewest"]),
                str(row["used"]),
                _number(row["p95_ms"]),
                _number(row["others_p95_ms"]),
                _part(row["others_hit_rate"]),
                f"{row['busiest']:.2f}",
            )
            for row in record()["hot"]
        ),
    )


def sizes_table() -> str:
    rows = record()["sizes"]
    fleets = sorted({row["num_replicas"] for row in rows})
    by_place: dict[tuple[str, str, float], dict[int, float]] = {}
    for row in rows:
        kind = "bursts" if row["is_bursty"] else "Poisson"
        by_place.setdefault((row["policy"], kind, row["load_s"]), {})[row["num_replicas"]] = row["rate_per_s"]
    return plain_table(
        ("policy", "arrivals", "a load takes", *(f"{number} replicas" for number in fleets)),
        (
            (policy, kind, f"{_ms(load_s)} ms", *(f"{found[number]:.0f}" for number in fleets))
            for (policy, kind, load_s), found in by_place.items()
        ),
    )


def needs_table() -> str:
    rows = record()["needs"]
    rates = sorted({row["rate_per_s"] for row in rows})
    by_place = {(row["policy"], row["load_s"], row["rate_per_s"]): row for row in rows}
    return plain_table(
        ("policy", "a load takes", *(f"{rate:,}/s" for rate in rates), "USD for a million"),
        (
            (
                policy,
                f"{_ms(load_s)} ms",
                *(f"{by_place[policy, load_s, rate]['num_replicas']:,}" for rate in rates),
                f"{by_place[policy, load_s, rates[-1]]['per_million']:.3f}",
            )
            for policy, load_s in dict.fromkeys((row["policy"], row["load_s"]) for row in rows)
        ),
    )


def losses_table() -> str:
    return plain_table(
        ("what", "policy", "loads", "moved", "sent again", "lost", "p95 ms before", "worst second", "seconds disturbed",
         "hit rate before", "lowest second", "misses more"),
        (
            (
                row["what"],
                row["policy"],
                "slow" if row["is_slow"] else "fast",
                _percent(row["moved"]),
                str(row["num_resent"]),
                str(row["num_lost"]),
                _number(row["calm_p95_ms"]),
                _number(row["worst_p95_ms"]),
                str(row["disturbed_s"]),
                _part(row["calm_hit_rate"]),
                _part(row["lowest_hit_rate"]),
                f"{row['misses_more']:,}",
            )
            for row in record()["losses"]
        ),
    )  # fmt: skip


def courses_table() -> str:
    return plain_table(
        (
            "course",
            "rule",
            "first more, s",
            "settled, s",
            "most",
            "late",
            "very late",
            "replica hours",
            "USD a day",
            "changes",
        ),
        (
            (
                row["course"],
                row["rule"],
                _count(row["first_s"]),
                _count(row["settled_s"]),
                str(row["most"]),
                f"{row['late']:.2%}",
                f"{row['very_late']:.2%}",
                f"{row['replica_hours']:.1f}",
                f"{row['cost_per_day']:.2f}",
                str(row["num_changes"]),
            )
            for row in record()["courses"]
        ),
    )


def sheet_table() -> str:
    return plain_table(
        ("part", "what", "value", "", "from"),
        ((row["part"], row["what"], row["value"], row["kind"], row["source"]) for row in record()["sheet"]),
    )


def curve_table() -> str:
    curve = record()["curve"]
    columns = zip(curve["rate_per_s"], curve["busy"], curve["queue_s"], curve["p95_s"], strict=True)
    return plain_table(
        ("texts/s of a replica", "part of the capacity", "busy", "mean wait, ms", "p95, ms"),
        (
            (f"{rate:.0f}", _percent(rate / curve["capacity_per_s"]), _percent(busy), _ms(queue_s), _ms(p95_s))
            for rate, busy, queue_s, p95_s in columns
        ),
    )


PARTS: Mapping[str, Callable[[], str]] = {
    "scaling_pace": pace_table,
    "scaling_validation": validation_table,
    "scaling_live": live_table,
    "scaling_held": held_table,
    "scaling_many": many_table,
    "scaling_bounds": bounds_table,
    "scaling_routers": routers_table,
    "scaling_hot": hot_table,
    "scaling_sizes": sizes_table,
    "scaling_needs": needs_table,
    "scaling_losses": losses_table,
    "scaling_curve": curve_table,
    "scaling_courses": courses_table,
    "scaling_sheet": sheet_table,
}
"""Generated parts by name."""


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _part(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _count(value: int | None) -> str:
    return NOTHING if value is None else str(value)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f}"
