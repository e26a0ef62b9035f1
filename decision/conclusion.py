"""What follows at an end of the tree: of the candidates that are good enough, the cheapest that meets the limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from decision.answer import (
    Answer,
    Basis,
    Confidence,
    Option,
    PublishedBasis,
    QualityBasis,
    ServingBasis,
    Share,
    Step,
    Verdict,
    points,
)
from decision.comparison import MARGIN, non_inferiority
from decision.cost import GIB, Prices
from decision.evidence import Evidence
from decision.fit import Fit, Gap, fit
from decision.literature import Chapter
from decision.method_facts import PARAMETER_BYTES, facts_of, methods
from decision.quality import Candidate, Standing, TaskQuality
from decision.question import Question
from decision.serving import Serving, Source

POINTS = f"{100 * MARGIN:g} point{'' if MARGIN == 0.01 else 's'}"


@dataclass(frozen=True, slots=True)
class _Judged:
    """One candidate with both sides of what is known of it."""

    standing: Standing
    fit: Fit

    @property
    def is_feasible(self) -> bool:
        return self.fit.status == "meets"

    @property
    def is_good(self) -> bool:
        return self.standing.verdict == "not worse"

    @property
    def price(self) -> tuple[float, int, float, str]:
        """What candidates are put in order by: money, then bytes, then the training."""
        month = self.fit.cost.per_month if self.fit.cost else 0.0
        candidate = self.standing.candidate
        return month, self.fit.adapter_bytes, candidate.train_cpu_s, candidate.name

    def option(self) -> Option:
        return _option(self.standing.candidate, self.fit, self.standing)


def conclude_measured(
    question: Question,
    path: Sequence[Step],
    names: Sequence[str],
    quality: TaskQuality,
    evidence: Evidence,
    serving: Serving,
    prices: Prices,
) -> Answer:
    """names: of the candidates that are not worse than the yardstick."""
    rows = question.train_rows
    judged = [
        _Judged(one, fit(one.candidate, question, serving, prices, evidence.about.base))
        for one in quality.standings(rows)
    ]
    good = [one for one in judged if one.standing.candidate.name in names]
    feasible = sorted((one for one in good if one.is_feasible), key=lambda one: one.price)
    choice = feasible[0] if feasible else None
    missing = _quality_gaps(question, quality, evidence)
    yardstick = quality.yardstick(rows)
    runner_up, runner_up_because = _runner_up(choice, judged, quality, rows)
    verdict, because = _verdict(choice, good, judged, yardstick)
    if choice is None:
        missing += [gap for one in good for gap in one.fit.gaps]
    else:
        missing += choice.fit.gaps
        missing += [gap for one in good if one.fit.status == "not measured" for gap in one.fit.gaps]
    undecided = _cheaper_unsure(choice, judged)
    if undecided:
        named = _listed(one.standing.candidate.name for one in undecided)
        missing.append(
            Gap(
                f"whether {named} {'loses' if len(undecided) == 1 else 'lose'} more than {POINTS} to `{yardstick}`: "
                "more `final_seeds` in the plan would tell",
                evidence.about.quality_command,
            )
        )
    confidence, confidence_because = _confidence(choice, undecided, question, quality, evidence, missing)
    shown = [one for one in (choice, runner_up) if one is not None] or good
    full = quality.full(rows)
    return Answer(
        question=question,
        verdict=verdict,
        because=because,
        choice=None if choice is None else choice.option(),
        settings={} if choice is None else _settings(choice.standing.candidate),
        confidence=confidence,
        confidence_because=confidence_because,
        runner_up=None if runner_up is None else runner_up.option(),
        runner_up_because=runner_up_because,
        full=None if full is None else Share.of(full),
        yardstick=yardstick,
        yardstick_because=_yardstick_because(quality, rows),
        options=tuple(one.option() for one in sorted(judged, key=lambda one: -one.standing.accuracy.value)),
        path=tuple(path),
        basis=(
            _quality_basis(quality, [one.standing for one in shown], rows, evidence),
            *_serving_basis(source for one in shown for source in one.fit.sources),
        ),
        missing=_once(missing),
    )


def conclude_published(
    question: Question, path: Sequence[Step], chapter: Chapter, serving: Serving, prices: Prices
) -> Answer:
    """What the literature recommends, with the memory it takes; nothing of it was measured here."""
    candidate = _published_candidate(question, chapter)
    found = fit(candidate, question, serving, prices, evidence_base="")
    needs = f"; {chapter.needs}" if chapter.needs else ""
    missing = [Gap(f"accuracy: it is taken from published work{needs}", chapter.command), *found.gaps]
    option = _option(candidate, found, None)
    if question.mean_tokens is None and found.capacity is not None:  # the workload that was measured has short texts
        missing.append(Gap("latency for your texts", "adaptermux-decide ask --mean-tokens N"))
        option = option.model_copy(update={"texts_per_s": None, "p95_ms": None, "dtype": None, "cost": None})
    fails = found.status == "misses"
    return Answer(
        question=question,
        verdict="infeasible" if fails else "literature",
        because=found.why if fails else chapter.says,
        choice=None if fails else option,
        settings={} if fails else {"method": chapter.method, "options": dict(chapter.options), **chapter.settings},
        confidence="none" if fails else "literature",
        confidence_because="published work, not measured here",
        runner_up=None,
        runner_up_because="",
        full=None,
        options=(option,),
        path=tuple(path),
        basis=(
            *(PublishedBasis(says=reason.says, keys=reason.sources) for reason in chapter.reasons),
            *_serving_basis(found.sources),
        ),
        missing=_once(missing),
    )


def conclude_unmeasured(question: Question, path: Sequence[Step], what: str, command: str) -> Answer:
    """Where there is neither evidence nor literature."""
    return Answer(
        question=question,
        verdict="undecided",
        because=what,
        choice=None,
        settings={},
        confidence="none",
        confidence_because="no row says anything of it",
        runner_up=None,
        runner_up_because="",
        full=None,
        options=(),
        path=tuple(path),
        basis=(),
        missing=(Gap(what, command),),
    )


def _yardstick_because(quality: TaskQuality, rows: int) -> str:
    better = quality.better_than_reference(rows)
    if better:
        return f"shown to be better than the reference, `{quality.reference}`"
    if quality.yardstick(rows) == quality.reference:
        return "the reference"
    why = f"where the reference, `{quality.reference}`, was not measured" if quality.reference else "as none was named"
    return f"the best of all, {why}: in part by luck"


def _verdict(
    choice: _Judged | None, good: Sequence[_Judged], judged: Sequence[_Judged], yardstick: str | None
) -> tuple[Verdict, str]:
    enough = f"lose no more than {POINTS} to `{yardstick}`"
    if choice is not None:
        name = choice.standing.candidate.name
        rivals = len([one for one in good if one.is_feasible])
        if len(good) == 1:
            return "use", f"`{name}` meets the limits, and no other is shown to lose no more than {POINTS} to it."
        if rivals == 1:
            return "use", f"`{name}` alone, of {len(good)} that are shown to {enough}, meets the limits."
        return "use", f"`{name}` is the cheapest of {rivals} that are shown to {enough}, and meet the limits."
    listed = "; ".join(f"`{one.standing.candidate.name}`: {one.fit.why}" for one in good)
    unsure = [one for one in judged if one.standing.verdict == "undecided" and one.fit.status != "misses"]
    if any(one.fit.status == "not measured" for one in good):
        return "undecided", f"What is good enough was not measured in serving as asked ({listed})."
    if unsure:
        named = _listed(one.standing.candidate.name for one in unsure)
        return "undecided", f"What is good enough misses the limits ({listed}); whether {named} is, is not known."
    return "infeasible", f"What is good enough misses the limits ({listed})."


def _runner_up(
    choice: _Judged | None, judged: Sequence[_Judged], quality: TaskQuality, rows: int
) -> tuple[_Judged | None, str]:
    """The next cheapest that would do; else, of what meets the limits, that of the highest accuracy."""
    others = [one for one in judged if one is not choice and one.is_feasible]
    if not others:
        return None, ""
    good = sorted((one for one in others if one.is_good), key=lambda one: one.price)
    if choice is None:
        found = max(others, key=lambda one: one.standing.accuracy.value)
        return found, f"it meets the limits, {points(found.standing.difference)} to `{quality.yardstick(rows)}`"
    found = good[0] if good else max(others, key=lambda one: one.standing.accuracy.value)
    difference = quality.difference(found.standing.candidate.name, choice.standing.candidate.name, rows)
    lost = "" if difference is None else f"; {points(difference)} to the choice"
    if good:
        is_as_good = difference is not None and non_inferiority(difference) == "not worse"
        return found, f"{'as good' if is_as_good else 'good enough too'}, and dearer or larger{lost}"
    return found, f"not shown to be good enough{lost}"


def _cheaper_unsure(choice: _Judged | None, judged: Sequence[_Judged]) -> list[_Judged]:
    """Those that would be taken instead if more seeds showed them to be good enough."""
    return [
        one
        for one in judged
        if one.standing.verdict == "undecided" and one.is_feasible and (choice is None or one.price < choice.price)
    ]


def _confidence(
    choice: _Judged | None,
    undecided: Sequence[_Judged],
    question: Question,
    quality: TaskQuality,
    evidence: Evidence,
    missing: Sequence[Gap],
) -> tuple[Confidence, str]:
    if choice is None:
        return "none", "there is no choice"
    if quality.is_extrapolated(question.train_rows):
        return "low", f"from {_sizes(quality)} rows, nothing was measured beyond"
    if question.base_name != evidence.about.base:
        return "low", f"accuracy was measured on {evidence.about.base} only"
    if choice.fit.gaps:
        return "low", f"not measured: {choice.fit.gaps[0].what}"
    if undecided:
        named = _listed(one.standing.candidate.name for one in undecided)
        return "medium", f"{named}, cheaper, may be good enough"
    if missing:
        return "medium", f"not measured: {missing[0].what}"
    if not choice.standing.holds_strictly:
        return "medium", f"it would not hold at half of the margin of {POINTS}"
    return "high", "it holds at half of the margin too, and nothing cheaper is in doubt"


def _quality_gaps(question: Question, quality: TaskQuality, evidence: Evidence) -> list[Gap]:
    command = evidence.about.quality_command
    found = []
    if quality.is_extrapolated(question.train_rows):
        found.append(Gap(f"{question.train_rows:,} training rows; {_sizes(quality)} were measured", command))
    if question.base_name != evidence.about.base:
        found.append(Gap(f"accuracy on {question.base_name}; that of {evidence.about.base} stands for it", command))
    longest = max(question.max_tokens or 0, question.mean_tokens or 0)
    if quality.max_length is not None and longest > quality.max_length:
        found.append(Gap(f"texts of {longest:g} tokens; training cut them at {quality.max_length}", command))
    sizes = " and ".join(f"{size:,}" for size in quality.sizes_around(question.train_rows))
    names = quality.names(question.train_rows)
    if quality.reference is not None and quality.reference not in names:
        found.append(Gap(f"the reference, `{quality.reference}`, on {quality.task} with {sizes} rows", command))
    lacking = _lacking([*names, quality.reference or ""], quality, evidence)
    if lacking:
        found.append(Gap(f"{_listed(lacking)} on {quality.task} with {sizes} rows", command))
    return found


def _lacking(names: Sequence[str], quality: TaskQuality, evidence: Evidence) -> list[str]:
    """Candidates that other cells have, and methods that none has."""
    known = {run.candidate: run.method for run in evidence.qualities if facts_of(run.method).is_answer}
    without = [name for name, facts in methods().items() if facts.is_answer and name not in known.values()]
    return [*sorted(set(known) - set(names)), *without]


def _published_candidate(question: Question, chapter: Chapter) -> Candidate:
    number = facts_of(chapter.method).num_parameters(question.shape, chapter.options) or 0
    labels = question.num_labels or 2
    head = question.shape.head_parameters(labels)
    shown = ", ".join(f"{name} {value:g}" for name, value in chapter.options.items() if value)
    return Candidate(
        name=f"{chapter.method} ({shown})",
        method=chapter.method,
        options=dict(chapter.options),
        recipe={},
        num_adapter_parameters=number,
        num_head_parameters=head,
        num_labels=labels,
        adapter_bytes=PARAMETER_BYTES * (number + head),
        train_cpu_s=0.0,
    )


def _settings(candidate: Candidate) -> dict[str, object]:
    return {"method": candidate.method, **candidate.recipe}


def _option(candidate: Candidate, found: Fit, standing: Standing | None) -> Option:
    capacity, memory = found.capacity, found.memory_bytes
    return Option(
        candidate=candidate.name,
        method=candidate.method,
        accuracy=None if standing is None else Share.of(standing.accuracy),
        difference=None if standing is None else Share.of(standing.difference),
        quality=None if standing is None else standing.verdict,
        serving=found.status,
        why=found.why,
        adapter_bytes=found.adapter_bytes,
        memory_gib=None if memory is None else memory / GIB,
        texts_per_s=None if capacity is None else capacity.texts_per_s,
        p95_ms=None if capacity is None else capacity.p95_ms,
        dtype=None if capacity is None else capacity.point.dtype,
        cost=found.cost,
    )


def _quality_basis(quality: TaskQuality, standings: Sequence[Standing], rows: int, evidence: Evidence) -> QualityBasis:
    yardstick = quality.yardstick(rows)
    names = dict.fromkeys([*(one.candidate.name for one in standings), *([yardstick] if yardstick else [])])
    return QualityBasis(
        task=quality.task,
        candidates=tuple(names),
        train_rows=quality.sizes_around(rows),
        seeds=tuple(sorted({seed for one in standings for seed in one.seeds})),
        commits=tuple(sorted({commit for one in standings for commit in one.commits})),
        command=evidence.about.quality_command,
    )


def _serving_basis(sources: Iterable[Source]) -> list[Basis]:
    return [
        ServingBasis(scenario=one.scenario, case=one.case, commits=one.commits, command=one.command)
        for one in dict.fromkeys(sources)
    ]


def _once(gaps: Iterable[Gap]) -> tuple[Gap, ...]:
    return tuple(dict.fromkeys(gaps))


def _sizes(quality: TaskQuality) -> str:
    return f"{quality.sizes[0]:,} to {quality.sizes[-1]:,}" if len(quality.sizes) > 1 else f"{quality.sizes[0]:,}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
