"""Where adapters are in memory, as told to whoever watches: records without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tier = Literal["device", "host"]


@dataclass(frozen=True, slots=True)
class Resident:
    """A version in memory: on the base model's device, or in host memory only. num_users: jobs that have it now."""

    adapter_id: str
    version: str
    method: str
    num_bytes: int
    tier: Tier
    is_pinned: bool
    num_users: int

    @property
    def key(self) -> str:
        return key_of(self.adapter_id, self.version)


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Where adapters are, and what has happened since the start. Bytes: adapters in the tier, as in their files.

    num_fitting: how many adapters of the mean size of those that are known the device may hold.
    """

    num_known: int
    num_resident: int
    num_fitting: int
    resident_bytes: int
    host_bytes: int
    num_loads: int
    num_evictions: int
    num_hits: int
    num_misses: int


def key_of(adapter_id: str, version: str) -> str:
    """The name of one immutable version."""
    return f"{adapter_id}@{version}"
