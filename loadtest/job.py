"""What the harness tells a load generator: a workload, the adapters, and where samples go."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field

from loadtest.workload import Part, Workload

NATIVE = "loadtest.wire:Native"


class Job(Part):
    """One run of the load generator."""

    workload: Workload
    adapters: list[str] = Field(min_length=1)
    """The hot ones, the most popular first."""
    wire: str = NATIVE
    """MODULE:CLASS of the service's way of being asked."""
    headers: dict[str, str] = Field(default_factory=dict)
    num_senders: int = 1
    """Open loop: users that share the rate."""
    samples: Path | None = None
    """Folder; None keeps no samples, as for somebody who clicks."""

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.model_validate_json(path.read_bytes())

    def write(self, path: Path) -> None:
        path.touch(mode=0o600)  # a header may hold a key
        path.write_text(self.model_dump_json(), encoding="utf-8")
