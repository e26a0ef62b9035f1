"""What the service is said to take, from planted rows of which it is known."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from decision.cost import cost_of
from decision.evidence import Evidence
from decision.fit import Fit, fit
from decision.quality import Candidate
from decision.question import Question
from decision.rows import Row
from decision.serving import Serving
from loadtest import scenario
from tests import planted
from tests.planted import latency, memory

MIB = 2**20
BASE = memory(10, 600 * MIB)
IA3 = Candidate("ia3", "ia3", {}, {}, 13_824, 2_310, 6, 64_536, 1.0)
LARGE = Candidate("lora-all-8", "lora", {"rank": 8, "all_linears": 1}, {}, 331_776, 2_310, 6, 1_336_344, 1.0)
SMALL = Candidate("lora-qv-8", "lora", {"rank": 8}, {}, 73_728, 2_310, 6, 304_152, 1.0)
PROBE = Candidate("probe", "probe", {}, {}, 0, 2_310, 6, 9_240, 1.0)
PREFIX = Candidate("prefix-16", "prefix", {"length": 16}, {}, 73_728, 2_310, 6, 304_000, 1.0)

SERVINGS = ("mixed", "merged")


def asked(**given: Any) -> Question:
    return Question(**{"task_type": "topic", "train_rows": 500} | given)


def fitted(rows: list[Row], candidate: Candidate = IA3, **given: Any) -> Fit:
    question = asked(**given)
    serving = Serving(Evidence.of(rows), question.device, question.shape.id)
    return fit(candidate, question, serving, planted.PRICES, "minilm")


def rate_of(found: Fit) -> float:
    assert found.capacity is not None, found.why
    return found.capacity.texts_per_s


def test_a_replica_takes_the_highest_rate_that_was_seen_within_the_limit() -> None:
    rows = [BASE, latency("ia3", 1, 100, 20), latency("ia3", 1, 200, 49), latency("ia3", 1, 400, 51)]
    assert rate_of(fitted(rows, p95_ms=50)) == 200
    assert rate_of(fitted(rows, p95_ms=49)) == 200
    assert rate_of(fitted(rows, p95_ms=48.9)) == 100
    assert rate_of(fitted(rows)) == 400


def test_a_limit_that_no_row_meets_is_not_measured_until_a_search_for_it_has_failed() -> None:
    rows: list[Row] = [BASE, latency("ia3", 1, 100, 20)]
    unknown = fitted(rows, p95_ms=10)
    assert unknown.status == "not measured"
    assert "20 ms" in unknown.why
    tried = latency("ia3", 1, 5, 15, limit_p95_ms=10.0, scenario="capacity")
    assert fitted([*rows, tried], p95_ms=10).status == "misses"
    assert fitted([*rows, tried], p95_ms=15).status == "meets"


@pytest.mark.parametrize(
    ("searches", "asked_ms", "status"),
    [
        ([(100, 80, 90)], 50, "not measured"),  # it held at once, and went up
        ([(50, 160, 60), (50, 80, 50)], 20, "not measured"),
        ([(20, 80, 400), (20, 1, 60)], 50, "misses"),  # it went down to 1/s
        ([(20, 80, 400), (20, 1, 60)], 10, "misses"),
        ([(100, 80, 90), (20, 80, 90), (20, 1, 60)], 50, "misses"),
    ],
)
def test_a_search_tried_lower_rates_only_where_it_never_met_its_own_limit(
    searches: list[tuple[float, float, float]], asked_ms: float, status: str
) -> None:
    rows = [
        latency("ia3", 1, rate, p95_ms, limit_p95_ms=limit, scenario="capacity") for limit, rate, p95_ms in searches
    ]
    found = fitted([BASE, *rows], p95_ms=asked_ms)
    assert found.status == status
    assert ("lower rates were tried" in found.why) == (status == "misses")


def test_a_search_of_what_is_harder_or_other_says_nothing_of_lower_rates() -> None:
    failed = latency("ia3", 1, 1, 60, limit_p95_ms=20.0, scenario="capacity")
    texts = {"texts": {"kind": "fixed", "num_tokens": 64}}
    long = latency("ia3", 1, 90, 80, workload=texts, tokens_per_s=90 * 64)
    assert fitted([BASE, failed, long], p95_ms=50, mean_tokens=64).status == "not measured"
    longer = latency("ia3", 1, 1, 90, workload=texts, tokens_per_s=64, limit_p95_ms=20.0, case="64")
    assert fitted([BASE, latency("ia3", 1, 90, 80), longer], p95_ms=50, mean_tokens=20).status == "not measured"
    larger = latency("lora", 8, 1, 90, hot_bytes=8 * 1_340_000, limit_p95_ms=20.0)
    sized = [BASE, latency("lora", 8, 90, 80, hot_bytes=8 * 340_000), larger]
    assert fitted(sized, SMALL, p95_ms=50).status == "not measured"
    assert fitted(sized, LARGE, p95_ms=50).status == "misses"
    assert fitted([BASE, failed], p95_ms=50).status == "misses"
    assert fitted([BASE, failed], PROBE, p95_ms=50).status == "not measured"
    assert fitted([BASE, failed], p95_ms=50, serving="merged").status == "not measured"


def test_the_search_that_would_tell_leaves_room_for_what_strains_the_service() -> None:
    rows: list[Row] = [BASE, latency("ia3", 1, 80, 30, limit_p95_ms=50.0, scenario="capacity")]
    for per_s, p95 in ((0, 50.0), (10, 100.0)):
        changes = {"load": 10 * per_s} if per_s else {}
        rows.append(latency("lora", 64, 60, p95, scenario="swap", case=f"{per_s}", changes=changes))
    given: dict[str, Any] = {"p95_ms": 55, "swaps_per_hour": 36_000}
    found = fitted(rows, **given)
    assert found.status == "not measured"
    assert "60 ms" in found.why
    assert "limit_p95_ms=27.5" in found.gaps[0].command
    assert fitted([*rows, latency("ia3", 1, 40, 27, limit_p95_ms=27.5)], **given).status == "meets"


def test_runs_of_one_scenario_with_other_adapters_are_no_repeats_of_each_other() -> None:
    rows = [BASE, *(latency(method, 1, 100, p95, case="all") for method, p95 in (("ia3", 20), ("lora", 90)))]
    assert rate_of(fitted(rows, p95_ms=50)) == 100
    small, large = (latency("lora", 8, 100, 20, case="all", hot_bytes=8 * each) for each in (304_000, 1_340_000))
    faster = latency("lora", 8, 300, 20, case="all", hot_bytes=8 * 304_000)
    assert rate_of(fitted([BASE, large, small, faster], LARGE)) == 100


def test_rows_with_fewer_hot_adapters_than_asked_do_not_count() -> None:
    rows = [BASE, latency("ia3", 1, 400, 20), latency("ia3", 64, 300, 20)]
    assert rate_of(fitted(rows, adapters=1)) == 400
    assert rate_of(fitted(rows, adapters=64, hot=2)) == 300


def test_more_hot_adapters_than_were_measured_are_answered_from_the_most_and_it_is_said() -> None:
    found = fitted([BASE, latency("ia3", 64, 300, 20)], adapters=5000, hot=100)
    assert rate_of(found) == 300
    whats = [gap.what for gap in found.gaps]
    assert any("100 hot adapters; 64 were measured" in what for what in whats)
    assert any("5,000 registered adapters" in what for what in whats)


def test_rows_of_smaller_adapters_say_nothing_of_a_larger_one() -> None:
    small = latency("lora", 1, 400, 20, hot_bytes=304_152)
    found = fitted([BASE, small], LARGE)
    assert found.status == "not measured"
    assert "was not measured in serving" in found.why
    assert rate_of(fitted([BASE, small, latency("lora", 8, 100, 20, hot_bytes=8 * 1_330_000)], LARGE)) == 100


def test_longer_texts_than_measured_are_not_guessed() -> None:
    texts = {"texts": {"kind": "fixed", "num_tokens": 64}}
    long = latency("ia3", 1, 90, 20, workload=texts, tokens_per_s=90 * 64)
    rows = [BASE, latency("ia3", 1, 400, 20), long]
    assert rate_of(fitted(rows)) == 400
    assert rate_of(fitted(rows, mean_tokens=20)) == 400
    assert rate_of(fitted(rows, mean_tokens=21)) == 90
    assert fitted(rows, mean_tokens=65).status == "not measured"


def test_a_linear_model_on_the_frozen_base_takes_what_any_adapter_takes() -> None:
    rows = [BASE, latency("ia3", 1, 400, 20), latency("lora", 64, 300, 20)]
    assert rate_of(fitted(rows, PROBE)) == 400


def test_repeats_count_by_their_median_and_rows_with_errors_do_not_count() -> None:
    rows: list[Row] = [BASE]
    rows += [
        latency("ia3", 1, rate, 20, repeat=repeat, rate_per_s=None, num_users=32)
        for repeat, rate in enumerate((100, 300, 200))
    ]
    rows.append(latency("ia3", 1, 900, 20, num_errors=1, case="broken"))
    assert rate_of(fitted(rows)) == 200


def test_of_a_case_that_was_measured_again_the_later_one_counts() -> None:
    later = BASE.provenance.model_copy(update={"created": "2026-11-23T09:00:00Z"})
    old = latency("ia3", 1, 400, 20, rate_per_s=None, num_users=32)
    new = latency("ia3", 1, 100, 20, rate_per_s=None, num_users=32, provenance=later)
    assert rate_of(fitted([BASE, new, old])) == 100


def test_memory_is_the_base_and_the_hot_adapters() -> None:
    rows: list[Row] = [BASE, latency("ia3", 1, 400, 20)]
    room = (600 * MIB + 100 * 64_536) / 2**30
    assert fitted(rows, adapters=100, memory_gib=room).status == "meets"
    missed = fitted(rows, adapters=101, memory_gib=room)
    assert missed.status == "misses"
    assert "GiB" in missed.why


def test_what_registered_adapters_cost_is_taken_from_the_rows_of_scale() -> None:
    rows: list[Row] = [memory(n, 600 * MIB + n * MIB, scenario="scale", case=f"{n}") for n in (10, 1000)]
    found = fitted([*rows, latency("ia3", 1, 400, 20)], adapters=500, hot=1)
    assert found.memory_bytes == 600 * MIB + 1000 * MIB + 500 * MIB + 64_536


def test_half_the_room_costs_what_the_rows_of_cache_say_and_less_room_is_too_little() -> None:
    rows: list[Row] = [BASE, latency("ia3", 64, 400, 20)]
    for share, rate, p95 in ((2.0, 300, 100.0), (0.5, 240, 150.0)):
        closed = {"rate_per_s": None, "num_users": 32, "scenario": "cache", "case": f"{share}"}
        room = {"service": {"adapter_bytes": round(share * 64 * 64_536)}, "hot_bytes": 64 * 64_536}
        rows.append(latency("lora", 64, rate, p95, **closed, **room))
    half, less = ((600 * MIB + part * 64 * 64_536) / 2**30 for part in (0.51, 0.4))
    found = fitted(rows, adapters=64, memory_gib=half)
    assert found.capacity is not None
    assert found.capacity.texts_per_s == pytest.approx(400 * 0.8)
    assert found.capacity.p95_ms == pytest.approx(30)
    assert fitted(rows, adapters=64, memory_gib=less).status == "misses"


def test_changes_while_requests_come_in_cost_what_the_rows_of_swap_say() -> None:
    rows: list[Row] = [BASE, latency("ia3", 1, 400, 20)]
    rows += [
        latency("lora", 64, 60, p95, scenario="swap", case=f"{per_s}", changes={"load": 10 * per_s} if per_s else {})
        for per_s, p95 in ((0, 50.0), (2, 60.0), (10, 100.0))
    ]
    found = [fitted(rows, swaps_per_hour=per_s * 3600) for per_s in (0, 1, 2, 3, 10, 11)]
    assert [one.capacity and one.capacity.p95_ms for one in found] == [20, 24, 24, 40, 40, 40]
    assert "changes of adapters" in found[-1].gaps[0].what
    assert not found[-2].gaps


def test_merged_serving_takes_a_service_a_hot_adapter_and_only_what_can_be_merged() -> None:
    rows: list[Row] = [BASE, latency("ia3", 1, 400, 20), latency("prefix", 1, 400, 20)]
    found = fitted(rows, adapters=7, serving="merged")
    assert found.cost is not None
    assert found.cost.replicas == 7
    assert "cannot be merged" in fitted(rows, PREFIX, serving="merged").why
    assert "locked" in fitted(rows, serving="merged", locked_base=True).why
    assert fitted(rows, PROBE, serving="merged", locked_base=True).status == "meets"


def test_what_acts_behind_the_base_is_not_merged_and_shares_one_service() -> None:
    mixed, merged = (fitted([BASE, latency("ia3", 1, 400, 20)], PROBE, adapters=50, serving=one) for one in SERVINGS)
    assert merged.cost == mixed.cost
    assert merged.cost is not None
    assert merged.cost.replicas == 1
    by_formula = [fitted([], PROBE, adapters=50, serving=one).memory_bytes for one in SERVINGS]
    assert by_formula[0] == by_formula[1]


def test_a_base_that_was_not_measured_is_counted_by_formula_only() -> None:
    found = fitted([BASE], base="mistral-7b", device="gpu", memory_gib=24)
    assert found.status == "not measured"
    assert found.memory_bytes is not None
    assert 13 * 2**30 < found.memory_bytes < 15 * 2**30
    assert fitted([BASE], base="mistral-7b", device="gpu", memory_gib=12).status == "misses"
    quarter = fitted([BASE], base="mistral-7b", device="gpu", memory_gib=12, quantised_base=True)
    assert quarter.memory_bytes is not None
    assert quarter.memory_bytes < 4 * 2**30
    assert [gap.command for gap in quarter.gaps] == ["make gpu-evidence BASE=FOLDER-OF-Mistral-7B-v0.3"]
    assert fitted([], device="gpu").gaps[0].command == "make gpu-evidence"


@pytest.mark.parametrize(
    ("device", "command"),
    [
        ("cpu", "adaptermux-loadtest run capacity --set base=FOLDER-OF-THE-BASE"),
        ("gpu", "make gpu-evidence BASE=FOLDER-OF-THE-BASE"),
    ],
)
def test_a_base_known_by_its_parameters_only_is_not_answered_from_the_rows_of_its_neighbour(
    device: str, command: str
) -> None:
    rows = [BASE, latency("ia3", 1, 400, 20)]
    rows += [
        memory(10, 1, device="cuda:0", device_bytes=200 * MIB),
        latency("ia3", 1, 4000, 2, device="cuda:0"),
    ]
    assert fitted(rows, device=device).status == "meets"
    found = fitted(rows, device=device, base_parameters=25e6)
    assert found.status == "not measured"
    assert found.capacity is None
    [gap] = found.gaps
    assert "latency and memory of 2.5e+07 parameters" in gap.what
    assert gap.command == command


def test_passes_of_the_engine_stand_for_a_service_at_twice_their_time_and_it_is_said() -> None:
    on_card = {"target": "adaptermux-engine", "device": "cuda:0", "scenario": "engine", "rate_per_s": None}
    rows = [latency("ia3", 1, 9_000, 4, **on_card), memory(10, 1, device="cuda:0", device_bytes=200 * MIB)]
    found = fitted(rows, device="gpu", p95_ms=8)
    assert found.capacity is not None
    assert found.capacity.p95_ms == 8
    assert "without HTTP" in found.gaps[0].what
    assert fitted(rows, device="gpu", p95_ms=7.9).status == "not measured"


def test_rows_of_another_machine_are_left_out_and_named() -> None:
    other = BASE.provenance.model_copy(update={"machine": "a faster one"})
    rows = [BASE, latency("ia3", 1, 400, 20), latency("ia3", 1, 4000, 5, provenance=other)]
    found = fitted(rows)
    assert rate_of(found) == 400
    assert "a faster one" in found.gaps[0].what


def test_replicas_leave_headroom_and_money_follows() -> None:
    prices = planted.PRICES.model_copy(update={"headroom": 0.5, "cpu_per_hour": 2.0, "hours_per_month": 100})
    cost = cost_of(asked(rps=200, adapters=4), prices, rate_per_s=100, stored_bytes=0, is_merged=False)
    assert cost.replicas == 4
    assert cost.utilisation == 0.5
    assert cost.per_month == 800
    assert cost.per_adapter_month == 200
    assert cost.per_million_requests == pytest.approx(800 / (200 * 3600 * 100) * 1e6)
    assert cost_of(asked(rps=200.1), prices, 100, 0, is_merged=False).replicas == 5


@pytest.mark.parametrize("candidate", [IA3, LARGE, PROBE, PREFIX])
@pytest.mark.parametrize("given", [{"p95_ms": 7}, {"mean_tokens": 40.5}, {"adapters": 300, "hot": 300}])
def test_the_commands_that_would_measure_it_are_commands(candidate: Candidate, given: dict[str, Any]) -> None:
    rows = [BASE, latency("ia3", 1, 400, 20), latency("prefix", 1, 400, 20), latency("lora", 1, 400, 20)]
    commands = [gap.command for gap in fitted(rows, candidate, **given).gaps]
    for command in commands:
        name, verb, which, *flags = shlex.split(command)
        assert (name, verb) == ("adaptermux-loadtest", "run")
        found = scenario.read(which, [value for value in flags if value != "--set"])
        if which == "capacity":
            assert len(found.cases) == 1
    if candidate is not PROBE:
        assert commands
