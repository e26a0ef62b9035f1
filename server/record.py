"""What is known of one adapter: its immutable versions, and what its id stands for. No torch.

A record never changes: what becomes of it is another record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from server.errors import AdaptermuxError
from server.manifest import Manifest

MOST_PREVIOUS = 20
STATUSES = ("ready", "failed", "update_failed")
UNREADABLE = "what it stood for cannot be read at the moment"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something is not served: the error's code and message."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """One version of one adapter. num_bytes: its weights, on disk as in memory.

    source: where it was fetched from; None if it is served from where it lies. created: when it came, UTC.
    refusal: why it is not served any more, such as weights that turned out to be damaged.
    """

    adapter_id: str
    version: str
    manifest: Manifest
    num_bytes: int
    warnings: tuple[str, ...] = ()
    source: str | None = None
    created: str = ""
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A version, and its share of the requests that name the adapter without one."""

    version: str
    weight: float = 1.0


Alias = tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """An adapter id with everything it may stand for.

    versions: oldest first. alias: what the bare id means; empty while nothing of it can be served. previous: what it
    meant before, latest last. followed: the version that the adapters folder or bucket holds; seen: what its files
    looked like there when they were fetched.
    lost: versions that were fetched and cannot be read any more, or not by this server: their source, and when they
    came. refusal: why what lies there now is not served.
    """

    adapter_id: str
    versions: Mapping[str, AdapterCard] = field(default_factory=dict)
    alias: Alias = ()
    previous: tuple[Alias, ...] = ()
    tags: tuple[str, ...] = ()
    is_pinned: bool = False
    followed: str | None = None
    seen: str | None = None
    refusal: Refusal | None = None
    lost: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """`ready`, `failed`, or `update_failed`: an older version is served, or one whose pin finds no room."""
        if not self.alias or any(self.versions[target.version].refusal for target in self.alias):
            return "failed"
        return "ready" if self.refusal is None else "update_failed"

    @property
    def current(self) -> AdapterCard | None:
        """The version with the largest share."""
        return self.versions[max(self.alias, key=lambda target: target.weight).version] if self.alias else None

    @property
    def newest(self) -> str:
        """Of its versions, of which there is one at least."""
        return list(self.versions)[-1]

    def can_stand_for(self, alias: Alias) -> bool:
        """Whether the id can stand for it, and does not yet."""
        return alias != self.alias and all(target.version in self.versions for target in alias)

    def last_that_can_be(self) -> int | None:
        """Where in `previous` the latest alias is that the id can stand for again."""
        usable = [index for index, alias in enumerate(self.previous) if self.can_stand_for(alias)]
        return usable[-1] if usable else None

    def with_version(self, card: AdapterCard) -> Record:
        """With a version as its newest."""
        others = self.without([card.version])
        return replace(others, versions={**others.versions, card.version: card})

    def without(self, gone: Iterable[str]) -> Record:
        """With these versions neither there nor lost; the alias may still name them."""
        return replace(
            self,
            versions={version: card for version, card in self.versions.items() if version not in gone},
            lost={version: one for version, one in self.lost.items() if version not in gone},
        )

    def standing_for(self, alias: Alias) -> Record:
        """With another alias, and the one it had as the latest of the previous ones."""
        if not self.alias or alias == self.alias:
            return replace(self, alias=alias)
        return replace(self, alias=alias, previous=(*self.previous, self.alias)[-MOST_PREVIOUS:])

    def following(self, card: AdapterCard) -> Record:
        """With a version that now lies in the folder or bucket; an id that stood for the old one alone goes along."""
        kept = self
        if self.followed is not None and (old := self.versions.get(self.followed)) is not None and not old.source:
            kept = self.without([self.followed])
        versions = kept.with_version(card).versions
        goes_along = all(target.version == self.followed for target in self.alias)
        alias = (Target(card.version),) if goes_along else self.alias
        alias = tuple(target for target in alias if target.version in versions) or (Target(card.version),)
        lost = {version: one for version, one in kept.lost.items() if version != card.version}
        return replace(kept, versions=versions, lost=lost, alias=alias, followed=card.version, refusal=None)

    def unfollowed(self) -> Record:
        """What is left when the folder or bucket holds it no more; may be a record of nothing."""
        left = replace(self, followed=None, seen=None, refusal=None)
        card = self.versions.get(self.followed or "")
        # from a bucket, `seen` would say what was followed: without, a version with a source was put by itself
        was_put = card is not None and card.source and self.seen is None
        if self.followed is not None and not was_put:
            left = left.without([self.followed])
        alias = tuple(target for target in self.alias if target.version in left.versions)
        if not alias and self.seen is not None:
            return Record(self.adapter_id)  # its other versions came from there too: kept for a rollback only
        if not alias and left.versions:
            alias = (Target(left.newest),)
        return replace(left, alias=alias) if left.versions or left.lost else Record(self.adapter_id)

    def settled(self, trouble: Refusal | None) -> Record:
        """Standing for something that is there. trouble: why the folder or bucket cannot be looked at."""
        alias = tuple(target for target in self.alias if target.version in self.versions)
        if trouble is not None and not (alias or self.lost) and (self.alias or not self.versions):
            # what it stood for will be there again; a tenant reads this, and `trouble` names the folder or bucket
            return replace(self, alias=(), refusal=Refusal(trouble.code, UNREADABLE))
        if alias == self.alias and (alias or not self.versions):
            return self
        if not alias and self.versions:
            last = self.last_that_can_be()
            alias = (Target(self.newest),) if last is None else self.previous[last]
        return self.standing_for(alias)

    def pruned(self, keep_versions: int) -> Record:
        """Without the fetched versions that are the least likely to be wanted again, beyond those that are kept.

        The newest is always kept; of the others go those first that the id has not stood for, or not for longest.
        """
        in_use = {target.version for target in self.alias} | {self.followed, *list(self.versions)[-1:]}
        fetched = [card.version for card in self.versions.values() if card.source and card.version not in in_use]
        last_used = {target.version: index for index, alias in enumerate(self.previous) for target in alias}
        old = [*self.lost, *sorted(fetched, key=lambda version: last_used.get(version, -1))]
        return self.without(old[: max(0, len(old) - keep_versions)])


def refusal_of(error: Exception) -> Refusal:
    """Why a folder that raised when it was read is not served."""
    if isinstance(error, AdaptermuxError):
        return Refusal(error.code, printable(str(error)))
    return Refusal("internal_error", f"{type(error).__name__}: {printable(str(error))}; this is a bug")


def printable(name: str) -> str:
    """A folder's name on disk may be any bytes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
