"""The decision tree as data: what is asked, where the answers part, and the rows that each threshold comes from.

It is built from evidence alone. Walking it is a matter of comparing a question's fields with its arms; what is at its
ends is worked out by `decision.conclusion`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from decision.answer import Answer, Basis, PublishedBasis, QualityBasis, Step, points
from decision.base_shape import bases
from decision.conclusion import conclude_measured, conclude_published, conclude_unmeasured
from decision.cost import Prices
from decision.errors import QuestionError
from decision.evidence import Evidence
from decision.literature import chapters, task_types
from decision.method_facts import facts_of
from decision.quality import Stretch, TaskQuality
from decision.question import Question
from decision.serving import Serving


@dataclass(frozen=True, slots=True)
class Arm:
    """One answer: a value, or a stretch of numbers from the start to below the end."""

    label: str
    then: Node
    value: str | None = None
    start: int | None = None
    end: int | None = None
    because: str = ""
    basis: tuple[Basis, ...] = ()
    """What the threshold at its start comes from."""

    def takes(self, given: str | int) -> bool:
        if isinstance(given, str):
            return given == self.value
        return (self.start is None or self.start <= given) and (self.end is None or given < self.end)


@dataclass(frozen=True, slots=True)
class Branch:
    """field: of the question."""

    asks: str
    field: str
    arms: tuple[Arm, ...]


@dataclass(frozen=True, slots=True)
class Shortlist:
    """An end: the cheapest of these candidates that meets the limits."""

    task_type: str
    names: tuple[str, ...]
    """Not worse than the yardstick, by more than the margin."""


@dataclass(frozen=True, slots=True)
class Published:
    """An end that only the literature answers."""

    chapter: str


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """An end without evidence."""

    what: str
    command: str


LINEAR_ASKS = "Is a linear model good enough?"
"""One on words, or on the frozen base's embeddings; what decides first."""
Node = Branch | Shortlist | Published | Unmeasured


class Tree:
    """Built from evidence; answers every question. prices only weigh what is at its ends."""

    def __init__(self, evidence: Evidence, prices: Prices) -> None:
        self.evidence, self.prices = evidence, prices
        self.qualities: Mapping[str, TaskQuality] = {}
        for task_type, task in evidence.task_types().items():
            quality = TaskQuality(
                task, [run for run in evidence.qualities if run.task == task], evidence.about.reference
            )
            if quality.sizes:
                self.qualities = {**self.qualities, task_type: quality}
        self._servings: dict[tuple[str, str], Serving] = {}
        self.root = self._build()

    def task_types(self) -> list[str]:
        """What may be asked for."""
        return list(dict.fromkeys((*self.evidence.task_types(), *task_types())))

    def serving(self, device: str, base_id: str) -> Serving:
        """What was measured of a base on a kind of device."""
        key = device, base_id
        if key not in self._servings:
            self._servings[key] = Serving(self.evidence, device, base_id)
        return self._servings[key]

    def answer(self, question: Question) -> Answer:
        """Walk down, and conclude. Raises QuestionError where the kind of task is unknown."""
        if question.task_type not in self.task_types():
            known = ", ".join(self.task_types())
            raise QuestionError(f"`task_type` is `{question.task_type}`, it must be one of {known}", "task_type")
        path, node = self.walk(question)
        serving = self.serving(question.device, question.shape.id)
        match node:
            case Shortlist(task_type, names):
                quality = self.qualities[task_type]
                return conclude_measured(question, path, names, quality, self.evidence, serving, self.prices)
            case Published(chapter):
                return conclude_published(question, path, chapters()[chapter], serving, self.prices)
            case Unmeasured(what, command):
                return conclude_unmeasured(question, path, what, command)

    def walk(self, question: Question) -> tuple[tuple[Step, ...], Shortlist | Published | Unmeasured]:
        """The way to an end."""
        steps, node = list[Step](), self.root
        while isinstance(node, Branch):
            given = getattr(question, node.field)
            arm = next(arm for arm in node.arms if arm.takes(_as_asked(given)))
            steps.append(Step(asks=node.asks, answer=arm.label, because=arm.because, basis=arm.basis))
            node = arm.then
        return tuple(steps), node

    def nodes(self) -> Iterator[tuple[int, Arm | None, Node]]:
        """Every node, from the root down: how deep it lies, the arm that leads to it, itself."""
        yield from _nodes(0, None, self.root)

    def _build(self) -> Node:
        return Branch(
            "Is the base quantised?",
            "quantised_base",
            (
                _published("yes", "quantised", value="yes"),
                Arm("no", self._by_kind_of_base(), value="no"),
            ),
        )

    def _by_kind_of_base(self) -> Node:
        """The kind of base that was measured, and the other one."""
        own = bases()[self.evidence.about.base].kind
        arms = [Arm(f"{own}, like {self.evidence.about.base}", self._by_task(), value=own)]
        for kind in sorted({base.kind for base in bases().values()} - {own}):
            if kind in chapters():
                arms.append(_published(kind, kind, value=kind))
            else:
                end = Unmeasured(
                    f"no adapter was trained on a base of kind {kind}", self.evidence.about.quality_command
                )
                arms.append(Arm(kind, end, value=kind))
        return Branch("What kind of base is it?", "kind_of_base", tuple(arms))

    def _by_task(self) -> Node:
        arms = []
        for task_type, task in self.evidence.task_types().items():
            if task_type in self.qualities:
                arms.append(Arm(f"{task_type}, as {task}", self._by_rows(task_type), value=task_type))
            else:
                end = Unmeasured(f"no adapter was measured on `{task}`", self.evidence.about.quality_command)
                arms.append(Arm(f"{task_type}, as {task}", end, value=task_type))
        known = self.evidence.task_types()
        arms += [_published(name, name, value=name) for name in task_types() if name not in known]
        return Branch("What kind of task is it?", "task_type", tuple(arms))

    def _by_rows(self, task_type: str) -> Node:
        """First whether a linear model is good enough, then which adapters are."""
        quality = self.qualities[task_type]
        groups = [
            (is_enough, list(found))
            for is_enough, found in groupby(quality.stretches(), lambda one: any(map(self._is_linear, one.names)))
        ]
        arms = []
        for is_enough, stretches in groups:
            start, end = stretches[0].start, stretches[-1].end
            then = self._by_stretch(task_type, stretches)
            label = ("yes" if is_enough else "no") + (f", with {rows_label(start, end)}" if len(groups) > 1 else "")
            arms.append(self._arm(quality, label, then, start, end, _linear_because(quality, start)))
        return Branch(LINEAR_ASKS, "train_rows", tuple(arms))

    def _by_stretch(self, task_type: str, stretches: Sequence[Stretch]) -> Node:
        ends = [Shortlist(task_type, one.names) for one in stretches]
        if len(ends) == 1:
            return ends[0]
        quality = self.qualities[task_type]
        arms = [
            self._arm(
                quality, rows_label(one.start, one.end), end, one.start, one.end, f"not worse: {', '.join(one.names)}"
            )
            for one, end in zip(stretches, ends, strict=True)
        ]
        return Branch("How many labelled rows are there?", "train_rows", tuple(arms))

    def _arm(self, quality: TaskQuality, label: str, then: Node, start: int, end: int | None, because: str) -> Arm:
        standings = quality.standings(start)
        basis = QualityBasis(
            task=quality.task,
            candidates=tuple(one.candidate.name for one in standings),
            train_rows=quality.sizes_around(start),
            seeds=tuple(sorted({seed for one in standings for seed in one.seeds})),
            commits=tuple(sorted({commit for one in standings for commit in one.commits})),
            command=self.evidence.about.quality_command,
        )
        return Arm(label, then, start=start, end=end, because=because, basis=(basis,))

    def _is_linear(self, name: str) -> bool:
        return any(run.candidate == name and facts_of(run.method).is_base_cost for run in self.evidence.qualities)


def _linear_because(quality: TaskQuality, start: int) -> str:
    found = [one for one in quality.standings(start) if facts_of(one.candidate.method).is_base_cost]
    best = max(found, key=lambda one: one.accuracy.value, default=None)
    if best is None:
        return "none was measured"
    place = max(start, quality.sizes[0])
    return f"`{best.candidate.name}` at {place:,} rows: {points(best.difference)} to `{quality.yardstick(start)}`"


def _published(label: str, chapter: str, value: str) -> Arm:
    reasons = chapters()[chapter].reasons
    basis = tuple(PublishedBasis(says=reason.says, keys=reason.sources) for reason in reasons)
    return Arm(label, Published(chapter), value=value, because="from literature", basis=basis)


def rows_label(start: int, end: int | None) -> str:
    """Of the numbers of rows from the start to below the end."""
    if end is None:
        return f"{start:,} rows and more" if start > 1 else "any number of rows"
    return f"fewer than {end:,} rows" if start == 1 else f"{start:,} to {end - 1:,} rows"


def _as_asked(given: object) -> str | int:
    if isinstance(given, bool):
        return "yes" if given else "no"
    return given if isinstance(given, int) else str(given)


def _nodes(depth: int, arm: Arm | None, node: Node) -> Iterator[tuple[int, Arm | None, Node]]:
    yield depth, arm, node
    if isinstance(node, Branch):
        for inner in node.arms:
            yield from _nodes(depth + 1, inner, inner.then)
