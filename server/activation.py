"""From raw logits to the scores a client reads. Plain Python: a head has few labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from server.manifest import ProblemType

Activation = Literal["softmax", "sigmoid", "none"]

OWN: Mapping[ProblemType, Activation] = {"single_label": "softmax", "multi_label": "sigmoid", "regression": "none"}
"""What a problem asks for: one label, several labels, a number."""


def activate(
    logits: Sequence[float], problem_type: ProblemType, temperature: float, activation: Activation | None = None
) -> list[float]:
    """Softmax or sigmoid after dividing by the temperature, or the raw logits; the problem's own if none is named."""
    activation = activation or OWN[problem_type]
    if activation == "none":
        return list(logits)
    scaled = [logit / temperature for logit in logits]
    if activation == "sigmoid":
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
