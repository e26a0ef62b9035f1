"""Puts the parts together: base model, adapters, engine and HTTP side."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType

import torch

from server import __version__, logs
from server.adapter_folder import AdapterFolder
from server.base_model import BaseModel, choose_device
from server.catalog import Catalog
from server.desk import Desk
from server.device_memory import HostMemory, is_lack_of_memory, memory_of
from server.engine import ThreadEngine
from server.errors import AdapterRefused, BaseModelError
from server.follower import Follower
from server.forward import Forward, load_base
from server.ledger import Ledger
from server.lifecycle import Lifecycle
from server.loaded_adapter import LoadedAdapter
from server.memory_budget import MemoryBudget, share_out
from server.metrics import Metrics
from server.quotas import OwnAccounts, Quotas
from server.record import STATUSES
from server.residency import Tier
from server.schemas import BaseInfo
from server.settings import Settings
from server.store import Store, quarter_of_memory
from server.tokenizer import Tokenizer


class Service:
    """A running engine with its adapters, and the desk at which the HTTP side finds them.

    Use it as a context manager: leaving it answers what is queued and stops the engine.
    """

    def __init__(self, settings: Settings) -> None:
        began = time.monotonic()
        torch.set_num_threads(settings.threads or max(1, (os.cpu_count() or 1) - 1))
        self.memory = memory_of(choose_device(settings.device))
        self.memory.enter()
        try:
            self.base = load_base(settings.base, settings.device, settings.dtype)
            forward = Forward(
                self.base,
                keeps_weights=False,
                uses_kernels=settings.kernels == "auto",
                uses_graphs=settings.cuda_graphs == "auto",
            )
            budget = self._share_out(forward, settings)
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error):
                raise
            raise BaseModelError(f"base model `{settings.base}` does not fit into the memory that is free") from error
        in_host = settings.host_adapter_bytes or quarter_of_memory(torch.device("cpu"))
        self.catalog = Catalog()
        self.metrics = Metrics(settings.metrics_top_adapters)
        self.quotas = Quotas(self.metrics)
        self.store = Store(
            self.base,
            budget.adapter_bytes,
            0 if isinstance(self.memory, HostMemory) else in_host,
            self._on_failed,
            self.metrics.adapter_loaded,
            self.memory,
        )
        self.lifecycle = Lifecycle(
            self.base,
            self.store,
            self.catalog,
            Ledger(settings.state_folder),
            settings.source_roots,
            settings.keep_versions,
        )
        self.follower = Follower(settings.adapters, self.lifecycle, self.catalog, settings.look_s)
        self.engine = ThreadEngine(
            forward,
            self.store,
            settings.max_waiting,
            budget.batch_tokens,
            settings.batch_ms,
            self.metrics.batch_run,
            stall_s=settings.stall_s,
            max_wait_s=settings.max_wait_s,
        )
        self.desk = Desk(
            engine=self.engine,
            catalog=self.catalog,
            lifecycle=self.lifecycle,
            tokenizer=_load_tokenizer(self.base),
            metrics=self.metrics,
            quotas=OwnAccounts(self.quotas),
            base=_base_info(self.base),
            max_inputs=settings.max_inputs,
            tiers=self._tiers,
        )
        logs.event("base_loaded", **self.desk.base.model_dump(), seconds=round(time.monotonic() - began, 3))
        info = self.desk.base
        self.metrics.describe(__version__, str(torch.__version__), info.name, info.family, info.dtype, info.device)
        self.metrics.memory_shared_out(budget.parts)
        self.metrics.watch_engine(self.engine.health, self.engine.waiting_adapters)
        self.metrics.watch_store(self.store.stats, self.store.residents)
        self.metrics.watch_adapters(self.catalog.count, STATUSES)
        self._register_adapters()
        self._preload(settings.preload)

    def __enter__(self) -> Service:
        self.engine.start()
        self.follower.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.follower.close()
        self.engine.close()
        self.store.close()
        self.lifecycle.close()

    def _share_out(self, forward: Forward, settings: Settings) -> MemoryBudget:
        """What adapters and batches may take of the device's memory."""
        if isinstance(self.memory, HostMemory):
            room = settings.adapter_bytes or quarter_of_memory(self.base.device)
            return MemoryBudget(room, settings.max_batch_tokens, {"adapters": room})
        most_tokens, most_bytes = settings.max_batch_tokens, settings.adapter_bytes
        budget = share_out(self.memory, self.base, forward.run, most_tokens, most_bytes, forward.graphs)
        logs.event("memory_shared_out", batch_tokens=budget.batch_tokens, **budget.parts)
        return budget

    async def _tiers(self, keys: Sequence[str]) -> dict[str, Tier]:
        return self.store.tiers(keys)

    def _register_adapters(self) -> None:
        """Make what was fetched before, and what lies in the folder, known. What is refused stops nothing else."""
        began = time.monotonic()
        self.lifecycle.restore()
        self.follower.begin()
        self.lifecycle.settle()
        num_known = self.store.stats().num_known
        logs.event("adapters_registered", num_adapters=num_known, seconds=round(time.monotonic() - began, 3))

    def _preload(self, count: int) -> None:
        """Load the first adapters, as far as they have room, before anybody asks for them."""
        began = time.monotonic()
        loading: list[Future[LoadedAdapter]] = []
        for record in self.catalog.all():
            if (card := record.current) and len(loading) < count and self.store.has_room(card.num_bytes):
                loading.append(self.store.acquire(card.adapter_id, card.version))
        for future in loading:
            if future.exception() is None:
                self.store.release(future.result())
        num_loaded = self.store.stats().num_resident
        logs.event("adapters_loaded", num_adapters=num_loaded, seconds=round(time.monotonic() - began, 3))

    def _on_failed(self, folder: AdapterFolder, error: AdapterRefused) -> None:
        """An adapter's weights were found to be damaged when they were read."""
        self.lifecycle.on_damaged(folder, error)


def _load_tokenizer(base: BaseModel) -> Tokenizer:
    tokenizer = Tokenizer(base.folder)
    if tokenizer.vocabulary_size > base.vocabulary_size:
        raise BaseModelError(
            f"the tokenizer in `{base.folder}` has {tokenizer.vocabulary_size} tokens, "
            f"the base model {base.vocabulary_size}"
        )
    return tokenizer


def _base_info(base: BaseModel) -> BaseInfo:
    return BaseInfo(
        name=base.name,
        family=base.family.name,
        fingerprint=base.fingerprint,
        dtype=str(base.dtype).removeprefix("torch."),
        device=str(base.device),
        hidden_size=base.hidden_size,
        max_length=base.max_length,
    )
