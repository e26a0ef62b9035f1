"""Whether one candidate can be served as asked, what that takes, and what would have to be measured to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from decision.cost import GIB, SECONDS_PER_HOUR, Cost, Prices, cost_of
from decision.method_facts import PARAMETER_BYTES, MethodFacts, facts_of
from decision.quality import Candidate
from decision.question import Question
from decision.serving import (
    Capacity,
    Memory,
    Point,
    Serving,
    Source,
    Strain,
    are_lower_rates_tried,
    covering,
    slower,
    strain_of,
)

WEIGHT_BYTES = {"cpu": 4.0, "gpu": 2.0}
"""Of one parameter of the base, in the formats float32 and bfloat16."""
QUANTISED_BYTES = 0.5
Status = Literal["meets", "misses", "not measured"]


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that the evidence does not say, and what would measure it."""

    what: str
    command: str


@dataclass(frozen=True, slots=True)
class Fit:
    """why: what is missed or not measured; empty where all is met. gaps: what is taken for granted, or missing."""

    status: Status
    why: str
    adapter_bytes: int
    memory_bytes: int | None = None
    """Of one replica."""
    capacity: Capacity | None = None
    cost: Cost | None = None
    gaps: tuple[Gap, ...] = ()
    sources: tuple[Source, ...] = ()


def fit(candidate: Candidate, question: Question, serving: Serving, prices: Prices, evidence_base: str) -> Fit:
    """evidence_base: the base model on which the candidate's quality was measured."""
    facts = facts_of(candidate.method)
    size = adapter_bytes(candidate, question, evidence_base)
    if size is None:
        what = f"the size of `{candidate.name}` on {question.base_name} follows from no formula"
        return Fit("not measured", what, 0, gaps=(Gap(what, "adaptermux-train grid --plan PLAN.toml"),))
    if (refusal := _refusal(facts, candidate, question)) is not None:
        return Fit("misses", refusal, size)
    is_merged = question.serving == "merged" and not facts.is_base_cost
    memory = None if question.quantised_base else serving.memory
    if memory is None:
        return _by_formula(question, size, is_merged)
    room = _room_for_copy(memory, question) if is_merged else _room(memory, question, size, serving)
    if room.miss:
        return Fit("misses", room.miss, size, memory_bytes=room.needed_bytes)
    strains, gaps = list(room.strains), [*_others(serving), *room.gaps]
    if question.swaps_per_hour > 0 and not is_merged:
        strain, unmeasured = _changes(question, serving)
        strains += strain
        gaps += unmeasured
    is_bare = is_merged or facts.is_base_cost
    points = serving.base_points() if is_bare else serving.points(candidate.method, candidate.num_adapter_parameters)
    capacity = serving.capacity(points, question, strains)
    if capacity is None:
        return _without_capacity(candidate, question, points, strains, size, is_bare)
    stored = question.shape.parameters * PARAMETER_BYTES if is_merged else size
    return Fit(
        status="meets",
        why="",
        adapter_bytes=size,
        memory_bytes=room.needed_bytes,
        capacity=capacity,
        cost=cost_of(question, prices, capacity.texts_per_s, stored, is_merged),
        gaps=(*gaps, *_beyond(capacity, candidate, question, is_bare)),
        sources=(memory.source, capacity.point.source, *(strain.source for strain in strains)),
    )


def adapter_bytes(candidate: Candidate, question: Question, evidence_base: str) -> int | None:
    """Of one adapter with its head: as measured, or by formula for another base or number of labels."""
    labels = question.num_labels or candidate.num_labels
    if not candidate.num_head_parameters:
        return candidate.adapter_bytes
    if question.base_name == evidence_base:
        per_label = candidate.num_head_parameters / candidate.num_labels
        return candidate.adapter_bytes + round((labels - candidate.num_labels) * per_label * PARAMETER_BYTES)
    number = facts_of(candidate.method).num_parameters(question.shape, candidate.options)
    return None if number is None else PARAMETER_BYTES * (number + question.shape.head_parameters(labels))


def _by_formula(question: Question, size: int, is_merged: bool) -> Fit:
    """Where nothing was measured of the base on the device: what its weights and the hot adapters take."""
    each = QUANTISED_BYTES if question.quantised_base else WEIGHT_BYTES[question.device]
    held = 0 if is_merged else question.num_hot * size
    needed = int(question.shape.parameters * each) + held
    shown = f"weights and hot adapters take {needed / GIB:.3g} GiB by formula, without what a pass needs"
    if question.memory_gib is not None and needed > question.memory_gib * GIB:
        return Fit("misses", f"{shown}, of {question.memory_gib:g}", size, memory_bytes=needed)
    state = " in 4 bits" if question.quantised_base else ""
    what = f"latency and memory of {question.base_name}{state} on a {question.device}; {shown}"
    counts = "" if question.base_parameters is None else "; rows of it count once decision/bases.toml names it"
    gap = Gap(f"{what}{counts}", _any_command(question))
    return Fit("not measured", what, size, memory_bytes=needed, gaps=(gap,))


def _refusal(facts: MethodFacts, candidate: Candidate, question: Question) -> str | None:
    """What no measurement would change."""
    limit = question.shape.max_tokens
    if question.max_tokens is not None and question.max_tokens > limit:
        return f"{question.base_name} takes texts of at most {limit:,} tokens"
    if question.serving == "merged" and not facts.is_base_cost:
        if question.locked_base:
            return "merging changes the weights of a base that is locked"
        if not facts.merges:
            return f"`{candidate.name}` cannot be merged into the base's weights"
    return None


@dataclass(frozen=True, slots=True)
class _Room:
    """Of one replica's memory. miss: why it is too little."""

    needed_bytes: int
    miss: str = ""
    strains: tuple[Strain, ...] = ()
    gaps: tuple[Gap, ...] = ()


def _room(memory: Memory, question: Question, size: int, serving: Serving) -> _Room:
    """The base and all hot adapters; or, where that is too much, as few of them as were tried."""
    gaps = []
    if question.adapters > memory.most_registered:
        what = f"{question.adapters:,} registered adapters; at most {memory.most_registered:,} were measured"
        command = f"adaptermux-loadtest run scale --set adapters.num_registered={question.adapters}"
        gaps.append(Gap(what, command))
    base = memory.base_bytes + int((memory.bytes_per_registered or 0.0) * question.adapters)
    hot = question.num_hot * size
    limit = _limit(question)
    if limit is None or base + hot <= limit:
        return _Room(base + hot, gaps=tuple(gaps))
    strain = strain_of(serving.missing_parts, 1 - (limit - base) / hot) if base <= limit else None
    if strain is None:
        return _Room(base + hot, miss=f"base and hot adapters take {_gib(base + hot)} of {question.memory_gib:g} GiB")
    return _Room(limit, strains=(strain,), gaps=tuple(gaps))


def _room_for_copy(memory: Memory, question: Question) -> _Room:
    limit = _limit(question)
    is_short = limit is not None and memory.base_bytes > limit
    miss = f"a merged copy takes {_gib(memory.base_bytes)} of {question.memory_gib:g} GiB" if is_short else ""
    return _Room(memory.base_bytes, miss)


def _limit(question: Question) -> int | None:
    return None if question.memory_gib is None else int(question.memory_gib * GIB)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.3g} GiB"


def _changes(question: Question, serving: Serving) -> tuple[list[Strain], list[Gap]]:
    """What changes of adapters cost the others; beyond what was measured, what the most of them did."""
    per_s = question.swaps_per_hour / SECONDS_PER_HOUR
    strain = strain_of(serving.changes, per_s)
    if strain is not None:
        return [strain], []
    what = f"{question.swaps_per_hour:g} changes of adapters an hour while requests come in"
    gap = Gap(what, f"adaptermux-loadtest run swap --set changes_per_s={per_s:.3g}")
    return serving.changes[-1:], [gap]


def _beyond(capacity: Capacity, candidate: Candidate, question: Question, is_bare: bool) -> list[Gap]:
    """What the row that stands for the question does not say."""
    gaps = []
    if not is_bare and capacity.point.num_hot < question.num_hot:
        what = f"{question.num_hot:,} hot adapters; {capacity.point.num_hot:,} were measured"
        changes = f"adapters.num_registered={question.adapters}", f"workload.num_hot={question.num_hot}"
        gaps.append(Gap(what, _capacity_command(candidate, question, *changes)))
    if capacity.point.is_engine:
        what = "passes of the engine without HTTP stand for the service"
        gaps.append(Gap(what, _capacity_command(candidate, question)))
    return gaps


def _without_capacity(
    candidate: Candidate,
    question: Question,
    points: Sequence[Point],
    strains: Sequence[Strain],
    size: int,
    is_bare: bool,
) -> Fit:
    """is_bare: the points are of adapters, which the bare base does no worse than."""
    found = covering(points, question)
    if not found:
        shown = f" with texts of {question.mean_tokens:g} tokens" if question.mean_tokens is not None and points else ""
        what = f"`{candidate.name}` was not measured in serving{shown}"
        return Fit("not measured", what, size, gaps=(Gap(what, _capacity_command(candidate, question)),))
    lowest, factor = min(found, key=lambda one: (one.p95_ms, one.source.case)), slower(strains)
    p95_ms = factor * lowest.p95_ms
    seen = f"the lowest p95 of `{candidate.name}` is {p95_ms:.3g} ms, at {lowest.texts_per_s:.3g} texts/s"
    if not is_bare and are_lower_rates_tried(found, lowest):
        return Fit("misses", f"{seen}, and lower rates were tried", size, sources=(lowest.source,))
    assert question.p95_ms is not None, "without a limit any point will do; this is a bug"
    calm = question.model_copy(update={"p95_ms": question.p95_ms / factor})
    gap = Gap(f"{seen}; lower rates were not tried", _capacity_command(candidate, calm))
    return Fit("not measured", gap.what, size, gaps=(gap,), sources=(lowest.source,))


def _others(serving: Serving) -> list[Gap]:
    if not serving.other_machines:
        return []
    what = f"rows of other machines are left out: {'; '.join(serving.other_machines)}"
    return [Gap(what, "adaptermux-decide ask --evidence FOLDER-OF-ONE-MACHINE")]


def _any_command(question: Question) -> str:
    is_known, name = question.base_parameters is None, question.shape.id
    folder = f"FOLDER-OF-{name.split('/')[-1]}" if is_known else "FOLDER-OF-THE-BASE"
    if question.device == "gpu":
        return "make gpu-evidence" + ("" if is_known and question.base == "minilm" else f" BASE={folder}")
    return f"adaptermux-loadtest run capacity --set base={name if is_known else folder}"


def _capacity_command(candidate: Candidate, question: Question, *changes: str) -> str:
    """A search for the highest rate of the candidate itself, within the asked limit."""
    method = facts_of(candidate.method).served_as or candidate.method
    parts = [f'adapters.methods=["{method}"]', f'workload.methods=["{method}"]']
    options = ", ".join(f"{name} = {value:g}" for name, value in candidate.options.items())
    if options:
        parts.append(f"adapters.options={{ {method} = {{ {options} }} }}")
    if question.p95_ms is not None:
        parts.append(f"limit_p95_ms={question.p95_ms:g}")
    if question.mean_tokens is not None:
        parts.append(f'workload.texts={{ kind = "fixed", num_tokens = {ceil(question.mean_tokens)} }}')
    return "adaptermux-loadtest run capacity " + " ".join(f"--set '{part}'" for part in (*parts, *changes))
