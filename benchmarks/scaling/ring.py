"""A ring of hashes on which every adapter has a home among the replicas."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

POINTS = 1600
"""Of a replica on the ring: HAProxy makes 16 for each unit of weight, and the chart gives a replica a weight of 100."""
Hashes = NDArray[np.uint64]


class Ring:
    """Consistent hashing (Karger et al. 1997): a replica that goes leaves its adapters to those that follow it."""

    def __init__(self, num_replicas: int, num_adapters: int) -> None:
        self._num_replicas = num_replicas
        points = hashes(np.arange(num_replicas * POINTS, dtype=np.uint64) + np.uint64(1 << 40))
        order = np.argsort(points)
        owners = order // POINTS
        places = np.searchsorted(points[order], hashes(np.arange(num_adapters, dtype=np.uint64))) % len(points)
        self.homes = owners[places]
        """Replica of each adapter while all are there. [adapters]"""
        self._owners: list[int] = owners.tolist()
        self._places: list[int] = places.tolist()

    def walk(self, adapter: int) -> Iterator[int]:
        """Every replica once, from the adapter's home on."""
        owners, place, seen = self._owners, self._places[adapter], 0
        for index in range(place - len(owners), place):  # negative indices go round
            owner = owners[index]
            if not seen >> owner & 1:
                seen |= 1 << owner
                yield owner
                if seen.bit_count() == self._num_replicas:
                    return


def hashes(values: Hashes) -> Hashes:
    """splitmix64 of each value."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
