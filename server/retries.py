"""Runs a batch so that only those texts fail that really cannot be computed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from server import logs
from server.batching import Waiting
from server.device_memory import DeviceMemory, HostMemory, has_failed, is_lack_of_memory
from server.errors import EngineStopped, ForwardFailed, OutOfMemory, ServiceError
from server.forward import Work

MOST_FAILURES = 32
"""Passes of a batch that may raise, other than for memory, before what is left is tried once and not split again."""
MOST_SUSPECTS = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch: logits or the reason for every text, in the order given.

    num_passes: all that were run, those of adapters that failed lately on their own.
    fitting_tokens: the most that went well where memory was short, None where it was not.
    """

    answers: Sequence[Tensor | ServiceError]
    num_passes: int
    num_splits: int
    has_failures: bool
    fitting_tokens: int | None

    @property
    def went_well(self) -> bool:
        """Whether one pass answered all, so that its time says something of the device."""
        return self.num_passes == 1 and not self.has_failures


class Retries:
    """Splits a batch that raises in two and tries each half again. Owned by the engine thread.

    Where memory is short, down to one text. Any other error is an adapter's (its texts share its weights): down to one
    adapter, which is kept apart from the others from then on, until it is answered again. run is the forward pass;
    free_memory is called before a try that follows a lack of memory; memory is asked whether a device that has raised
    still works.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Work]], list[Tensor]],
        free_memory: Callable[[], None],
        memory: DeviceMemory | None = None,
    ) -> None:
        self._forward, self._free_memory, self._memory = run, free_memory, memory or HostMemory()
        self._suspects: set[str] = set()

    def run(self, batch: Sequence[Waiting]) -> Outcome:
        """Raises EngineStopped where the device itself has failed and no try can succeed."""
        answers: dict[int, Tensor | ServiceError] = {}
        pieces = self._pieces(batch)
        fitting, too_large = 0, 0  # tokens; of the largest piece that went well, of the smallest that did not fit
        num_passes = num_splits = num_failures = 0
        while pieces:
            piece = pieces.pop()
            part = [batch[index] for index in piece]
            outcome = self._try(part, is_first_failure=num_failures == 0)
            num_passes += 1
            if not isinstance(outcome, ServiceError):
                answers.update(zip(piece, outcome, strict=True))
                self._suspects.difference_update(waiting.adapter.key for waiting in part)
                fitting = max(fitting, _num_tokens(part))
                continue
            is_short = isinstance(outcome, OutOfMemory)
            if is_short:
                too_large = min(too_large or _num_tokens(part), _num_tokens(part))
                self._free_memory()
            else:
                num_failures += 1
            cut = _middle(part, is_short) if is_short or num_failures < MOST_FAILURES else None
            if cut is None:
                answers.update(dict.fromkeys(piece, outcome))
                self._suspect(part, is_short)
            else:
                pieces += [piece[:cut], piece[cut:]]
                num_splits += 1
        return Outcome(
            [answers[index] for index in range(len(batch))],
            num_passes,
            num_splits,
            has_failures=num_failures > 0 or too_large > 0,
            fitting_tokens=(fitting or too_large // 2) if too_large else None,
        )

    def _pieces(self, batch: Sequence[Waiting]) -> list[list[int]]:
        """What is tried first, each adapter's texts together: the whole batch, but for adapters that failed lately."""
        order = sorted(range(len(batch)), key=lambda index: batch[index].adapter.key)
        pieces: dict[str, list[int]] = {}
        for index in order:
            key = batch[index].adapter.key
            pieces.setdefault(key if key in self._suspects else "", []).append(index)
        return list(pieces.values())

    def _try(self, part: Sequence[Waiting], is_first_failure: bool) -> list[Tensor] | ServiceError:
        """One pass. Once this has returned, nothing holds the tensors of a pass that raised."""
        try:
            return self._forward([(waiting.job, waiting.adapter) for waiting in part])
        except Exception as error:
            if is_lack_of_memory(error):
                return OutOfMemory(
                    f"a text of {part[0].num_tokens} tokens does not fit into the memory that is free; "
                    "retry later, or send a shorter one"
                )
            if is_first_failure:
                logs.event("batch_failed", num_texts=len(part), trace=traceback.format_exception(error))
            if has_failed(self._memory, error):
                raise EngineStopped("the device has failed; restart the server") from None
            return ForwardFailed(f"the forward pass failed with {type(error).__name__}; the server goes on")

    def _suspect(self, part: Sequence[Waiting], is_short: bool) -> None:
        keys = {waiting.adapter.key for waiting in part}
        if not is_short and len(keys) == 1:
            if len(self._suspects) >= MOST_SUSPECTS:
                self._suspects.clear()  # of adapters that nobody asks for any more, or of a device that fails
            self._suspects |= keys


def _num_tokens(part: Sequence[Waiting]) -> int:
    return sum(waiting.num_tokens for waiting in part)


def _middle(part: Sequence[Waiting], is_short: bool) -> int | None:
    """Where to cut so that both sides have about as many tokens: between texts if memory is short, else adapters."""
    half, before = _num_tokens(part) / 2, 0
    cuts: dict[int, float] = {}  # where -> how far from the middle
    for index in range(1, len(part)):
        before += part[index - 1].num_tokens
        if is_short or part[index - 1].adapter.key != part[index].adapter.key:
            cuts[index] = abs(half - before)
    return min(cuts, key=cuts.__getitem__, default=None)
