"""What all studies share: what was measured, what the chart says, how popular adapters are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.scaling.fleet import Happening, Layout, Outcome, simulate
from benchmarks.scaling.pace import Measured
from benchmarks.scaling.theory import Floats
from benchmarks.scaling.traffic import bursts, poisson, popular, traffic
from decision.cost import Prices
from loadtest.workload import Workload

CHART = Path(__file__).parent.parent.parent / "helm" / "values.yaml"
SLOW_LOAD_S = 0.05
"""Assumed: an adapter that is read from a disk or a store whose pages nobody has cached."""
BURST_TIMES, BURST_EVERY_S, BURST_FOR_S = 3.0, 10.0, 1.0
P95_LIMIT_S = 0.1
"""That the fleet is sized for."""
ALERT_S = 0.5
"""Above it the chart's AdaptermuxLatency fires."""


class Scaling(BaseModel):
    """The chart's `autoscaling`, as far as it is simulated."""

    model_config = ConfigDict(frozen=True)
    queue_ms: float = Field(alias="queueMs")
    cpu_percent: float = Field(alias="cpuPercent")
    scale_down_s: int = Field(alias="scaleDownS")


class Router(BaseModel):
    """The chart's `router`, as far as it is simulated."""

    model_config = ConfigDict(frozen=True)
    balance_percent: int = Field(alias="balancePercent")
    replicas: int


class Chart(BaseModel):
    """Defaults of the chart."""

    model_config = ConfigDict(frozen=True)
    router: Router
    autoscaling: Scaling

    @staticmethod
    def read(path: Path = CHART) -> Chart:
        return Chart.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@dataclass(frozen=True, slots=True)
class Setting:
    """size: part of the usual number of requests of a run; less is quicker, and noisier."""

    measured: Measured
    chart: Chart
    prices: Prices
    seed: int = 0
    size: float = 1.0

    @property
    def exponent(self) -> float:
        """Of Zipf's law, as the load generator has it."""
        return float(Workload.model_fields["zipf_s"].default)

    @property
    def capacity_per_s(self) -> float:
        """Texts a second of a replica that never rests."""
        return self.measured.pace.capacity_per_s(self.measured.mean_tokens)

    def shares(self, num_adapters: int) -> Floats:
        return popular(num_adapters, self.exponent, np.random.default_rng(self.seed))

    def layout(self, policy: str, num_replicas: int, room: int) -> Layout:
        """As the chart would have it, with loads as they were measured."""
        return Layout(
            pace=self.measured.pace,
            policy=policy,
            num_replicas=num_replicas,
            room=room,
            load_s=self.measured.load_s,
            bound_percent=self.chart.router.balance_percent,
            num_routers=self.chart.router.replicas,
            seed=self.seed,
        )

    def run(
        self,
        layout: Layout,
        shares: Floats,
        load: float,
        num_requests: int,
        happenings: Sequence[Happening] = (),
        is_bursty: bool = False,
    ) -> Outcome:
        """Traffic of `load` times what the replicas take when they never rest; Poisson, or the same in bursts."""
        rng = np.random.default_rng(self.seed)
        rate, num_requests = load * layout.num_replicas * self.capacity_per_s, max(200, int(num_requests * self.size))
        if is_bursty:
            calm = rate / (1 + (BURST_TIMES - 1) * BURST_FOR_S / BURST_EVERY_S)
            came_s = bursts(calm, num_requests / rate, BURST_TIMES, BURST_EVERY_S, BURST_FOR_S, rng)
        else:
            came_s = poisson(rate, num_requests, rng)
        return simulate(layout, traffic(came_s, shares, self.measured.mean_tokens, rng), shares, happenings)

    def slow(self, layout: Layout) -> Layout:
        return replace(layout, load_s=SLOW_LOAD_S)
