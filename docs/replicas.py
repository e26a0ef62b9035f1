"""What was measured of three replicas behind the router, from the benchmark's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "replicas.json"
LEAST_HIT_RATE, LEAST_GAIN = 0.95, 0.05
THIRD = (0.25, 0.42)
"""What counts as near a third of the adapters."""

Record = dict[str, Any]


def replicas_part() -> str:
    return tables(json.loads(RESULT.read_text(encoding="utf-8")))


def promises(record: Record) -> dict[str, bool]:
    """What the parts that were measured must show, and whether they do."""
    found: dict[str, bool] = {}
    if "affinity" in record:
        ours, random = record["affinity"]["affinity"], record["affinity"]["random"]
        found |= {
            "with affinity 95 % of the texts find their adapter in memory": ours["hit_rate"] >= LEAST_HIT_RATE,
            "by chance clearly fewer do": random["hit_rate"] <= ours["hit_rate"] - LEAST_GAIN,
            "each replica holds about a third": all(THIRD[0] <= one <= THIRD[1] for one in ours["residency"]),
            "no request fails": ours["errors"] == random["errors"] == 0,
        }
    if "bound" in record:
        found["no request fails whatever the bound"] = not any(one["errors"] for one in record["bound"].values())
    if "agreement" in record:
        found |= {
            "Prometheus has recorded as many": all(
                record["agreement"][name]["prometheus"] == record["agreement"][name]["load_generator"]
                for name in ("answered", "texts")
            ),
            "Prometheus' quantiles are right within a bucket": all(
                record["agreement"][name]["agrees"] for name in ("p50", "p95")
            ),
            "no alert fires": not record["agreement"]["alerts_firing"],
        }
    if "death" in record:
        found |= {
            "no request is lost with a replica that is killed": record["death"]["errors"] == 0,
            "only its own adapters move": record["death"]["only_its_own_moved"],
            "they come back with it": record["death"]["came_back"],
        }
    if "restart" in record:
        found["no request is lost in a rolling restart"] = record["restart"]["errors"] == 0
    return found


def tables(record: Record) -> str:
    """Markdown, of the parts that there are."""
    engines = record["engines"]
    lines = [
        f"{record['num_replicas']} replicas of one thread each behind HAProxy {engines['haproxy']} with the chart's "
        f"configuration, {record['num_adapters']} LoRA adapters, room for {record['room']:.0%} of them on each; "
        f"{record['machine']}, {record['created'][:10]}, commit `{record['commit']}`. "
        f"`{record['command']}` measures it again (`benchmarks/results/replicas.json`).",
        "",
    ]
    for part, shown in (
        ("affinity", _affinity), ("bound", _bound), ("death", _death), ("restart", _restart), ("agreement", _agreement),
    ):  # fmt: skip
        if part in record:
            lines += [*shown(record), ""]
    return "\n".join(lines)


def _affinity(record: Record) -> list[str]:
    lines = [
        f"{record['rate_per_s']:.0f} requests/s, Zipf exponent {record['zipf_s']:g}; medians of {record['rounds']} "
        f"rounds of {record['spell_s']:.0f} s, each after every adapter was asked once:",
        "",
        "| router | texts whose adapter was in memory | adapters in memory, on each replica | p50 ms | p95 ms |",
        "|---|---|---|---|---|",
    ]
    for name, one in record["affinity"].items():
        held = " ".join(f"{share:.0%}" for share in one["residency"])
        lines.append(f"| {name} | {one['hit_rate']:.1%} | {held} | {one['p50_ms']:.1f} | {one['p95_ms']:.1f} |")
    return lines


def _bound(record: Record) -> list[str]:
    lines = [
        f"One adapter takes half of {record['crowded_rate_per_s']:.0f} requests/s. The bound is "
        f"`router.balancePercent` (the chart's own: {record['balance_percent']}); at home is what the replica answers "
        "that the router's hash names:",
        "",
        "| bound | hot adapter at home | others at home | busiest replica's part | in memory | p50 ms | p95 ms "
        "| p95 ms of the others |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for percent, one in record["bound"].items():
        lines.append(
            f"| {'none' if percent == '0' else f'{percent} %'} | {one['hot_at_home']:.0%} | {one['cold_at_home']:.0%} "
            f"| {one['busiest_replica']:.0%} | {one['hit_rate']:.1%} | {one['p50_ms']:.1f} | {one['p95_ms']:.1f} "
            f"| {one['cold_p95_ms']:.1f} |"
        )
    return lines


def _death(record: Record) -> list[str]:
    one = record["death"]
    moved = " and ".join(f"{count} to replica {number}" for number, count in one["moved_to"].items())
    return [
        f"**Killed under load** (`kill -9`): {one['errors']} of {one['requests']:,} requests failed, of which "
        f"{one['asked_of_its_adapters_after']} came later for adapters of the dead replica; {one['asked_again']} were "
        f"asked again elsewhere, until the router had seen it after {one['seen_after_s']:.1f} s (at most "
        f"{one['max_ms_until_seen']:.0f} ms meanwhile). Of {record['num_adapters']} adapters {one['adapters_moved']} "
        f"moved, {'those that it had and no others' if one['only_its_own_moved'] else 'NOT its own alone'}: {moved}. "
        f"{'They were back' if one['came_back'] else 'They were NOT back'} once it was."
    ]


def _restart(record: Record) -> list[str]:
    one = record["restart"]
    longest = max(one["seconds_each"])
    return [
        f"**Rolling restart** (SIGTERM, drain, start, ready; at most {longest:.0f} s each): {one['errors']} of "
        f"{one['requests']:,} requests failed; p95 {one['p95_ms']:.1f} ms, at most {one['max_ms']:.0f} ms."
    ]


def _agreement(record: Record) -> list[str]:
    lines = [
        f"**Prometheus** {record['engines']['prometheus']}, one scrape a second, against the load generator's own "
        "samples (latency within the service):",
        "",
        "| | Prometheus | load generator | |",
        "|---|---|---|---|",
    ]
    for name, shown in (("answered", "requests answered"), ("texts", "texts")):
        one = record["agreement"][name]
        verdict = "the same" if one["prometheus"] == one["load_generator"] else "NOT the same"
        lines.append(f"| {shown} | {one['prometheus']:,} | {one['load_generator']:,} | {verdict} |")
    for name in ("p50", "p95"):
        one = record["agreement"][name]
        low, high = one["bucket_ms"]
        verdict = "within" if one["agrees"] else "NOT within"
        lines.append(
            f"| {name} ms | {one['prometheus_ms']:.1f} | {one['load_generator_ms']:.1f} "
            f"| {verdict} a bucket's width ({low:g}–{high:g} ms) |"
        )
    return lines
