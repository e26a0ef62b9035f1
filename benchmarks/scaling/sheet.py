"""A hundred thousand requests a second over a million adapters, on paper: every line measured, derived or assumed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Literal

from benchmarks.scaling.affinity import GIB, hash_hit_rate
from benchmarks.scaling.autoscaler import Curve
from benchmarks.scaling.courses import rate_within
from benchmarks.scaling.setting import P95_LIMIT_S, Setting
from benchmarks.scaling.theory import lru_hit_rate
from decision.cost import MILLION, SECONDS_PER_HOUR

RATE_PER_S, NUM_ADAPTERS = 100_000, 1_000_000
GPU_TEXTS_PER_S, GPU_ADAPTER_GIB, HTTP_PROCESSES = 5_000.0, 40.0, 8
ROUTER_PER_S, FETCH_GIB_PER_S, CELL_ADAPTERS = 15_000, 1.0, 50_000
"""These and the line before: assumed, nobody here has measured them."""
CHE = "Che's approximation"
Kind = Literal["given", "measured", "simulated", "derived", "assumed"]


@dataclass(frozen=True, slots=True)
class Line:
    """One figure. source: where it comes from, or what it follows from."""

    part: str
    what: str
    value: str
    kind: Kind
    source: str


def sheet(setting: Setting, found: Curve) -> list[Line]:
    return [*_asked(setting), *_processors(setting, found), *_cards(setting), *_around(setting)]


def _asked(setting: Setting) -> list[Line]:
    line, measured = partial(Line, "asked"), setting.measured
    return [
        line("requests a second, of one text each", f"{RATE_PER_S:,}", "given", ""),
        line("adapters", f"{NUM_ADAPTERS:,}", "given", ""),
        line("Zipf's exponent", f"{setting.exponent:g}", "assumed", "the load generator's default"),
        line("tokens of a text, mean", f"{measured.mean_tokens:.0f}", "measured", "rows of load tests"),
        line("an adapter", f"{measured.adapter_bytes / 2**10:,.0f} KiB", "measured", "mean over four methods"),
        line("all adapters", f"{_stored_gib(setting):,.0f} GiB", "derived", "adapters times bytes"),
    ]


def _processors(setting: Setting, found: Curve) -> list[Line]:
    part = "replicas with two cores"
    line, each = partial(Line, part), rate_within(found, P95_LIMIT_S)
    replicas = ceil(RATE_PER_S / (each * setting.prices.headroom))
    limit = f"p95 within {P95_LIMIT_S * 1e3:.0f} ms"
    return [
        line("texts a second of one", f"{each:.0f}", "simulated", limit),
        line("headroom", f"{setting.prices.headroom:g}", "assumed", "decision/prices.toml"),
        line("replicas", f"{replicas:,}", "derived", "rate over rate and headroom"),
        *_residency(setting, part, replicas, 1.0, "a quarter of the chart's memory limit"),
        *_money(setting, part, replicas * setting.prices.cpu_per_hour),
    ]


def _cards(setting: Setting) -> list[Line]:
    part = "replicas with a GPU"
    line, http_s = partial(Line, part), setting.measured.http_cpu_s
    seen = setting.measured.gpu_texts_per_s
    of_engine = seen or GPU_TEXTS_PER_S
    of_http = HTTP_PROCESSES / http_s if http_s else of_engine
    replicas = ceil(RATE_PER_S / (min(of_engine, of_http) * setting.prices.headroom))
    return [
        line("texts a second of the engine", f"{of_engine:,.0f}", "measured", "median of its rows")
        if seen
        else line("texts a second of the engine", f"{of_engine:,.0f}", "assumed", "`make gpu-evidence` has no rows"),
        *([] if http_s is None else _http(part, http_s)),
        line("replicas", f"{replicas:,}", "derived", f"of the lesser, headroom {setting.prices.headroom:g}"),
        *_residency(setting, part, replicas, GPU_ADAPTER_GIB, "assumed: half of an 80 GB card"),
        *_money(setting, part, replicas * setting.prices.gpu_per_hour),
    ]


def _http(part: str, http_s: float) -> list[Line]:
    line = partial(Line, part)
    return [
        line(
            "a request beside the engine", f"{http_s * 1e3:.2f} CPU ms", "measured", "benchmarks/results/service.json"
        ),
        line("cores for that in all", f"{RATE_PER_S * http_s:,.0f}", "derived", "rate times processor time"),
        line("HTTP processes of a replica", f"{HTTP_PROCESSES}", "assumed", "`--http-processes`"),
        line("texts a second of these", f"{HTTP_PROCESSES / http_s:,.0f}", "derived", "processes over processor time"),
    ]


def _residency(setting: Setting, part: str, replicas: int, memory_gib: float, source: str) -> list[Line]:
    line, shares = partial(Line, part), setting.shares(NUM_ADAPTERS)
    room = int(memory_gib * GIB / setting.measured.adapter_bytes)
    held = min(1.0, replicas * room / NUM_ADAPTERS)
    return [
        line(f"adapters of one, in {memory_gib:g} GiB", f"{room:,}", "derived", source),
        line("adapters of all together", f"{held:.0%}", "derived", "replicas times these"),
        line("hit rate with a hash", f"{hash_hit_rate(shares, replicas, room):.3f}", "derived", CHE),
        line("hit rate without", f"{lru_hit_rate(shares, room):.3f}", "derived", CHE),
    ]


def _money(setting: Setting, part: str, per_hour: float) -> list[Line]:
    line, currency = partial(Line, part), setting.prices.currency
    of_million = per_hour / (RATE_PER_S * SECONDS_PER_HOUR) * MILLION
    return [
        line(f"{currency} an hour", f"{per_hour:,.0f}", "derived", "decision/prices.toml: examples"),
        line(f"{currency} for a million requests", f"{of_million:.3f}", "derived", "the same"),
    ]


def _around(setting: Setting) -> list[Line]:
    line, known = partial(Line, "around them"), setting.measured.registered_bytes
    stored, cells = _stored_gib(setting), ceil(NUM_ADAPTERS / CELL_ADAPTERS)
    speed = f"at {FETCH_GIB_PER_S:g} GiB/s"
    lines = [
        line("requests a second of one router", f"{ROUTER_PER_S:,}", "assumed", "HAProxy that reads bodies"),
        line("routers", f"{ceil(RATE_PER_S / ROUTER_PER_S)}", "derived", "each knows its own requests only"),
        line("disk of a replica", f"{stored:,.0f} GiB", "derived", "each fetches all that it may be asked for"),
        line("time to fetch that", f"{stored / FETCH_GIB_PER_S / 60:,.0f} min", "assumed", speed),
        line("cells, if that is too much", f"{cells}", "assumed", f"releases with {CELL_ADAPTERS:,} adapters each"),
        line("disk of a cell's replica", f"{stored / cells:,.0f} GiB", "derived", "a cell's adapters"),
        line("time to fetch that", f"{stored / cells / FETCH_GIB_PER_S:,.0f} s", "assumed", speed),
    ]
    if known is not None:
        of_names = known * CELL_ADAPTERS / GIB
        lines.append(
            line("memory for a cell's list", f"{of_names:.1f} GiB", "derived", "measured up to 1,000 adapters")
        )
    return lines


def _stored_gib(setting: Setting) -> float:
    return NUM_ADAPTERS * setting.measured.adapter_bytes / GIB
