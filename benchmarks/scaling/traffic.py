"""What a fleet is asked: adapters by their popularity, when, and how long the texts are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.scaling.theory import Floats, zipf
from loadtest.workload import SHORTEST, SIGMA, Texts

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests of one text each, in the order they come. All [requests]."""

    came_s: Floats
    adapters: Ints
    tokens: Ints

    def __len__(self) -> int:
        return len(self.came_s)


def poisson(rate_per_s: float, num_requests: int, rng: np.random.Generator) -> Floats:
    return np.cumsum(rng.exponential(1 / rate_per_s, num_requests))


def bursts(
    rate_per_s: float, seconds: float, times: float, every_s: float, for_s: float, rng: np.random.Generator
) -> Floats:
    """Poisson at the rate, and `times` as much in the first for_s of every_s."""
    candidates = poisson(rate_per_s * times, int(rate_per_s * times * seconds * 1.1) + 100, rng)
    candidates = candidates[candidates < seconds]
    is_kept = (candidates % every_s < for_s) | (rng.random(len(candidates)) < 1 / times)
    return np.asarray(candidates[is_kept], dtype=np.float64)


def traffic(came_s: Floats, shares: Floats, mean_tokens: float, rng: np.random.Generator) -> Traffic:
    """Adapters drawn by their shares, whatever was drawn before; log-normal lengths as the load generator's."""
    ends = np.cumsum(shares)
    adapters = np.searchsorted(ends, rng.random(len(came_s)) * ends[-1]).clip(0, len(shares) - 1)
    scale = np.log(mean_tokens) - SIGMA**2 / 2
    lengths = rng.lognormal(scale, SIGMA, len(came_s)).clip(SHORTEST, Texts().max_tokens)
    return Traffic(came_s, adapters.astype(np.int64), np.rint(lengths).astype(np.int64))


def popular(num_adapters: int, exponent: float, rng: np.random.Generator) -> Floats:
    """Zipf's law over adapters in a random order, so that a rank has nothing to do with a place on the ring."""
    return np.asarray(rng.permutation(zipf(num_adapters, exponent)), dtype=np.float64)
