"""What travels between an HTTP process and the engine process. Both are ours, of one version and one user.

Numbers are given by the HTTP process; an answer carries the number of what it answers.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from server.errors import AdaptermuxError
from server.jobs import Answer, EngineHealth, Job
from server.record import Record, Refusal
from server.schemas import BaseInfo

ID = "i"  # token ids travel as the 32-bit numbers that they are


class Submitted(NamedTuple):
    """To the engine: a `server.jobs.Job`. type_ids: empty where all are 0.

    deadline: the monotonic clock is one for all processes of a machine.
    """

    number: int
    adapter_id: str
    version: str
    token_ids: bytes
    type_ids: bytes
    deadline: float | None

    @classmethod
    def of(cls, number: int, job: Job) -> Submitted:
        type_ids = array(ID, job.type_ids).tobytes() if any(job.type_ids) else b""
        return cls(number, job.adapter_id, job.version, array(ID, job.token_ids).tobytes(), type_ids, job.deadline)

    def job(self) -> Job:
        token_ids = tuple(array(ID, self.token_ids))
        type_ids = tuple(array(ID, self.type_ids)) if self.type_ids else (0,) * len(token_ids)
        return Job(self.adapter_id, self.version, token_ids, type_ids, self.deadline)


class Cancelled(NamedTuple):
    """To the engine: nobody waits for this job any more."""

    number: int


class Called(NamedTuple):
    """To the engine: do something by its name, and answer with what it returns."""

    number: int
    name: str
    values: tuple[object, ...]


class Counted(NamedTuple):
    """To the engine: something to count, by the name of its method of `server.metrics.Meter`."""

    name: str
    values: tuple[object, ...]


class Landed(NamedTuple):
    """To the engine: the texts that were let fly under this number are done."""

    number: int


class Seen(NamedTuple):
    """To the engine: all that came before this mark has been taken in."""

    mark: int


class Answered(NamedTuple):
    """From the engine: a `server.jobs.Answer`."""

    number: int
    logits: tuple[float, ...]
    queue_ms: float
    compute_ms: float

    def answer(self) -> Answer:
        return Answer(self.logits, self.queue_ms, self.compute_ms)


class Returned(NamedTuple):
    number: int
    value: object


class Failed(NamedTuple):
    number: int
    error: AdaptermuxError


class Hello(NamedTuple):
    """From the engine, first: what it serves. folder: where the base model's tokenizer lies."""

    base: BaseInfo
    folder: str
    records: list[Record]


class Changed(NamedTuple):
    """From the engine: an adapter's record is another now, or none."""

    adapter_id: str
    record: Record | None


class Beat(NamedTuple):
    """From the engine, several times a second. trouble: see `server.catalog.Catalog`."""

    health: EngineHealth
    trouble: Refusal | None


class Marked(NamedTuple):
    """From the engine: say `Seen` once all that came before is taken in."""

    mark: int


Message = (
    Submitted | Cancelled | Called | Counted | Landed | Seen
    | Answered | Returned | Failed | Hello | Changed | Beat | Marked
)  # fmt: skip
