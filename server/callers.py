"""Who asks, what they may do, and how much."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from server.errors import ScopeMissing

Scope = Literal["classify", "admin", "metrics"]
SCOPES: frozenset[str] = frozenset(get_args(Scope))


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a tenant may ask for; None is no limit. max_waiting: texts that are being classified at one time."""

    requests_per_minute: int | None = None
    texts_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_waiting: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a key. tenant: None for operators. patterns: the adapter ids they may know of, as in a shell."""

    key_id: str
    tenant: str | None = None
    scopes: frozenset[str] = SCOPES
    patterns: tuple[str, ...] = ("*",)
    limits: Limits = NO_LIMITS

    def sees(self, adapter_id: str) -> bool:
        """Whether an adapter of that id may exist for them."""
        return self.patterns == ("*",) or any(fnmatchcase(adapter_id, pattern) for pattern in self.patterns)

    def check(self, scope: Scope) -> None:
        """Raises ScopeMissing."""
        if scope not in self.scopes:
            raise ScopeMissing(f"this needs a key with the scope `{scope}`; yours has {', '.join(sorted(self.scopes))}")


ANYBODY = Caller(key_id="anybody")
"""Everyone, as long as the server has no keys."""
NOBODY = Caller(key_id="nobody", scopes=frozenset(), patterns=())
"""Whoever asks for what needs no key, once the server has keys."""
