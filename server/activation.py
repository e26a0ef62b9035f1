"""From raw logits to the scores a client reads. Plain Python: a head has few labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from server.manifest import ProblemType


def activate(logits: Sequence[float], problem_type: ProblemType, temperature: float) -> list[float]:
    """Softmax (one label), sigmoid (several labels) or nothing (regression), after dividing by the temperature."""
    if problem_type == "regression":
        return list(logits)
    scaled = [logit / temperature for logit in logits]
    if problem_type == "multi_label":
        return [_sigmoid(logit) for logit in scaled]
    highest = max(scaled)
    powers = [math.exp(logit - highest) for logit in scaled]
    total = math.fsum(powers)
    return [power / total for power in powers]


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1 + power)
