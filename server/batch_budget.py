"""How many tokens the next batch may have: what runs in time, and fits into memory."""

from __future__ import annotations

FEWEST_TOKENS = 64
ROUND = 4
"""Times as much that a batch may have if many adapters share it."""
MEMORY = 0.9
"""Weight of what is known of the device's speed against the batch that has just run."""
GROWTH = 1.005
"""How the limit that a lack of memory has set grows with every full batch that goes well: where the lack lasts, about
one full batch in 140 has to be split again, and where it is over, the limit has doubled after as many."""


class BatchBudget:
    """As many tokens as run in a given time, so that nobody waits long for a running batch, and as fit into memory.

    A large batch hardly runs more tokens a second than a middling one, and who comes while it runs waits for its end
    (docs/log.md). Owned by the engine thread.
    """

    def __init__(self, most_tokens: int, target_s: float) -> None:
        self._most_tokens, self._target_s = most_tokens, target_s
        self._tokens_per_s: float | None = None
        self._fitting_tokens = float(most_tokens)

    def tokens(self) -> int:
        """What the next batch may have."""
        in_time = round((self._tokens_per_s or 0) * self._target_s)
        return min(self._most_tokens, max(FEWEST_TOKENS, min(in_time, int(self._fitting_tokens))))

    def round_tokens(self) -> int:
        """What it may have if many adapters share it."""
        return min(self._most_tokens, max(self.tokens(), int(self._fitting_tokens)), ROUND * self.tokens())

    def learn(self, num_tokens: int, compute_s: float) -> None:
        """A batch has run."""
        rate = num_tokens / max(compute_s, 1e-6)
        known = self._tokens_per_s
        if known is None or rate > known:
            self._tokens_per_s = rate
        elif num_tokens >= self.tokens() / 2 or compute_s > self._target_s:
            # smaller ones that are in time are mostly overhead and say nothing of the device
            self._tokens_per_s = MEMORY * known + (1 - MEMORY) * rate
        if num_tokens >= self._fitting_tokens / 2:
            self._fitting_tokens = min(self._most_tokens, self._fitting_tokens * GROWTH)

    def shrink(self, fitting_tokens: int) -> None:
        """A batch did not fit into memory; a part of it with that many tokens did."""
        self._fitting_tokens = min(self._fitting_tokens, max(FEWEST_TOKENS, fitting_tokens))
