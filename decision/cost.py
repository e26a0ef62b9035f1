"""What serving costs: replicas and money, from what one replica was measured to take."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path

from pydantic import Field

from decision.facts import Facts, read_table
from decision.question import Question

FILE = Path(__file__).parent / "prices.toml"
SECONDS_PER_HOUR = 3600
MILLION = 1_000_000
GIB = 2**30


class Prices(Facts):
    """A table of prices; those that come with adaptermux are examples."""

    currency: str = Field(min_length=1, max_length=8)
    cpu_per_hour: float = Field(ge=0)
    """Of a machine like the one that the rows of device `cpu` were measured on."""
    gpu_per_hour: float = Field(ge=0)
    storage_per_gib_month: float = Field(ge=0)
    """Where adapters lie."""
    hours_per_month: float = Field(gt=0)
    headroom: float = Field(gt=0, le=1)
    """Part of the highest measured rate that a replica is given."""

    @staticmethod
    def read(path: Path = FILE) -> Prices:
        """Raises FactsError."""
        return read_table(path, Prices)

    def per_hour(self, device: str) -> float:
        return self.gpu_per_hour if device == "gpu" else self.cpu_per_hour


@dataclass(frozen=True, slots=True)
class Cost:
    """By the examples of prices, or by the user's own."""

    replicas: int
    utilisation: float
    """Of what a replica takes within the limits."""
    per_month: float
    per_million_requests: float
    per_adapter_month: float
    currency: str


def cost_of(question: Question, prices: Prices, rate_per_s: float, stored_bytes: int, is_merged: bool) -> Cost:
    """Of one service for all adapters, or, where each is merged into a base of its own, of one for each that is hot.

    rate_per_s: what one replica takes within the limits; stored_bytes: of one adapter.
    """
    services = question.num_hot if is_merged else 1
    of_one = question.rps / services
    replicas = services * max(1, ceil(of_one / (prices.headroom * rate_per_s)))
    machines = replicas * prices.per_hour(question.device) * prices.hours_per_month
    per_month = machines + question.adapters * stored_bytes / GIB * prices.storage_per_gib_month
    requests = question.rps * SECONDS_PER_HOUR * prices.hours_per_month
    return Cost(
        replicas=replicas,
        utilisation=question.rps / (replicas * rate_per_s),
        per_month=per_month,
        per_million_requests=per_month / requests * MILLION,
        per_adapter_month=per_month / question.adapters,
        currency=prices.currency,
    )
