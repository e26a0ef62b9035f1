"""What a service is asked: a seeded stream of requests."""

from __future__ import annotations

import bisect
import csv
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SIGMA = 0.75
"""Of the logarithm of skewed lengths: a few texts are several times as long as most."""
NUM_SPECIAL = 2
"""Tokens that the base model adds to a text."""
SHORTEST = 4
COMMON = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one
you were her all she there would their we him been has when who will more no if out so said what up its about into
than them can only other new some could time these two may then do first any my now such like our over man me even
most made after also did many before must through back years where much your way well down should because each just
those people how too little state good very make world still own see men work long get here between both life being
under never day same another know while last might us great old year off come since against go came right used take
three
"""
WORDS = tuple(COMMON.split())
"""Each is one token to the usual tokenizers."""


class Part(BaseModel):
    """Something that a scenario file sets."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Texts(Part):
    """How long the texts are, in tokens. Words are common ones, of a token each."""

    kind: Literal["skewed", "fixed", "csv"] = "skewed"
    """Log-normal lengths around `num_tokens`; all of `num_tokens`; or the texts of a file."""
    num_tokens: int = Field(20, ge=SHORTEST, le=8192)
    """Special tokens included."""
    max_tokens: int = Field(128, ge=SHORTEST, le=8192)
    """No skewed text is longer."""
    file: Path | None = None
    """CSV file, with a header."""
    column: str = "text"

    @model_validator(mode="after")
    def _has_its_file(self) -> Self:
        if (self.kind == "csv") != (self.file is not None):
            raise ValueError('`file` goes with kind = "csv", and only with that')
        return self


class Burst(Part):
    """Times at which more arrives than usual."""

    times: float = Field(gt=1)
    """How many times the usual rate."""
    every_s: float = Field(gt=0)
    for_s: float = Field(gt=0)

    @model_validator(mode="after")
    def _ends_before_the_next(self) -> Self:
        if self.for_s >= self.every_s:
            raise ValueError("`for_s` must be less than `every_s`")
        return self


class Workload(Part):
    """A stream of requests. Closed loop with `num_users`, open loop with `rate_per_s`; the same seed asks the same."""

    methods: list[str] | None = None
    """PEFT methods of the hot adapters, evenly; all that there are if not given."""
    num_hot: int = Field(1, ge=1)
    """Adapters among which requests choose."""
    zipf_s: float = Field(1.0, ge=0, le=10)
    """The adapter of rank r is asked for in proportion to r^-s; 0 asks all alike."""
    texts: Texts = Texts()
    texts_per_request: int = Field(1, ge=1, le=256)
    num_users: int | None = Field(None, ge=1, le=10_000)
    """Closed loop: so many clients, each of which waits for its answer before it asks again."""
    rate_per_s: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Open loop: requests arrive at random (Poisson) at this rate, whatever becomes of those before."""
    burst: Burst | None = None
    flood: float = Field(1.0, ge=1)
    """Open loop: the first adapter is asked for so many times as often as it would be, on top of the rate."""
    timeout_s: float = Field(30.0, gt=0)
    """How long a client waits for an answer."""
    seed: int = 0

    @model_validator(mode="after")
    def _has_one_way_of_arriving(self) -> Self:
        if (self.num_users is None) == (self.rate_per_s is None):
            raise ValueError("give either `num_users` (closed loop) or `rate_per_s` (open loop)")
        if self.rate_per_s is None and (self.burst is not None or self.flood > 1):
            raise ValueError("`burst` and `flood` go with `rate_per_s`")
        return self

    @property
    def total_rate_per_s(self) -> float:
        """Of an open loop, the flood included, bursts left out."""
        assert self.rate_per_s is not None
        return self.rate_per_s * (1 + (self.flood - 1) * self._popularity()[0])

    def shares(self) -> list[float]:
        """Part of all requests that goes to the adapter of each rank."""
        weights = self._popularity()
        weights[0] *= self.flood
        total = sum(weights)
        return [weight / total for weight in weights]

    def _popularity(self) -> list[float]:
        weights = [(rank + 1) ** -self.zipf_s for rank in range(self.num_hot)]
        total = sum(weights)
        return [weight / total for weight in weights]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. adapter_index: the adapter's rank among the hot ones."""

    adapter_index: int
    texts: tuple[str, ...]


class Stream:
    """The requests of one client, without end. Streams of one workload with different indices differ.

    share: of an open loop's rate that this stream takes.
    """

    def __init__(self, workload: Workload, index: int = 0, share: float = 1.0) -> None:
        self._workload = workload
        self._share = share
        self._rng = random.Random(f"{workload.seed}/{index}")
        self._ends = list(itertools.accumulate(workload.shares()))

    def next(self) -> Ask:
        texts, rng = self._workload.texts, self._rng
        rank = min(bisect.bisect(self._ends, rng.random()), len(self._ends) - 1)
        return Ask(rank, tuple(_text(texts, rng) for _ in range(self._workload.texts_per_request)))

    def arrivals(self) -> Iterator[float]:
        """When each request is due, in seconds from the start: a Poisson process, faster during bursts."""
        rate, burst, due = self._workload.total_rate_per_s * self._share, self._workload.burst, 0.0
        while True:
            left = self._rng.expovariate(1.0)  # the integral of the rate up to the next arrival
            while burst is not None:
                phase = due % burst.every_s
                is_burst = phase >= burst.every_s - burst.for_s
                until = due - phase + (burst.every_s if is_burst else burst.every_s - burst.for_s)
                now = rate * (burst.times if is_burst else 1.0)
                if (until - due) * now >= left:
                    due += left / now
                    break
                left -= (until - due) * now
                due = math.nextafter(until, math.inf)
            else:
                due += left / rate
            yield due


def check_texts(texts: Texts) -> None:
    """Raises ValueError if the texts of a file cannot be read."""
    if texts.file is not None:
        _rows(texts.file, texts.column)


def _text(texts: Texts, rng: random.Random) -> str:
    if texts.file is not None:
        return rng.choice(_rows(texts.file, texts.column))
    length = texts.num_tokens
    if texts.kind == "skewed":
        middle = math.log(texts.num_tokens) - SIGMA**2 / 2  # so that the mean is num_tokens
        length = min(texts.max_tokens, max(SHORTEST, round(rng.lognormvariate(middle, SIGMA))))
    return " ".join(rng.choices(WORDS, k=length - NUM_SPECIAL))


@cache
def _rows(file: Path, column: str) -> Sequence[str]:
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = [row[column] for row in csv.DictReader(stream) if row.get(column)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"`texts.file`: `{file}` cannot be read: {error}") from error
    except KeyError:
        raise ValueError(f"`texts.column`: `{file}` has no column `{column}`") from None
    if not rows:
        raise ValueError(f"`texts.file`: `{file}` has no texts in column `{column}`")
    return rows
