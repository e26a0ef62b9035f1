"""What the worked example shows of training: its tables, from the rows of evidence."""

from __future__ import annotations

from functools import cache
from statistics import fmean

import numpy as np

from decision.bootstrap import Interval, crossed_difference, crossed_mean
from decision.comparison import MARGIN, non_inferiority
from decision.outline import basis
from decision.quality import TaskQuality
from decision.rows import FULL, MAJORITY, WORDS, QualityRow
from docs import evidence
from docs.tables import KIB, MIB, NOTHING, difference, listed, percent, plain_table, points, quoted, table
from training.grid_plan import read_plan
from training.standings import Cell, Standing
from training.verbs import example

POINT = f"{100 * MARGIN:g} point"


@cache
def headlines() -> tuple[str, ...]:
    """The candidates of the methods that the worked example trains."""
    methods = {candidate.method for candidate in read_plan(example.PLAN).candidates}
    return tuple(candidate.name for candidate in evidence.plan().candidates if candidate.method in methods)


def candidates_table() -> str:
    """What was compared, in the plan's order."""
    plan = evidence.plan()
    found = {one.candidate: one for cell in evidence.cells()[:1] for one in cell.standings}
    rows = []
    for candidate in plan.candidates:
        one = found.get(candidate.name)
        options = ", ".join(f"{name} {value:g}" for name, value in candidate.options.items())
        tried = "; ".join(", ".join(f"{value:g}" for value in values) for values in candidate.tune.values())
        is_adapter = one is not None and candidate.method not in (FULL, MAJORITY, WORDS)
        size = f"{one.num_adapter_parameters:,}" if one is not None and is_adapter else NOTHING
        rows.append((f"`{candidate.name}`", candidate.method, options, size, tried or "nothing"))
    trials = {len(candidate.trials()) for candidate in plan.candidates if candidate.tune}
    caption = (
        "The candidates, with the parameters that each trains beside its head. Every one that is tuned has "
        f"{listed(str(one) for one in sorted(trials))} trials at each task and size: of the learning rate (of the "
        "head for the head alone), or of the strength of a logistic regression."
    )
    head = ("candidate", "method", "options", "parameters", "tried")
    return table(head, rows, "lllrl", caption, "candidates")


def tasks_table() -> str:
    """The tasks, with what is reached without learning and with all weights."""
    rows = []
    for task in _tasks():
        found = [cell for cell in evidence.cells() if cell.task == task]
        first = next(run for run in evidence.runs() if run.task == task)
        ends = []
        for name in (MAJORITY, WORDS, FULL):
            shown = [one.accuracy.value for cell in found for one in cell.standings if one.candidate == name]
            ends.append(f"{100 * shown[-1]:.1f}" if shown else NOTHING)
        sizes = ", ".join(f"{cell.train_rows:,}" for cell in found)
        kind = "pairs" if first.is_pair else "texts"
        rows.append((task, kind, str(first.num_labels), f"{first.predictions.num_rows:,}", sizes, *ends))
    caption = (
        "The tasks. The last three columns: test accuracy, %, of the commonest label, of a logistic regression on "
        "TF-IDF of words, and of fine-tuning all weights, with the most rows that were measured."
    )
    head = ("task", "of", "labels", "test", "training rows", MAJORITY, WORDS, FULL)
    return table(head, rows, "llrrlrrr", caption, "tasks")


def coverage_part() -> str:
    """How much of the plan has been run."""
    plan = evidence.plan()
    asked = len(plan.candidates) * len(plan.final_seeds)
    done = {(cell.task, cell.train_rows): cell.num_runs for cell in evidence.cells()}
    short = [
        f"{task} with {size:,} rows ({done[task, size]} of {asked} runs)" if (task, size) in done else
        f"{task} with {size:,} rows (none)"
        for task in plan.tasks for size in plan.train_rows if done.get((task, size), 0) < asked
    ]  # fmt: skip
    total = asked * len(plan.tasks) * len(plan.train_rows)
    state = "Everything that the plan asks for is there." if not short else f"Not whole: {listed(short)}."
    machines = sorted({run.provenance.machine for run in evidence.runs()})
    commits = sorted({run.provenance.commit for run in evidence.runs()})
    torch = sorted({run.provenance.versions.get("torch", "unknown") for run in evidence.runs()})
    return (
        f"{sum(done.values())} of the plan's {total} final runs are in the rows. {state} They were made on "
        f"{listed(machines)} with torch {listed(torch)}, at commits {quoted(commits)}.\n"
    )


def basis_part() -> str:
    """What the drawing of the tree rests on."""
    return f"**What it rests on.** Reference: `{evidence.reference()}`. {basis(evidence.tree())}\n"


def headline_table() -> str:
    """LoRA and bottleneck: every candidate of the two methods against the reference."""
    others = [name for name in headlines() if name != evidence.reference()]
    rows = []
    for cell in evidence.cells():
        judge = evidence.standing(cell, evidence.reference())
        if judge is None:
            continue
        shown = [_judged(evidence.standing(cell, name)) for name in others]
        rows.append((cell.task, f"{cell.train_rows:,}", percent(judge.accuracy), *shown))
    sizes = ", ".join(f"`{name}` {parameters(name):,}" for name in headlines())
    caption = (
        f"LoRA and bottleneck: test accuracy of `{evidence.reference()}` in %, and how many points more the others "
        f"have, on the same seeds and texts, with 95 % intervals. **Bold**: not worse by more than {POINT}; *italic*: "
        f"worse; else undecided. Parameters: {sizes}."
    )
    head = ("task", "rows", f"`{evidence.reference()}`", *(f"`{name}`" for name in others))
    return table(head, rows, "lr" + "l" * (1 + len(others)), caption, "headline")


def accuracies_table() -> str:
    """Every candidate in every cell; what is on the shortlist stands out."""
    cells = evidence.cells()
    rows = []
    for candidate in evidence.plan().candidates:
        row = [f"`{candidate.name}`"]
        for cell in cells:
            one = evidence.standing(cell, candidate.name)
            if one is None:
                row.append(NOTHING)
                continue
            shown = f"{100 * one.accuracy.value:.1f}"
            row.append(f"**{shown}**" if candidate.name in shortlist(cell) else shown)
        rows.append(row)
    raised = [_raised(cell) for cell in cells]
    told = listed(one for one in raised if one)
    caption = (
        "Mean test accuracy in % of every candidate. **Bold**: on the shortlist, that is, shown to lose no more than "
        f"{POINT} to `{evidence.reference()}`"
        + (
            f", or to what is shown to be better than it ({told})."
            if told
            else "; nothing is shown to be better than it."
        )
        + " Intervals are in [@fig:differences]; full fine-tuning and the commonest label are never on it."
    )
    head = ("candidate", *(f"{cell.task} {cell.train_rows:,}" for cell in cells))
    return table(head, rows, "l" + "r" * len(cells), caption, "accuracies")


def across_table() -> str:
    """All tasks together: what each candidate has more than the reference, and how often it beats it."""
    found = [across for across in evidence.summary().across if across.reference is not None]
    rows = []
    for candidate in evidence.plan().candidates:
        row = [f"`{candidate.name}`"]
        for across in found:
            one = next((one for one in across.overalls if one.candidate == candidate.name), None)
            if one is None or one.mean_difference is None or one.difference is None or one.probability is None:
                row += [NOTHING] * 3
            else:
                beats = f"{100 * one.probability.value:.0f}"
                row += [marked(one.mean_difference), points(one.difference.value), beats]
        if set(row[1:]) != {NOTHING}:
            rows.append(row)
    columns = [text for one in found for text in (f"{one.train_rows:,} rows: mean", "IQM", "beats, %")]
    tasks = list(dict.fromkeys(task for across in found for task in across.tasks))
    note = (
        f"Points of accuracy more than `{evidence.reference()}` on {listed(tasks)} together: the mean over the tasks "
        f"with its 95 % interval over seeds and test texts (**bold**: not worse by more than {POINT}; *italic*: worse; "
        "else undecided), the mean of the middle half of all paired differences (interquartile mean, which leaves "
        "failures out; Agarwal et al. 2021), and the share of paired runs that do better, ties counted half."
    )
    return f"{plain_table(('candidate', *columns), rows, 'l' + 'r' * len(columns))}\n{note}\n"


def details_table() -> str:
    """One cell with all that its rows say: of the first task, with the most rows."""
    cell = _detailed()
    rows = []
    for one in cell.standings:
        compared = one.comparison
        p = NOTHING if compared is None else f"{compared.p:.2g} ({compared.holm_p:.2g})"
        size = NOTHING if one.method in (WORDS, MAJORITY) else f"{one.adapter_bytes / KIB:,.0f}"
        steps = NOTHING if one.steps_to_share is None else f"{one.steps_to_share:g}"
        deviation = NOTHING if one.seed_sd is None else f"{100 * one.seed_sd:.2f}"
        rates = ", ".join(f"{value:g}" for value in one.tuned) or NOTHING
        rows.append(
            (
                f"`{one.candidate}`",
                rates + (" (end)" if one.is_at_end else ""),
                size,
                percent(one.accuracy),
                NOTHING if compared is None else difference(compared.difference),
                p,
                deviation,
                f"{100 * one.ece:.1f}, {100 * one.ece_calibrated:.1f}",
                steps,
                f"{one.train_cpu_s:,.0f}",
            )
        )
    caption = (
        f"{cell.task} with {cell.train_rows:,} rows: what was chosen in tuning (end: the lowest or highest value that "
        f"was tried), file size with head, accuracy, points more than `{cell.reference}`, exact sign-flip $p$ (after "
        f"Holm; with {len(cell.seeds)} seeds it cannot be below {2 / 2 ** len(cell.seeds):.2g}), standard deviation "
        "over seeds, calibration error before and after its temperature, steps to 95 % of the final validation "
        "accuracy, and CPU seconds of training on a machine with other work."
    )
    head = ("candidate", "chosen", "KiB", "accuracy, %", "difference", "$p$", "sd", "ECE, %", "steps", "CPU s")
    return table(head, rows, "llrllllrrr", caption, "details")


def example_table() -> str:
    """The two headline methods, each run in a process of its own; of the grid's runs where there are none."""
    rows = evidence.example_rows()
    if not rows:
        cell = _detailed()
        rows = tuple(
            run for run in evidence.runs()
            if (run.task, run.train_rows) == (cell.task, cell.train_rows) and run.candidate in headlines()
        )  # fmt: skip
    sides: dict[str, list[QualityRow]] = {}
    for row in sorted(rows, key=lambda row: (row.candidate != evidence.reference(), row.candidate, row.seed)):
        sides.setdefault(row.candidate, []).append(row)
    hits = {name: np.stack([run.predictions.right() for run in found]) for name, found in sides.items()}
    shown = []
    for name, found in sides.items():
        peaks = [run.peak_memory_bytes for run in found if run.peak_memory_bytes is not None]
        shown.append(
            (
                f"`{name}`",
                percent(crossed_mean(hits[name])),
                f"{100 * fmean(run.test_macro_f1 for run in found):.1f}",
                f"{found[0].num_adapter_parameters:,}",
                f"{found[0].adapter_bytes / KIB:,.0f}",
                f"{fmean(run.train_cpu_s for run in found):,.0f}",
                f"{fmean(run.train_s for run in found):,.0f}",
                f"{max(peaks) / MIB:,.0f}" if peaks else NOTHING,
            )
        )
    first, *others = sides
    apart = []
    for name in others:
        if hits[name].shape == hits[first].shape:
            less = crossed_difference(hits[name], hits[first])
            apart.append(f"`{name}` less `{first}`: {difference(less)} points, {non_inferiority(less)}")
    row = rows[0]
    seeds = sorted({run.seed for run in rows})
    caption = (
        f"`{row.provenance.command}`: {row.task}, {row.train_rows:,} training rows, {row.predictions.num_rows:,} test "
        f"texts, seeds {', '.join(map(str, seeds))}, on {row.provenance.machine}. File size with head; CPU and wall "
        f"seconds of a run; the most memory that a training process held. {'; '.join(apart)}."
    )
    head = ("", "accuracy, %", "macro-F1", "parameters", "KiB", "CPU s", "wall s", "MiB")
    return table(head, shown, "llrrrrrr", caption, "example")


def _detailed() -> Cell:
    """Of the first task the cell with the most rows."""
    first = _tasks()[0]
    return max((cell for cell in evidence.cells() if cell.task == first), key=lambda cell: cell.train_rows)


def _tasks() -> list[str]:
    return list(dict.fromkeys(cell.task for cell in evidence.cells()))


def quality_of(cell: Cell) -> TaskQuality:
    return next(found for found in evidence.tree().qualities.values() if found.task == cell.task)


@cache
def shortlist(cell: Cell) -> tuple[str, ...]:
    found = quality_of(cell).standings(cell.train_rows)
    return tuple(one.candidate.name for one in found if one.verdict == "not worse")


def _raised(cell: Cell) -> str:
    better = quality_of(cell).better_than_reference(cell.train_rows)
    return f"`{better[0]}` on {place_of(cell)}" if better else ""


def place_of(cell: Cell) -> str:
    return f"{cell.task} {cell.train_rows:,}"


def method_of(name: str) -> str:
    return next(candidate.method for candidate in evidence.plan().candidates if candidate.name == name)


def parameters(name: str) -> int:
    """Trained, without the head."""
    return next(run.num_adapter_parameters for run in evidence.runs() if run.candidate == name)


def _judged(one: Standing | None) -> str:
    return NOTHING if one is None or one.comparison is None else marked(one.comparison.difference)


def marked(found: Interval) -> str:
    """A difference in points; bold if not worse by more than the margin, italic if worse."""
    mark = {"not worse": "**", "worse": "*", "undecided": ""}[non_inferiority(found)]
    return f"{mark}{difference(found)}{mark}"
