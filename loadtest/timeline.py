"""One run over time: what became of each request, and what the service held meanwhile."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from loadtest.errors import LoadTestError
from loadtest.samples import Samples
from loadtest.workload import Part

FILE = "timeline.json"


class Timeline(Part):
    """Lies beside the raw samples and says which run they are of. Memory is in bytes, at Unix times."""

    schema_number: Literal[1] = 1
    scenario: str
    target: str
    case: str
    repeat: int
    num_users: int | None = None
    rate_per_s: float | None = None
    command: str
    start_s: float
    end_s: float
    """Of the span that is measured, Unix time."""
    at_s: list[float]
    rss_bytes: list[int | None]
    resident_adapter_bytes: list[int | None]

    def write(self, folder: Path) -> None:
        hidden = folder / f".{FILE}.part"
        hidden.write_text(self.model_dump_json(), encoding="utf-8")
        hidden.replace(folder / FILE)


@dataclass(frozen=True)
class Run:
    """samples: of the measured span."""

    timeline: Timeline
    samples: Samples


def read(folders: Sequence[Path]) -> list[Run]:
    """Every finished run in folders that `run` has written; none where raw samples were not kept.

    Raises LoadTestError.
    """
    found = []
    for path in (path for folder in folders for path in sorted((folder / "samples").glob(f"*/{FILE}"))):
        try:
            timeline = Timeline.model_validate_json(path.read_bytes())
            samples = Samples.read(path.parent)
        except (OSError, ValidationError, json.JSONDecodeError, IndexError) as error:
            raise LoadTestError(f"`{path}` or the samples beside it cannot be read: {error}") from error
        found.append(Run(timeline, samples.between(timeline.start_s, timeline.end_s)))
    return found
