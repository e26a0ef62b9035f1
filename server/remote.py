"""What the routes of an HTTP process work with, where the engine is another process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from server import logs
from server.callers import Caller
from server.catalog import Catalog
from server.desk import Desk
from server.errors import EngineStopped
from server.exchange import Exchange
from server.jobs import Answer, EngineHealth, Job
from server.messages import Beat, Called, Changed, Counted, Hello, Landed, Marked, Message, Seen, Submitted
from server.record import Alias, Record
from server.residency import Tier
from server.settings import Settings
from server.state_metrics import text_without_engine
from server.tokenizer import Tokenizer


class Remote:
    """The engine process as an HTTP process sees it: keeps the catalog like the engine's, in the order of changes."""

    def __init__(self, address: Path) -> None:
        self.catalog = Catalog()
        self.hello: Hello | None = None
        self.health = EngineHealth(alive=True, num_waiting=0)
        self.exchange = Exchange(address, self._hear)

    def desk(self, settings: Settings) -> Desk:
        """Wait until there is an engine."""
        self.exchange.start()
        assert self.hello is not None, "an exchange is up once it was greeted; this is a bug"
        return Desk(
            engine=RemoteEngine(self),
            catalog=self.catalog,
            lifecycle=RemoteLifecycle(self.exchange),
            tokenizer=Tokenizer(Path(self.hello.folder)),
            metrics=RemoteMeter(self.exchange),
            quotas=RemoteAccounts(self.exchange),
            base=self.hello.base,
            max_inputs=settings.max_inputs,
            tiers=self._tiers,
        )

    async def _tiers(self, keys: Sequence[str]) -> Mapping[str, Tier]:
        try:
            tiers: Mapping[str, Tier] = await asyncio.wrap_future(self.exchange.call("tiers", keys))
        except EngineStopped:
            return {}  # it begins with none
        return tiers

    def _hear(self, message: Message) -> None:
        if isinstance(message, Changed):
            if message.record is not None:
                self.catalog.put(message.record)
            else:
                self.catalog.remove(message.adapter_id)
        elif isinstance(message, Beat):
            self.health, self.catalog.trouble = message.health, message.trouble
        elif isinstance(message, Marked):
            self.exchange.tell(Seen(message.mark))
        elif isinstance(message, Hello):
            self._greet(message)

    def _greet(self, hello: Hello) -> None:
        self.catalog.restore(hello.records)
        if self.hello is not None and (hello.base, hello.folder) != (self.hello.base, self.hello.folder):
            # its files were exchanged before the engine was started again: texts would be cut into other tokens
            logs.event("base_changed", before=self.hello.base.fingerprint, now=hello.base.fingerprint)
            os.kill(os.getpid(), signal.SIGTERM)
        self.hello = self.hello or hello


class RemoteEngine:
    """`server.jobs.Engine`; a job that cannot be taken is told of by its future."""

    def __init__(self, remote: Remote) -> None:
        self._remote, self._exchange = remote, remote.exchange

    def start(self) -> None:
        """Its own process has."""

    def submit(self, job: Job) -> Future[Answer]:
        return self._exchange.ask(lambda number: Submitted.of(number, job))

    def health(self) -> EngineHealth:
        health = self._remote.health
        return EngineHealth(
            alive=health.alive and self._exchange.is_up,
            num_waiting=health.num_waiting,
            num_running=health.num_running,
            stalled=health.stalled,
            recovers=True,
        )

    def close(self) -> None:
        """Its own process does."""


class RemoteLifecycle:
    """`server.desk.Lifecycle`. What it has changed is seen by every HTTP process once it is done."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def put(
        self,
        adapter_id: str,
        source: str | None,
        tags: Sequence[str] | None = None,
        is_pinned: bool | None = None,
        activate: bool = True,
    ) -> Record:
        record: Record = self._exchange.call("put", adapter_id, source, tags, is_pinned, activate).result()
        return record

    def remove(self, reference: str) -> None:
        self._exchange.call("remove", reference).result()

    def set_alias(self, adapter_id: str, alias: Alias) -> Record:
        record: Record = self._exchange.call("set_alias", adapter_id, alias).result()
        return record

    def rollback(self, adapter_id: str) -> Record:
        record: Record = self._exchange.call("rollback", adapter_id).result()
        return record


class RemoteMeter:
    """`server.metrics.Meter`: the engine process counts for all."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._keys: Callable[[], tuple[float, float]] | None = None

    def request_answered(self, adapter_id: str, code: str, seconds: float | None = None) -> None:
        self._count("request_answered", adapter_id, code, seconds)

    def texts_classified(self, num_texts: int, num_tokens: int, tokenize_s: float, queue_s: float) -> None:
        self._count("texts_classified", num_texts, num_tokens, tokenize_s, queue_s)

    def predicted(self, adapter_id: str, labels: Iterable[str]) -> None:
        self._count("predicted", adapter_id, list(labels))

    def refused(self, code: str) -> None:
        self._count("refused", code)

    def tenant_classified(self, tenant: str, num_texts: int, num_tokens: int) -> None:
        self._count("tenant_classified", tenant, num_texts, num_tokens)

    def watch_keys(self, count: Callable[[], float], is_fresh: Callable[[], float]) -> None:
        self._keys = lambda: (count(), is_fresh())

    async def text(self) -> bytes:
        keys = self._keys() if self._keys is not None else None
        try:
            text: bytes = await asyncio.wrap_future(self._exchange.call("metrics", keys))
        except EngineStopped:  # a scrape that failed would be no more than a target that is down
            return text_without_engine()
        return text

    def _count(self, name: str, *values: object) -> None:
        self._exchange.tell(Counted(name, values))


class RemoteAccounts:
    """`server.quotas.Accounts`: the engine process keeps them for all."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def count_request(self, caller: Caller, num_texts: int) -> None:
        if caller.tenant is not None:
            await asyncio.wrap_future(self._exchange.call("count_request", caller, num_texts))

    async def count_tokens(self, caller: Caller, num_tokens: int) -> None:
        if caller.tenant is not None:
            await asyncio.wrap_future(self._exchange.call("count_tokens", caller, num_tokens))

    def give_back_tokens(self, caller: Caller, num_tokens: int) -> None:
        if caller.tenant is not None:
            with suppress(EngineStopped):  # the next one's accounts are full
                self._exchange.call("give_back_tokens", caller, num_tokens)

    @asynccontextmanager
    async def in_flight(self, caller: Caller, num_texts: int) -> AsyncIterator[None]:
        if caller.tenant is None:
            yield
            return
        number = self._exchange.number()
        try:
            flying = self._exchange.ask(lambda number: Called(number, "fly", (number, caller, num_texts)), number)
            await asyncio.wrap_future(flying)
            yield
        finally:
            self._exchange.tell(Landed(number))  # of those that were refused, the engine process knows nothing
