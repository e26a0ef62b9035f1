"""What the routes work with: the desk they share, and the visit that each request is."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol, TypeVar, TypeVarTuple

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Depends, Header, Request

from server.callers import Caller, Scope
from server.catalog import Catalog
from server.jobs import Engine
from server.metrics import Meter
from server.quotas import Accounts
from server.record import Alias, Record
from server.residency import Tier
from server.schemas import BaseInfo
from server.tokenizer import Tokenizer
from server.trail import Trail

MAX_TIMEOUT_MS = 600_000
MAX_ROUTING_KEY = 256
NUM_CHANGERS = 32

Result = TypeVar("Result")
Values = TypeVarTuple("Values")


class Lifecycle(Protocol):
    """How adapters come and go. Every method blocks until it is done and may be called from any thread."""

    def put(
        self,
        adapter_id: str,
        source: str | None,
        tags: Sequence[str] | None = None,
        is_pinned: bool | None = None,
        activate: bool = True,
    ) -> Record:
        """Fetch a version and let the id stand for it, or change tags and pin. None leaves what is."""

    def remove(self, reference: str) -> None:
        """Forget an adapter, or one version of it."""

    def set_alias(self, adapter_id: str, alias: Alias) -> Record:
        """Let the id stand for other versions, at once."""

    def rollback(self, adapter_id: str) -> Record:
        """Let the id stand for what it stood for before."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Everything in it may be used from any thread, but for the quotas: those are the event loop's.

    Engine, catalog, lifecycle, metrics and quotas are those of this process, or stand for another's (`server.remote`).
    """

    engine: Engine
    catalog: Catalog
    lifecycle: Lifecycle
    tokenizer: Tokenizer
    metrics: Meter
    quotas: Accounts
    base: BaseInfo
    max_inputs: int
    tiers: Callable[[Sequence[str]], Awaitable[Mapping[str, Tier]]]
    """Which versions are in memory, and where, by `server.residency.key_of`; the others are on disk."""
    changers: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(NUM_CHANGERS))

    async def change(self, work: Callable[[*Values], Result], *values: *Values) -> Result:
        """Do something of the lifecycle, on threads of its own: a slow source keeps no text waiting."""
        return await run_sync(work, *values, limiter=self.changers)


@dataclass(frozen=True, slots=True)
class Visit:
    """One request: who asks, how long they wait, and which side of a split they are on. deadline: monotonic seconds."""

    desk: Desk
    request: Request
    caller: Caller
    trail: Trail
    timeout_s: float | None
    deadline: float | None
    routing_key: str | None


async def visit(
    request: Request,
    timeout_ms: Annotated[
        int | None,
        Header(
            alias="X-Request-Timeout-Ms",
            ge=1,
            le=MAX_TIMEOUT_MS,
            description="Milliseconds that you wait; what is not classified by then is dropped and answered 504",
        ),
    ] = None,
    routing_key: Annotated[
        str | None,
        Header(
            alias="X-Routing-Key",
            max_length=MAX_ROUTING_KEY,
            description="Requests of one key get the same version of an adapter that is split between several",
        ),
    ] = None,
) -> Visit:
    timeout_s = timeout_ms / 1e3 if timeout_ms is not None else None
    deadline = time.monotonic() + timeout_s if timeout_s is not None else None
    state = request.state
    return Visit(request.app.state.desk, request, state.caller, state.trail, timeout_s, deadline, routing_key)


class Needs:
    """A dependency of routes: the caller's key must have a scope."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    async def __call__(self, request: Request) -> None:
        caller: Caller = request.state.caller
        caller.check(self._scope)


InVisit = Annotated[Visit, Depends(visit)]
