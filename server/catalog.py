"""What the HTTP side knows of adapters: ids, their immutable versions, and which of them an id stands for. No torch."""

from __future__ import annotations

import difflib
import hashlib
import random
import threading
from collections.abc import Callable, Iterable
from itertools import islice

from server.errors import AdapterFailed, AdapterNotFound
from server.record import AdapterCard, Record, Refusal

MOST_COMPARED = 50


def everything(adapter_id: str) -> bool:
    """Who may see all adapters."""
    return True


class Catalog:
    """Records by id. Any thread may call it; records never change, they are replaced, so a flip is seen whole.

    trouble: why the adapters folder or bucket cannot be looked at.
    Whoever follows it is told of every change but that of `trouble`, in order, while the lock is held.

    `sees` says of an id whether the caller may know of it; what they may not see does not exist for them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._followers: list[Callable[[str, Record | None], None]] = []
        self.trouble: Refusal | None = None

    def put(self, record: Record) -> None:
        """Add a record or replace the one of the same id."""
        with self._lock:
            self._records[record.adapter_id] = record
            self._tell(record.adapter_id, record)

    def remove(self, adapter_id: str) -> None:
        with self._lock:
            self._records.pop(adapter_id, None)
            self._tell(adapter_id, None)

    def restore(self, records: Iterable[Record]) -> None:
        """Hold these records and no others, at once."""
        restored = {record.adapter_id: record for record in records}
        with self._lock:
            self._records = restored

    def follow(self, begin: Callable[[list[Record]], None], change: Callable[[str, Record | None], None]) -> None:
        """Call `begin` with all that is known, and `change` with every id whose record changes from then on."""
        with self._lock:
            begin(list(self._records.values()))
            self._followers.append(change)

    def unfollow(self, change: Callable[[str, Record | None], None]) -> None:
        with self._lock:
            self._followers.remove(change)

    def _tell(self, adapter_id: str, record: Record | None) -> None:
        for change in self._followers:
            change(adapter_id, record)

    def get(self, adapter_id: str) -> Record | None:
        return self._records.get(adapter_id)

    def all(self, sees: Callable[[str], bool] = everything, tag: str | None = None) -> list[Record]:
        """Every record in order of id, or those with a tag."""
        with self._lock:
            records = sorted(self._records.values(), key=lambda record: record.adapter_id)
        return [one for one in records if sees(one.adapter_id) and (tag is None or tag in one.tags)]

    def count(self, status: str) -> int:
        """How many adapters have a status."""
        with self._lock:
            return sum(record.status == status for record in self._records.values())

    def find(self, adapter_id: str, sees: Callable[[str], bool] = everything) -> Record:
        """The record of an id; raises AdapterNotFound with the nearest names."""
        record = self._records.get(adapter_id)
        if record is not None and sees(adapter_id):
            return record
        asked = adapter_id[:128]
        with self._lock:
            known = list(self._records)
        # nothing that is hidden may change what is said
        likely = list(islice(filter(sees, known), MOST_COMPARED + 1))
        if len(likely) > MOST_COMPARED:  # comparing takes time: only those that begin alike
            likely = list(islice((name for name in known if name[:1] == asked[:1] and sees(name)), MOST_COMPARED))
        near = difflib.get_close_matches(asked, likely, n=3, cutoff=0.5)
        hint = "did you mean " + " or ".join(f"`{name}`" for name in near) + "?" if near else "see GET /v1/adapters"
        raise AdapterNotFound(f"there is no adapter {asked!a}; {hint}")

    def resolve(
        self, reference: str, sees: Callable[[str], bool] = everything, routing_key: str | None = None
    ) -> AdapterCard:
        """The version that `id` or `id@version` stands for.

        An id with several versions is split between them by their weights; requests of one routing key get the
        same version as long as its share does not shrink. Raises AdapterNotFound, or AdapterFailed with the reason.
        """
        adapter_id, _, version = reference.partition("@")
        record = self.find(adapter_id, sees)
        if not version:
            version = _choose(record, routing_key)
        card = record.versions.get(version)
        if card is None:
            known = ", ".join(f"`{one}`" for one in record.versions) or "none"
            raise AdapterNotFound(f"adapter `{adapter_id}` has no version {version[:64]!a}; it has {known}")
        if card.refusal is not None:
            raise AdapterFailed(f"adapter `{reference}` was refused when it was loaded: {card.refusal.reason}")
        return card


def _choose(record: Record, routing_key: str | None) -> str:
    """The version a request goes to: its point between 0 and 1 lies in the version's share."""
    if len(record.alias) == 1:
        return record.alias[0].version
    if not record.alias:
        reason = record.refusal.reason if record.refusal else "none of its versions is active"
        raise AdapterFailed(f"adapter `{record.adapter_id}` was refused when it was loaded: {reason}")
    if routing_key is None:
        point = random.random()
    else:
        digest = hashlib.sha256(f"{record.adapter_id}\0{routing_key}".encode("utf-8", "surrogatepass")).digest()
        point = int.from_bytes(digest[:6], "big") / (1 << 48)
    point *= sum(target.weight for target in record.alias)
    for target in record.alias:
        point -= target.weight
        if point < 0:
            return target.version
    return record.alias[-1].version
