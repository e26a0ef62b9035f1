"""What the rows of evidence say of the comparison, in sentences that follow from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import fmean

import numpy as np

from decision.method_facts import facts_of
from decision.outcomes import COLLAPSE_MARGIN
from decision.rows import FULL, PROBE
from docs import evidence
from docs.experiment import POINT, headlines, method_of, parameters, place_of, quality_of, shortlist
from docs.tables import bullets, listed, points, quoted
from training.standings import Cell, Standing


def findings_part() -> str:
    """What the rows say, in sentences that follow from them."""
    sentences = [*_on_headlines(), *_on_floors(), *_on_small(), *_on_full(), *_on_calibration(), *_on_yardsticks()]
    return bullets(sentences)


def doubts_part() -> str:
    """What in the rows themselves limits what they show."""
    plan, cells = evidence.plan(), evidence.cells()
    ends = [end for cell in cells for one in cell.standings for end in _ends(cell, one)]
    tuned = sum(1 for cell in cells for one in cell.standings if one.tuned)
    low, high = (Counter(name for name, is_high in ends if is_high == side) for side in (False, True))
    collapsed = [
        f"`{one.candidate}` on {cell.task} with {cell.train_rows:,} ({one.collapse_rate:.0%} of runs)"
        for cell in cells
        for one in cell.standings
        if one.collapse_rate
    ]
    compared = [
        one.comparison for cell in cells for one in cell.standings if one.comparison is not None and _is_adapter(one)
    ]
    widths = [one.difference.high - one.difference.low for one in compared]
    verdicts = [one.verdict for one in compared]
    share = verdicts.count("undecided") / max(1, len(verdicts))
    sentences = [
        f"**Power.** A difference between two adapters is known to ±{50 * float(np.median(widths)):.1f} points in the "
        f"median (half of its interval), with {len(plan.final_seeds)} seeds. {share:.0%} of these {len(verdicts)} "
        f"comparisons end undecided at a margin of {POINT}; so would about half of those between equals known to "
        f"±{POINT}.",
        f"**Tuning.** Of {tuned} choices {low.total()} lie at the lowest value that was tried "
        f"({listed(f'`{name}` {count}' for name, count in low.most_common())}) and {high.total()} at the highest "
        f"({listed(f'`{name}` {count}' for name, count in high.most_common())}): beyond it a better one may lie.",
        f"**Collapsed runs** (within {100 * COLLAPSE_MARGIN:g} point of the commonest label): "
        + (listed(collapsed) + "." if collapsed else "none."),
    ]
    return bullets(sentences)


def _ends(cell: Cell, one: Standing) -> Iterator[tuple[str, bool]]:
    """The candidate, and whether its choice is the highest value that was tried; nothing where it is neither end."""
    if one.is_at_end:
        tried = next(tuning.tried for tuning in cell.tunings if tuning.candidate == one.candidate)
        yield one.candidate, one.tuned[-1] == tried[-1]


def _is_adapter(one: Standing) -> bool:
    """Acts within the base, which stays as it is."""
    facts = facts_of(one.method)
    return facts.is_answer and not facts.is_base_cost


def _on_headlines() -> Iterator[str]:
    others = [name for name in headlines() if name != evidence.reference()]
    plan = {candidate.name: candidate.method for candidate in evidence.plan().candidates}
    for is_other, title in ((True, "Bottleneck against LoRA"), (False, "More LoRA against less")):
        names = [name for name in others if (plan[name] != plan[evidence.reference()]) == is_other]
        found = [
            one.comparison
            for cell in evidence.cells()
            for one in cell.standings
            if one.candidate in names and one.comparison is not None
        ]
        if not found:
            continue
        verdicts = Counter(one.verdict for one in found)
        values = [one.difference.value for one in found]
        yield (
            f"**{title}.** Of {len(found)} comparisons ({quoted(names)}, every task and size), "
            f"{verdicts['not worse']} end not worse than `{evidence.reference()}` by more than {POINT}, "
            f"{verdicts['worse']} worse, {verdicts['undecided']} undecided; differences run from "
            f"{points(min(values))} to {points(max(values))} points."
        )


def _on_floors() -> Iterator[str]:
    linear = [one.name for one in evidence.plan().candidates if facts_of(one.method).is_base_cost]
    enough = {
        place_of(cell): [name for name in linear if name in shortlist(cell)]
        for cell in evidence.cells()
        if any(name in shortlist(cell) for name in linear)
    }
    total = len(evidence.cells())
    probe = {
        place_of(cell): less
        for cell in evidence.cells()
        if (less := quality_of(cell).difference(evidence.reference(), PROBE, cell.train_rows)) is not None
        and evidence.standing(cell, evidence.reference()) is not None
    }
    if probe:
        close = [place for place, less in probe.items() if less.low <= 0]
        values = [less.value for less in probe.values()]
        yield (
            f"**What an adapter brings.** `{evidence.reference()}` less `{PROBE}`, a linear model on the frozen base, "
            f"runs from {points(min(values))} to {points(max(values))} points; its interval lies above zero in "
            f"{len(probe) - len(close)} of {len(probe)} cells{f', not in {listed(close)}' if close else ''}."
        )
    if not enough:
        yield f"**Linear models** ({quoted(linear)}) are shown to be good enough in none of {total} cells."
        return
    told = listed(f"{place} ({quoted(names)})" for place, names in enough.items())
    yield (
        f"**Linear models** ({quoted(linear)}) cost nothing to serve and are shown to be good enough in {len(enough)} "
        f"of {total} cells: {told}."
    )


def _on_small() -> Iterator[str]:
    """Of the adapters that act within the base, the smallest."""
    sizes = {
        name: parameters(name)
        for name in (candidate.name for candidate in evidence.plan().candidates)
        if not facts_of(method_of(name)).is_base_cost and facts_of(method_of(name)).is_answer
    }
    smallest = min(sizes, key=lambda name: sizes[name])
    cells = [cell for cell in evidence.cells() if evidence.standing(cell, smallest) is not None]
    on = [place_of(cell) for cell in cells if smallest in shortlist(cell)]
    yield (
        f"**The smallest.** `{smallest}`, with {sizes[smallest]:,} parameters the smallest inside the base, "
        f"is on the shortlist in {len(on)} of {len(cells)} cells{f': {listed(on)}' if on else ''}."
    )


def _on_full() -> Iterator[str]:
    found = {
        place_of(cell): one.comparison.difference
        for cell in evidence.cells()
        for one in cell.standings
        if one.method == FULL and one.comparison is not None
    }
    if not found:
        return
    above = [place for place, one in found.items() if one.low > 0]
    below = [place for place, one in found.items() if one.high < 0]
    values = [one.value for one in found.values()]
    yield (
        f"**All weights.** Full fine-tuning less `{evidence.reference()}` runs from {points(min(values))} to "
        f"{points(max(values))} points; its interval lies above zero in {len(above)} of {len(found)} "
        f"cells{f' ({listed(above)})' if above else ''} and below in "
        f"{len(below)}{f' ({listed(below)})' if below else ''}."
    )


def _on_calibration() -> Iterator[str]:
    """Of adapters, by number of rows."""
    found: dict[int, list[Standing]] = {}
    for cell in sorted(evidence.cells(), key=lambda cell: cell.train_rows):
        for one in cell.standings:
            if _is_adapter(one):
                found.setdefault(cell.train_rows, []).append(one)
    told = [
        f"{100 * fmean(one.ece for one in ones):.1f} to {100 * fmean(one.ece_calibrated for one in ones):.1f} % with "
        f"{size:,} rows"
        for size, ones in found.items()
    ]
    if told:
        yield (
            "**Calibration.** The temperature that is fitted on validation rows takes the mean calibration error of "
            f"adapters from {listed(told)}."
        )


def _on_yardsticks() -> Iterator[str]:
    raised = [(cell, quality_of(cell).better_than_reference(cell.train_rows)) for cell in evidence.cells()]
    told = [f"{place_of(cell)} ({quoted(names)})" for cell, names in raised if names]
    if told:
        yield (
            f"**The yardstick was raised** where something is shown to be better than `{evidence.reference()}`: "
            f"{listed(told)}."
        )
    else:
        yield (
            f"**Nothing** is shown to be better than `{evidence.reference()}` in any cell, all candidates taken "
            "together."
        )
