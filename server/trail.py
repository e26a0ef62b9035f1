"""What becomes known of a request on its way: for its headers, its line in the access log and its trace."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.callers import NOBODY, Caller
from server.record import AdapterCard

MOST_CARDS = 32


@dataclass(slots=True)
class Trail:
    """One request. The event loop alone changes it.

    began: of `time.perf_counter`. cards: the first versions of adapters that answered; a batch may ask for any number.
    """

    request_id: str
    began: float
    caller: Caller = NOBODY
    status: int = 0
    cards: dict[tuple[str, str], AdapterCard] = field(default_factory=dict)
    num_texts: int = 0
    num_tokens: int = 0
    tokenize_ms: float = 0.0
    queue_ms: float = 0.0
    compute_ms: float = 0.0

    def classified(
        self, card: AdapterCard, num_texts: int, num_tokens: int, tokenize_ms: float, queue_ms: float, compute_ms: float
    ) -> None:
        """Texts were classified by one adapter; of times that pass side by side, the longest counts."""
        if len(self.cards) < MOST_CARDS:
            self.cards[card.adapter_id, card.version] = card
        self.num_texts += num_texts
        self.num_tokens += num_tokens
        self.tokenize_ms = max(self.tokenize_ms, tokenize_ms)
        self.queue_ms = max(self.queue_ms, queue_ms)
        self.compute_ms = max(self.compute_ms, compute_ms)
