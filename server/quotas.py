"""How much each tenant may ask for: buckets that fill with time, and a cap on what is in flight."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Protocol

from server.callers import Caller, Limits
from server.errors import QuotaExceeded, TooManyInputs
from server.metrics import Metrics

MINUTE_S = 60.0
ROUNDING = 1e-6


class Accounts(Protocol):
    """What the routes ask of `Quotas`, wherever they are kept. The event loop alone calls it."""

    async def count_request(self, caller: Caller, num_texts: int) -> None:
        """Take one request and its texts from the tenant's account, or nothing; raises QuotaExceeded."""

    async def count_tokens(self, caller: Caller, num_tokens: int) -> None:
        """Take tokens from the tenant's account; raises QuotaExceeded."""

    def give_back_tokens(self, caller: Caller, num_tokens: int) -> None:
        """Put back what `count_tokens` took for texts that were not classified."""

    def in_flight(self, caller: Caller, num_texts: int) -> AbstractAsyncContextManager[None]:
        """While texts are classified; raises QuotaExceeded if there would be too many, TooManyInputs if always."""


class Quotas:
    """The tenants' accounts of one server; each replica has its own. Any thread may call it."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics, self._clock = metrics, clock
        self._lock = threading.Lock()
        self._accounts: dict[str, _Account] = {}
        self._in_flight: Counter[str] = Counter()

    def count_request(self, caller: Caller, num_texts: int) -> None:
        """Take one request and its texts from the tenant's account, or nothing; raises QuotaExceeded."""
        with self._lock:
            if (account := self._account(caller)) is not None:
                self._take(caller, (account.requests, 1), (account.texts, num_texts))

    def count_tokens(self, caller: Caller, num_tokens: int) -> None:
        """Take tokens from the tenant's account; raises QuotaExceeded."""
        with self._lock:
            if (account := self._account(caller)) is not None:
                self._take(caller, (account.tokens, num_tokens))

    def give_back_tokens(self, caller: Caller, num_tokens: int) -> None:
        """Put back what `count_tokens` took for texts that were not classified."""
        with self._lock:
            if (account := self._account(caller)) is not None:
                account.tokens.take(-num_tokens)

    @contextmanager
    def in_flight(self, caller: Caller, num_texts: int) -> Iterator[None]:
        """While texts are classified; raises QuotaExceeded if there would be too many, TooManyInputs if always."""
        tenant, most = caller.tenant, caller.limits.max_waiting
        if tenant is None:
            yield
            return
        if most is not None and num_texts > most:  # no waiting helps
            self._metrics.tenant_refused(tenant)
            raise TooManyInputs("inputs", f"`inputs` has {num_texts} texts; tenant `{tenant}` may have {most}")
        with self._lock:
            if most is not None and self._in_flight[tenant] + num_texts > most:
                flying = self._in_flight[tenant]
                self._refuse(caller, f"may have {most} texts in flight, not {flying} and {num_texts} more", 1)
            self._in_flight[tenant] += num_texts
        try:
            yield
        finally:
            with self._lock:
                self._in_flight[tenant] -= num_texts

    def _account(self, caller: Caller) -> _Account | None:
        if caller.tenant is None:
            return None
        account = self._accounts.get(caller.tenant)
        if account is None or account.limits != caller.limits:  # the key file may change while we run
            account = self._accounts[caller.tenant] = _Account(caller.limits, account)
        return account

    def _take(self, caller: Caller, *takings: tuple[_Bucket, int]) -> None:
        """Take from all buckets, or from none."""
        now = self._clock()
        for bucket, count in takings:
            if (wait_s := bucket.wait_s(count, now)) > 0:
                reason = f"may have {bucket.per_minute} {bucket.noun} a minute"
                self._refuse(caller, reason, math.ceil(wait_s - ROUNDING))
        for bucket, count in takings:
            bucket.take(count)

    def _refuse(self, caller: Caller, reason: str, retry_after_s: int) -> None:
        self._metrics.tenant_refused(caller.tenant or "")
        after = max(1, retry_after_s)
        raise QuotaExceeded(f"tenant `{caller.tenant}` {reason}; ask again in {after} s", after)


class OwnAccounts:
    """`Accounts` that are kept in this process."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas

    async def count_request(self, caller: Caller, num_texts: int) -> None:
        self._quotas.count_request(caller, num_texts)

    async def count_tokens(self, caller: Caller, num_tokens: int) -> None:
        self._quotas.count_tokens(caller, num_tokens)

    def give_back_tokens(self, caller: Caller, num_tokens: int) -> None:
        self._quotas.give_back_tokens(caller, num_tokens)

    @asynccontextmanager
    async def in_flight(self, caller: Caller, num_texts: int) -> AsyncIterator[None]:
        with self._quotas.in_flight(caller, num_texts):
            yield


class _Bucket:
    """Holds a minute's worth at most. What asks for more than that needs it full, and leaves it in debt."""

    def __init__(self, noun: str, per_minute: int | None, before: _Bucket | None) -> None:
        self.noun, self.per_minute = noun, per_minute
        size = float(per_minute or 0)
        self._level: float = min(size, before._level) if before is not None and before.per_minute is not None else size
        self._at: float = before._at if before is not None else -math.inf  # never looked at: it fills up

    def wait_s(self, count: int, now: float) -> float:
        """After how many seconds so many may be taken; 0 for now."""
        if self.per_minute is None:
            return 0.0
        rate = self.per_minute / MINUTE_S
        self._level = min(float(self.per_minute), self._level + (now - self._at) * rate)
        self._at = now
        missing = min(count, self.per_minute) - self._level
        return missing / rate if missing > ROUNDING else 0.0

    def take(self, count: int) -> None:
        self._level -= count


class _Account:
    """What one tenant has used up."""

    def __init__(self, limits: Limits, before: _Account | None) -> None:
        self.limits = limits
        self.requests: _Bucket = _Bucket("requests", limits.requests_per_minute, before.requests if before else None)
        self.texts: _Bucket = _Bucket("texts", limits.texts_per_minute, before.texts if before else None)
        self.tokens: _Bucket = _Bucket("tokens", limits.tokens_per_minute, before.tokens if before else None)
