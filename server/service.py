"""Puts the parts together: base model, adapters, engine and HTTP side."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType

import torch

from server import __version__, adapter_folder, logs
from server.adapter_folder import AdapterFolder
from server.api import Desk
from server.base_model import BaseModel
from server.catalog import AdapterCard, Catalog, RefusedCard
from server.engine import ThreadEngine
from server.errors import AdaptermuxError, AdapterRefused, BaseModelError, SettingsError
from server.forward import Forward, load_base
from server.loaded_adapter import LoadedAdapter
from server.metrics import Metrics
from server.schemas import BaseInfo
from server.settings import Settings
from server.store import Store, quarter_of_memory
from server.tokenizer import Tokenizer


class Service:
    """A running engine with its adapters, and the desk at which the HTTP side finds them.

    Use it as a context manager: leaving it answers what is queued and stops the engine.
    """

    def __init__(self, settings: Settings) -> None:
        if not settings.adapters.is_dir():
            raise SettingsError(f"--adapters: `{settings.adapters}` is no folder")
        began = time.monotonic()
        torch.set_num_threads(settings.threads or max(1, (os.cpu_count() or 1) - 1))
        self.base = load_base(settings.base, settings.device, settings.dtype)
        on_device = settings.adapter_bytes or quarter_of_memory(self.base.device)
        in_host = settings.host_adapter_bytes or quarter_of_memory(torch.device("cpu"))
        self.catalog = Catalog()
        self.metrics = Metrics(settings.metrics_top_adapters)
        self.store = Store(
            self.base,
            on_device,
            in_host if self.base.device.type == "cuda" else 0,
            self._on_failed,
            self.metrics.adapter_loaded,
        )
        self.engine = ThreadEngine(
            Forward(self.base, keeps_weights=False, uses_kernels=settings.kernels == "auto"),
            self.store,
            settings.max_waiting,
            settings.max_batch_tokens,
            settings.batch_ms,
            self.metrics.batch_run,
            stall_s=settings.stall_s,
            max_wait_s=settings.max_wait_s,
        )
        self.desk = Desk(
            engine=self.engine,
            catalog=self.catalog,
            tokenizer=_load_tokenizer(self.base),
            metrics=self.metrics,
            base=_base_info(self.base),
            max_inputs=settings.max_inputs,
        )
        logs.event("base_loaded", **self.desk.base.model_dump(), seconds=round(time.monotonic() - began, 3))
        info = self.desk.base
        self.metrics.describe(__version__, str(torch.__version__), info.name, info.family, info.dtype, info.device)
        self.metrics.watch_engine(self.engine.health, self.engine.waiting_adapters)
        self.metrics.watch_store(self.store.stats, self.store.residents)
        self.metrics.watch_adapters(self.catalog.count)
        self.register_adapters(settings.adapters)
        self._preload(settings.preload)

    def __enter__(self) -> Service:
        self.engine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()
        self.store.close()

    def register_adapters(self, root: Path) -> None:
        """Make every folder below `root` known. One that is refused is listed with the reason and stops nothing."""
        began = time.monotonic()
        for name in adapter_folder.scan(root):
            self._list(self._register(root, name))
        num_known = self.store.stats().num_known
        logs.event("adapters_registered", num_adapters=num_known, seconds=round(time.monotonic() - began, 3))

    def _register(self, root: Path, name: str) -> AdapterCard | RefusedCard:
        try:
            folder = adapter_folder.read(root, name, self.base)
            self.store.register(folder)
        except AdaptermuxError as error:
            return RefusedCard(_printable(name), error.code, _printable(str(error)))
        except Exception as error:  # one folder must never stop the others, whatever it holds
            return RefusedCard(_printable(name), "internal_error", f"{type(error).__name__}: {error}; this is a bug")
        return AdapterCard(name, folder.version, folder.manifest, folder.weights.num_bytes, folder.warnings)

    def _list(self, card: AdapterCard | RefusedCard) -> None:
        self.catalog.put(card)
        if isinstance(card, RefusedCard):
            logs.event("adapter_refused", adapter_id=card.adapter_id, code=card.code, reason=card.reason)
        elif card.warnings:
            logs.event("adapter_has_warnings", adapter_id=card.adapter_id, warnings=card.warnings)

    def _preload(self, count: int) -> None:
        """Load the first adapters, as far as they have room, before anybody asks for them."""
        began = time.monotonic()
        loading: list[Future[LoadedAdapter]] = []
        for card in self.catalog.all():
            if isinstance(card, AdapterCard) and len(loading) < count and self.store.has_room(card.num_bytes):
                loading.append(self.store.acquire(card.adapter_id, card.version))
        for future in loading:
            if future.exception() is None:
                self.store.release(future.result())
        num_loaded = self.store.stats().num_resident
        logs.event("adapters_loaded", num_adapters=num_loaded, seconds=round(time.monotonic() - began, 3))

    def _on_failed(self, folder: AdapterFolder, error: AdapterRefused) -> None:
        """An adapter's weights were found to be damaged when they were read."""
        self._list(RefusedCard(folder.adapter_id, error.code, str(error)))


def _printable(name: str) -> str:
    """A folder's name on disk may be any bytes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


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
