"""Puts the parts together: base model, adapters, engine and HTTP side."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

import torch

from server import adapter_folder, logs
from server.api import Desk
from server.base_model import BaseModel
from server.catalog import AdapterCard, Catalog, RefusedCard
from server.engine import BatchReport, ThreadEngine
from server.errors import AdaptermuxError, BaseModelError, SettingsError
from server.forward import Forward, load_base
from server.metrics import Metrics
from server.schemas import BaseInfo
from server.settings import Settings
from server.store import Store
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
        self.store = Store(self.base)
        self.catalog = Catalog()
        self.metrics = Metrics(settings.metrics_top_adapters)
        self.engine = ThreadEngine(
            Forward(self.base, keeps_weights=False),
            self.store,
            settings.max_waiting,
            settings.max_batch_tokens,
            self._on_batch,
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
        self.load_adapters(settings.adapters)
        self.metrics.watch_waiting(lambda: self.engine.health().num_waiting)

    def __enter__(self) -> Service:
        self.engine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()

    def load_adapters(self, root: Path) -> None:
        """Load every folder below `root`. One that is refused is listed with the reason and stops nothing."""
        for name in adapter_folder.scan(root):
            began = time.monotonic()
            card = self._load(root, name)
            self.catalog.put(card)
            if isinstance(card, RefusedCard):
                logs.event("adapter_refused", adapter_id=card.adapter_id, code=card.code, reason=card.reason)
            else:
                logs.event(
                    "adapter_loaded",
                    adapter_id=name,
                    version=card.version,
                    method=card.manifest.method,
                    warnings=card.warnings,
                    seconds=round(time.monotonic() - began, 3),
                )
        cards = self.catalog.all()
        num_failed = sum(isinstance(card, RefusedCard) for card in cards)
        self.metrics.adapters_known(len(cards) - num_failed, num_failed, self.store.resident_bytes())

    def _load(self, root: Path, name: str) -> AdapterCard | RefusedCard:
        try:
            folder = adapter_folder.read(root, name, self.base)
            adapter = self.store.load(folder)
        except AdaptermuxError as error:
            return RefusedCard(_printable(name), error.code, str(error))
        except Exception as error:  # one folder must never stop the others, whatever it holds
            return RefusedCard(_printable(name), "internal_error", f"{type(error).__name__}: {error}; this is a bug")
        return AdapterCard(name, folder.version, folder.manifest, adapter.resident_bytes, folder.warnings)

    def _on_batch(self, report: BatchReport) -> None:
        self.metrics.batch_run(
            report.num_texts, report.num_tokens, report.num_adapters, report.compute_s, report.failed
        )


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
