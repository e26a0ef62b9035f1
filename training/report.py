"""A summary of evidence as a page of tables, with figures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from decision.bootstrap import Interval
from decision.comparison import MARGIN, SENSITIVITY_MARGINS
from decision.outcomes import COLLAPSE_MARGIN, SHARE_OF_FINAL
from decision.rows import WORDS
from training.across import Across
from training.standings import Cell, Comparison, Standing
from training.summary import Summary

PAGE = "quality.md"
NOTHING = "–"
MINUS = "−"


def write(summary: Summary, folder: Path, command: str) -> list[Path]:
    """Write the page and the figures into a folder; returns what was written.

    command: what makes them again, quoted under every table.
    """
    from training import figures

    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "accuracy-by-bytes": ("Accuracy against adapter bytes", figures.accuracy_by_bytes(summary.cells)),
    }
    if len(summary.across) > 1:
        title = "Accuracy against number of training rows"
        drawn["accuracy-by-rows"] = (title, figures.accuracy_by_rows(summary.cells))
    if any(cell.tunings for cell in summary.cells):
        drawn["tuning"] = ("Validation accuracy to expect from a number of trials", figures.tuning(summary.cells))
    written = []
    for name, (_, figure) in drawn.items():
        written += figures.save(figure, folder, name)
    page = folder / PAGE
    hidden = page.with_name(f".{page.name}.part")
    hidden.write_text(render(summary, command, {name: title for name, (title, _) in drawn.items()}), encoding="utf-8")
    hidden.replace(page)
    return [page, *written]


def render(summary: Summary, command: str, figures: dict[str, str]) -> str:
    """The page. figures: file name without ending -> title."""
    parts = [_head(summary, command)]
    parts += [f"![{title}]({name}.svg)\n" for name, title in figures.items()]
    if summary.missing:
        listed = "\n".join(f"- {sentence}" for sentence in summary.missing)
        parts.append(f"## Missing\n\nThese runs are not in the rows; nothing stands in for them.\n\n{listed}\n")
    if summary.diverged:
        listed = "\n".join(f"- {sentence}" for sentence in summary.diverged)
        parts.append(
            "## Diverged\n\nTraining of these runs ended in numbers that are not finite. They count as answering the "
            f"commonest training label.\n\n{listed}\n"
        )
    parts += [_across(found, command) for found in summary.across]
    parts += [_cell(cell, command) for cell in summary.cells]
    parts.append(_provenance(summary))
    return "\n".join(parts)


def _head(summary: Summary, command: str) -> str:
    margins = " and ".join(_points(margin) for margin in SENSITIVITY_MARGINS)
    return f"""# Quality

{_count(summary.num_quality_rows, "final run")} and {_count(summary.num_trial_rows, "trial")} of tuning. Made by

    {command}

- Accuracies, macro-F1 and calibration errors (ECE) are percentages of the test split, means over seeds; differences are
  in points.
- Intervals are 95 %, over seeds and test texts together, by the variance of a bootstrap crossed over both. With few
  seeds that differ much they are too narrow: in simulations with five seeds they held the truth in 92 to 98 of 100
  cases. They are about the settings that were chosen, not about what else the trials might have chosen.
- A difference is paired: the same seeds, so the same training rows in the same order, and the same test texts. Where no
  reference was named it is the best adapter, whose luck makes the others look worse than they are, with few rows by a
  point and more; a reference that was named beforehand has no such luck.
- *p* is an exact sign-flip test over seeds. With *n* seeds it cannot be smaller than 2 / 2<sup>*n*</sup>, 0.0625 with
  five: with few seeds read the interval. Holm's adjustment is for all comparisons of the table.
- *Tuned* is what did best in the trials, of the learning rate, the head's, or the strength of a logistic regression;
  "(end)" marks the lowest or highest value that was tried, beyond which a better one may lie.
- The verdict asks whether more than {_points(MARGIN)} points are lost: "not worse" where the whole interval lies above
  that loss, "worse" where it lies below, "undecided" otherwise. The last column says the same for {margins} points.
"""


def _across(found: Across, command: str) -> str:
    lines = [f"## All tasks, {found.train_rows:,} rows\n"]
    if not found.overalls:
        return "\n".join([*lines, f"No candidate has runs on all of {', '.join(found.tasks)}.\n"])
    rows = [
        (
            f"`{overall.candidate}`" + (" (reference)" if overall.candidate == found.reference else ""),
            _percent(overall.accuracy),
            _signed(overall.mean_difference),
            _signed(overall.difference),
            _percent(overall.probability),
        )
        for overall in found.overalls
    ]
    against = f"`{found.reference}`" if found.reference else "the reference"
    less = f"less {against}"
    lines += _table(
        ("candidate", "accuracy, IQM", f"{less}, mean", f"{less}, IQM", f"beats {against}, % of runs"), rows
    )
    note = (
        "Mean: over the tasks, with an interval over seeds and test texts of each. IQM is the mean of the middle half "
        "of all runs: of accuracies it leaves out the easiest and the hardest tasks, of differences the largest and "
        "the smallest, failures among them. Its interval and that of the share draw seeds within each task only, so "
        "they speak of these tasks and test texts. A share of runs counts ties half."
    )
    lines.append(f"\n{note} Tasks: {', '.join(found.tasks)}.\n\n{_basis(found.num_runs, found.seeds, command)}\n")
    return "\n".join(lines)


def _cell(cell: Cell, command: str) -> str:
    against = f"less `{cell.reference}`" if cell.reference else "difference"
    results = [
        (*_identity(standing), *_result(standing), *_compared(standing.comparison)) for standing in cell.standings
    ]
    basis = f"{_basis(cell.num_runs, cell.seeds, command, cell.num_test_rows)}\n"
    margins = " / ".join(_points(margin) for margin in SENSITIVITY_MARGINS)
    lines = [f"## {cell.task}, {cell.train_rows:,} rows\n"]
    if cell.reference is None:
        lines.append("The reference has no run here, so nothing is compared.\n")
    lines += _table(
        (
            "candidate",
            "tuned",
            "parameters",
            "bytes",
            "accuracy",
            "macro-F1",
            against,
            "seeds",
            "p",
            "Holm",
            "verdict",
            margins,
        ),
        results,
    )
    lines += ["", basis]
    lines += _table(
        (
            "candidate", "seeds", "seed sd", "ECE", "ECE, calibrated", f"steps to {SHARE_OF_FINAL:.0%}", "collapsed",
            "CPU s", "peak MiB",
        ),
        [_training(standing) for standing in cell.standings],
    )  # fmt: skip
    lines += [
        f"\nSteps until {SHARE_OF_FINAL:.0%} of the last validation accuracy, as finely as it was measured; collapsed: "
        f"runs within {_points(COLLAPSE_MARGIN)} points of the majority's accuracy.\n",
        basis,
    ]
    if cell.tunings:
        lines += _tuning(cell, command)
    return "\n".join(lines)


def _identity(standing: Standing) -> tuple[str, ...]:
    rates = ", ".join(f"{value:g}" for value in standing.tuned) or NOTHING
    rates += " (end)" if standing.is_at_end else ""
    head = f" + {standing.num_head_parameters:,}" if standing.num_head_parameters else ""
    size = f"{standing.num_adapter_parameters:,}{head}", f"{standing.adapter_bytes:,}"
    if standing.method == WORDS:
        size = NOTHING, NOTHING  # its vocabulary is no adapter, and not counted
    return f"`{standing.candidate}`", rates, *size


def _result(standing: Standing) -> tuple[str, ...]:
    return _percent(standing.accuracy), f"{100 * standing.macro_f1:.1f}"


def _compared(comparison: Comparison | None) -> tuple[str, ...]:
    """Difference, how many seeds both have, p, adjusted p, and the verdicts."""
    if comparison is None:
        return (NOTHING,) * 6
    return (
        _signed(comparison.difference),
        str(comparison.num_seeds),
        f"{comparison.p:.3g}",
        f"{comparison.holm_p:.3g}",
        comparison.verdict,
        " / ".join(comparison.sensitivity),
    )


def _training(standing: Standing) -> tuple[str, ...]:
    memory = standing.peak_memory_bytes
    return (
        f"`{standing.candidate}`",
        str(len(standing.seeds)),
        NOTHING if standing.seed_sd is None else f"{100 * standing.seed_sd:.2f}",
        f"{100 * standing.ece:.1f}",
        f"{100 * standing.ece_calibrated:.1f}",
        NOTHING if standing.steps_to_share is None else f"{standing.steps_to_share:g}",
        NOTHING if standing.collapse_rate is None else f"{standing.collapse_rate:.0%}",
        f"{standing.train_cpu_s:,.0f}",
        NOTHING if memory is None else f"{memory / 2**20:,.0f}",
    )


def _tuning(cell: Cell, command: str) -> list[str]:
    most = max(tuning.num_trials for tuning in cell.tunings)
    budgets = sorted({1, 2, 4, most} & set(range(1, most + 1)))
    rows = [
        (
            f"`{tuning.candidate}`",
            ", ".join(f"{rate:g}" for rate in tuning.tried) or NOTHING,
            str(tuning.num_trials),
            *(
                f"{100 * tuning.expected_best[budget - 1]:.1f}" if budget <= tuning.num_trials else NOTHING
                for budget in budgets
            ),
        )
        for tuning in cell.tunings
    ]
    seeds = tuple(sorted({seed for tuning in cell.tunings for seed in tuning.seeds}))
    num_trials = sum(tuning.num_trials * len(tuning.seeds) for tuning in cell.tunings)
    return [
        *_table(("candidate", "tried", "trials", *(f"best of {budget}" for budget in budgets)), rows),
        "\nValidation accuracy to expect from the best of so many trials (Dodge et al. 2019).\n",
        f"{_basis(num_trials, seeds, command, what='trial')}\n",
    ]


def _provenance(summary: Summary) -> str:
    commands = "\n".join(f"    {command}" for command in summary.commands)
    return f"""## Where the rows come from

- commits: {", ".join(f"`{commit}`" for commit in summary.commits)}
- machines: {"; ".join(summary.machines)}
- versions: {"; ".join(summary.versions)}

Commands:

{commands}
"""


def _basis(
    num_runs: int, seeds: Sequence[int], command: str, num_test_rows: int | None = None, what: str = "run"
) -> str:
    texts = f", {num_test_rows:,} test texts" if num_test_rows else ""
    named = ", ".join(map(str, seeds))
    return f"*{_count(num_runs, what)}, {_count(len(seeds), 'seed')} ({named}){texts}; made by* `{command}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Left the names, right the numbers."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return NOTHING
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _signed(interval: Interval | None) -> str:
    """A difference in points, with a sign; two places, because margins are as small as half a point."""
    if interval is None:
        return NOTHING
    value, low, high = (f"{100 * end:+.2f}" for end in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]".replace("-", MINUS)


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"
