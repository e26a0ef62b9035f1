"""What a comparison consists of, written down before it is run."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from decision.rows import BASELINES, FULL, MAJORITY, PROBE, WORDS, TrainedRow
from server.base_model import EMBEDDED_ID
from server.errors import RecipeError
from server.methods import method_named, methods
from training.options import NUM_SEEDS, options_of
from training.recipe import Recipe
from training.sources import Columns

STRENGTH = "strength"
"""What is tuned of a logistic regression: C of scikit-learn."""
RATES = ("learning_rate", "head_learning_rate")

Seed = Annotated[int, Field(ge=0, lt=NUM_SEEDS)]
Settings = tuple[tuple[str, float], ...]
"""Values of what is tuned, by name."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Task(_Section):
    """One data set."""

    hub: str | None = None
    """Its name on the hub, for whoever has no folder of it; the task's own by default."""
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    """Columns of the hub's set, where they are not the usual ones."""

    def columns(self) -> Columns:
        """Those names."""
        return Columns(self.text, self.text_pair, self.label)


class Candidate(_Section):
    """One way to make a classifier. tune: the values that are tried, by setting; every combination is one trial."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    method: str
    options: dict[str, float] = Field(default_factory=dict)
    tune: dict[str, list[float]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Candidate:
        known: tuple[str, ...] = RATES
        if self.method in (WORDS, PROBE):
            known = (STRENGTH,)
        elif self.method == MAJORITY:
            known = ()
        elif self.method != FULL and self.method not in methods():
            raise ValueError(f"method `{self.method}` is unknown; there are: {', '.join((*methods(), *BASELINES))}")
        wrong = sorted(set(self.tune) - set(known))
        if wrong:
            raise ValueError(f"`{wrong[0]}` cannot be tuned for {self.method}; can be: {', '.join(known) or 'nothing'}")
        for name, values in self.tune.items():
            if not values or len(set(values)) < len(values) or min(values) <= 0:
                raise ValueError(f"`tune.{name}` is {values}, not one or more different values above 0")
        if self.method in BASELINES:
            if self.options:
                raise ValueError(f"{self.method} has no options")
        else:
            options_of(method_named(self.method), self.options)
        return self

    def trials(self) -> list[Settings]:
        """Every combination of what is tuned."""
        return [tuple(zip(self.tune, values, strict=True)) for values in itertools.product(*self.tune.values())]


class GridPlan(_Section):
    """Cells are candidate x task x training rows x seed."""

    name: str
    base: str = EMBEDDED_ID
    train_rows: list[int] = Field(min_length=1)
    final_seeds: list[Seed] = Field(min_length=1)
    tuning_seeds: list[Seed] = Field(default_factory=list)
    """Of the trials; none of them is a final one."""
    max_validation_rows: int = Field(250, ge=2)
    """Validation rows, of which there are never more than training rows."""
    max_test_rows: int | None = Field(None, ge=2)
    num_evaluations: int = Field(6, ge=0)
    """How often a final run measures the validation rows while it trains."""
    recipe: Recipe = Field(default_factory=Recipe)
    """The same for every candidate."""
    epochs: dict[int, PositiveFloat] = Field(default_factory=dict)
    """Passes by number of training rows, where they are not the recipe's."""
    tasks: dict[str, Task] = Field(min_length=1)
    candidates: list[Candidate] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> GridPlan:
        names = [candidate.name for candidate in self.candidates]
        lists = {name: getattr(self, name) for name in ("train_rows", "tuning_seeds", "final_seeds")}
        for what, values in {"candidates": names, **lists}.items():
            if len(set(values)) < len(values):
                raise ValueError(f"`{what}` holds the same one twice")
        both = set(self.final_seeds) & set(self.tuning_seeds)
        if both:
            raise ValueError(f"seed {min(both)} is among `final_seeds` and `tuning_seeds`; they must be disjoint")
        counts = {candidate.name: len(candidate.trials()) for candidate in self.candidates if candidate.tune}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ValueError(f"candidates must have the same number of trials; they have: {told}")
        if counts and not self.tuning_seeds:
            raise ValueError("`tuning_seeds` is empty, candidates are tuned")
        unknown = set(self.epochs) - set(self.train_rows)
        if unknown:
            raise ValueError(f"`epochs` names {min(unknown)} rows, which `train_rows` does not hold")
        if self.recipe.options:
            raise ValueError("`recipe.options` belongs to the candidates")
        return self


@dataclass(frozen=True, slots=True)
class Cell:
    """One training run and all that it depends on."""

    plan: str
    task: str
    data: str
    columns: Columns
    base: str
    candidate: str
    method: str
    options: Mapping[str, float]
    settings: Settings
    train_rows: int
    validation_rows: int
    test_rows: int | None
    seed: int
    is_final: bool
    num_evaluations: int
    recipe: Recipe

    @property
    def is_baseline(self) -> bool:
        """Whether it is none of the PEFT methods."""
        return self.method in BASELINES

    def settled(self) -> Recipe:
        """The recipe with this candidate's options and what was chosen for it."""
        tuned = {name: value for name, value in self.settings if name in RATES}
        return self.recipe.model_copy(update={"options": dict(self.options), **tuned})

    @property
    def key(self) -> str:
        """A digest of what fixes the result: not the names of plan and candidate, nor where the data lies."""
        # settings that are left as they are do not count, so that a new one changes no digest
        recipe = self.recipe.model_dump(exclude_defaults=True, exclude={"gradient_checkpointing"})
        facts = asdict(self) | {"recipe": recipe}
        for name in ("plan", "candidate", "data", "columns", "num_evaluations"):
            del facts[name]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Group:
    """A candidate on a task with a number of training rows: its trials, then its final runs."""

    plan: GridPlan
    candidate: Candidate
    task: str
    data: str
    train_rows: int

    def trials(self) -> list[Cell]:
        """The runs that tune it, none if nothing is to be tuned."""
        if not self.candidate.tune:
            return []
        every = itertools.product(self.candidate.trials(), self.plan.tuning_seeds)
        return [self._cell(settings, seed, is_final=False) for settings, seed in every]

    def finals(self, settings: Settings) -> list[Cell]:
        """The runs that count, with the settings that were chosen."""
        return [self._cell(settings, seed, is_final=True) for seed in self.plan.final_seeds]

    def choose(self, rows: Mapping[str, TrainedRow]) -> Settings:
        """What did best on the validation rows. rows: by cell, all trials'.

        A few hundred rows cannot tell accuracies apart that are within one standard error of the best; of those, the
        one with the best likelihood is taken (after the one-standard-error rule of Breiman et al. 1984).
        """
        if not self.candidate.tune:
            return ()
        merits = [self._merit(settings, rows) for settings in self.candidate.trials()]
        best = max(accuracy for accuracy, _ in merits)
        num_rows = min(self.plan.max_validation_rows, self.train_rows) * len(self.plan.tuning_seeds)
        enough = best - math.sqrt(best * (1 - best) / num_rows)
        chosen = min((surprise, index) for index, (accuracy, surprise) in enumerate(merits) if accuracy >= enough)
        return self.candidate.trials()[chosen[1]]

    def _merit(self, settings: Settings, rows: Mapping[str, TrainedRow]) -> tuple[float, float]:
        """Mean accuracy and negative log-likelihood over the tuning seeds."""
        found = [rows[cell.key] for cell in self.trials() if cell.settings == settings]
        surprise = [math.inf if row.validation_nll is None else row.validation_nll for row in found]
        return fmean(row.validation_accuracy for row in found), fmean(surprise)

    def _cell(self, settings: Settings, seed: int, is_final: bool) -> Cell:
        plan, recipe = self.plan, self.plan.recipe
        if self.train_rows in plan.epochs:
            recipe = recipe.model_copy(update={"epochs": plan.epochs[self.train_rows]})
        return Cell(
            plan=plan.name,
            task=self.task,
            data=self.data,
            # files of a folder have the usual columns
            columns=plan.tasks[self.task].columns() if self.data.startswith("hub:") else Columns(),
            base=plan.base,
            candidate=self.candidate.name,
            method=self.candidate.method,
            options=self.candidate.options,
            settings=settings,
            train_rows=self.train_rows,
            validation_rows=min(plan.max_validation_rows, self.train_rows),
            test_rows=plan.max_test_rows,
            seed=seed,
            is_final=is_final,
            num_evaluations=plan.num_evaluations if is_final else 0,
            recipe=recipe,
        )


def groups(plan: GridPlan, data_root: Path | None) -> Iterator[Group]:
    """Every group, a size through all the tasks before the next: what was stopped early still compares tasks.

    data_root: holds a folder a task; None takes the hub.
    """
    for train_rows, task, candidate in itertools.product(plan.train_rows, plan.tasks, plan.candidates):
        data = f"hub:{plan.tasks[task].hub or task}" if data_root is None else str(data_root / task)
        yield Group(plan, candidate, task, data, train_rows)


def read_plan(path: Path) -> GridPlan:
    """Read a TOML file. Raises RecipeError naming the field that is wrong."""
    try:
        return GridPlan.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the plan"
        raise RecipeError(f"plan `{path}`: `{place}`: {first['msg'].removeprefix('Value error, ')}") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"plan `{path}` cannot be read: {error}") from error
