"""Which adapters this server knows, and what the HTTP side must know about each. No torch."""

from __future__ import annotations

import difflib
import threading
from dataclasses import dataclass

from server.errors import AdapterFailed, AdaptermuxError, AdapterNotFound
from server.manifest import Manifest

MOST_COMPARED = 200


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """One adapter that is served. num_bytes: its weights, on disk as in memory."""

    adapter_id: str
    version: str
    manifest: Manifest
    num_bytes: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RefusedCard:
    """One folder that is not served, with the error's code and message."""

    adapter_id: str
    code: str
    reason: str


class Catalog:
    """Adapters by id. Any thread may call it; a lock guards the table."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cards: dict[str, AdapterCard | RefusedCard] = {}

    def put(self, card: AdapterCard | RefusedCard) -> None:
        """Add an adapter or replace the one of the same id."""
        with self._lock:
            self._cards[card.adapter_id] = card

    def all(self) -> list[AdapterCard | RefusedCard]:
        """Every card in order of id."""
        with self._lock:
            return [self._cards[adapter_id] for adapter_id in sorted(self._cards)]

    def count(self, status: str) -> int:
        """How many adapters are `ready`, or `failed`."""
        with self._lock:
            return sum(isinstance(card, RefusedCard) == (status == "failed") for card in self._cards.values())

    def find(self, adapter_id: str) -> AdapterCard | RefusedCard:
        """The card of an id; raises AdapterNotFound with the nearest names."""
        with self._lock:
            if adapter_id in self._cards:
                return self._cards[adapter_id]
            known = sorted(self._cards)
        asked = adapter_id[:128]
        # comparing names takes time: with very many adapters only those that begin alike are compared
        likely = (
            known if len(known) <= MOST_COMPARED else [name for name in known if name[:1] == asked[:1]][:MOST_COMPARED]
        )
        near = difflib.get_close_matches(asked, likely, n=3, cutoff=0.5)
        hint = "did you mean " + " or ".join(f"`{name}`" for name in near) + "?" if near else _list(known)
        raise AdapterNotFound(f"there is no adapter {asked!a}; {hint}")

    def resolve(self, adapter_id: str) -> AdapterCard:
        """The card of a served adapter; raises AdapterNotFound or AdapterFailed with the reason."""
        card = self.find(adapter_id)
        if isinstance(card, RefusedCard):
            raise AdapterFailed(f"adapter `{adapter_id}` was refused when it was loaded: {card.reason}")
        return card


def refuse(name: str, error: Exception) -> RefusedCard:
    """The card of a folder that raised when it was read. A folder's name on disk may be any bytes."""
    if isinstance(error, AdaptermuxError):
        return RefusedCard(_printable(name), error.code, _printable(str(error)))
    return RefusedCard(_printable(name), "internal_error", f"{type(error).__name__}: {error}; this is a bug")


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _list(known: list[str]) -> str:
    if not known:
        return "this server holds no adapters"
    return "GET /v1/adapters lists the " + (f"{len(known)} known ones" if len(known) > 1 else "only one")
