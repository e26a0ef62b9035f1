"""Which PEFT method to use: `decision` asked on behalf of callers, on one thread beside the event loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from server.errors import EvidenceFailed, InvalidInput, Overloaded

if TYPE_CHECKING:
    from decision.web.adviser import Adviser

MOST_WAITING = 32
"""Questions; a further one is answered 503. Each takes milliseconds, the first of a server seconds."""

Result = TypeVar("Result")
Values = TypeVarTuple("Values")


class Advice:
    """The event loop's. Evidence is read when something is first asked, so no start waits for it or fails of it."""

    def __init__(self, evidence: Path | None = None, prices: Path | None = None) -> None:
        self._evidence, self._prices = evidence, prices
        self._adviser: Adviser | None = None
        self._one_at_a_time = CapacityLimiter(1)
        self._num_waiting = 0

    async def ask(self, work: Callable[[Adviser, *Values], Result], *values: *Values) -> Result:
        """Do something with the adviser. Raises InvalidInput, EvidenceFailed, Overloaded."""
        if self._num_waiting >= MOST_WAITING:
            raise Overloaded(f"{self._num_waiting} questions to the decision wait already; ask again in a second")
        self._num_waiting += 1
        try:
            return await run_sync(self._work, work, *values, limiter=self._one_at_a_time)
        finally:
            self._num_waiting -= 1

    def _work(self, work: Callable[[Adviser, *Values], Result], *values: *Values) -> Result:
        # numpy and all of the rest come with the first question
        from decision.errors import DecisionError, QuestionError
        from decision.rows import RowsError
        from decision.web.adviser import Adviser

        if self._adviser is None:
            self._adviser = Adviser(self._evidence, self._prices)
        try:
            return work(self._adviser, *values)
        except QuestionError as error:
            raise InvalidInput(error.field, str(error)) from error
        except (DecisionError, RowsError) as error:
            raise EvidenceFailed(f"the decision's evidence is not usable: {error}") from error
