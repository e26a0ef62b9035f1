"""Adapters that come, change and go while a service answers."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from loadtest.errors import LoadTestError
from loadtest.remote import Remote


class Changes:
    """Loads a new adapter, flips a hot one to another version or back, and removes the new one, in turn.

    A thread of its own between `start` and `stop`. sources: adapter folders that the service may fetch; hot: the
    adapters whose alias is flipped.
    """

    def __init__(self, remote: Remote, sources: Sequence[Path], hot: Sequence[str], rate_per_s: float) -> None:
        self._remote = remote
        self._sources = itertools.cycle(sources)
        self._hot = itertools.cycle(hot)
        self._every_s = 1 / rate_per_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.done: Counter[str] = Counter()
        self.trouble: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        steps: Sequence[tuple[str, Callable[[], None]]] = (
            ("load", self._load), ("flip", self._flip), ("remove", self._remove), ("flip", self._flip_back),
        )  # fmt: skip
        for name, step in itertools.cycle(steps):
            due += self._every_s
            if self._stopped.wait(max(0.0, due - time.monotonic())):
                return
            try:
                step()
            except LoadTestError as error:
                self.trouble = str(error)
                return
            self.done[name] += 1

    def _load(self) -> None:
        self._remote.ask("PUT", "/v1/adapters/loadtest-new", {"source": f"file:{next(self._sources)}"})

    def _remove(self) -> None:
        self._remote.ask("DELETE", "/v1/adapters/loadtest-new")

    def _flip(self) -> None:
        self._flipped = next(self._hot)
        self._remote.ask("PUT", f"/v1/adapters/{self._flipped}", {"source": f"file:{next(self._sources)}"})

    def _flip_back(self) -> None:
        self._remote.ask("PUT", f"/v1/adapters/{self._flipped}/alias", {"rollback": True})
