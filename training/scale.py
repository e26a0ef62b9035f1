"""The unit of numbers that a head learns: near 0 and 1 in training, the data's own in what is saved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


@dataclass(frozen=True, slots=True)
class Scale:
    """y = size x + centre, x being what the head learns; the learning rates suit an x of about 1 (`docs/log.md`)."""

    centre: float = 0.0
    size: float = 1.0

    @staticmethod
    def of(numbers: NDArray[np.float64], has_bias: bool) -> Scale:
        """Mean and standard deviation; where no bias could hold the mean, 0 and the root mean square."""
        centre = float(numbers.mean()) if has_bias else 0.0
        size = float(np.sqrt(np.mean((numbers - centre) ** 2)))
        return Scale(centre, size or 1.0)

    def shrink(self, numbers: NDArray[np.float64]) -> NDArray[np.float32]:
        """From the data's unit to that of training, which float32 can hold."""
        return ((numbers - self.centre) / self.size).astype(np.float32)

    @torch.no_grad()
    def fold(self, layer: nn.Linear) -> None:
        """Make a layer that answers in the unit of training answer in the data's."""
        layer.weight.mul_(self.size)
        if layer.bias is not None:
            layer.bias.mul_(self.size).add_(self.centre)
