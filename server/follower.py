"""Keeps the served adapters in step with a folder or bucket that others change."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from server import logs
from server.adapter_files import Look
from server.catalog import Catalog, Refusal
from server.errors import AdaptermuxError, SettingsError
from server.lifecycle import Lifecycle
from server.watch import Watch, open_root

NUM_FETCHERS = 8


class Follower:
    """Looks at the root every so many seconds, on a thread of its own, and lets the lifecycle do what has changed.

    One adapter that fails is listed with the reason and keeps none of the others back; a root that cannot be looked at
    changes nothing, and is told of in the catalog.
    """

    def __init__(self, root: str, lifecycle: Lifecycle, catalog: Catalog, every_s: float) -> None:
        self._text, self._lifecycle, self._catalog, self._every_s = root, lifecycle, catalog, every_s
        self._root = open_root(root)
        self._folder = None if "://" in root else Path(root)
        if self._folder is not None and not self._folder.is_dir():
            raise SettingsError(f"--adapters: `{root}` is no folder")
        self._watch: Watch | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adaptermux-follower", daemon=True)

    def begin(self) -> None:
        """Take what is there at the start. A root that cannot be looked at then is looked at again later."""
        known: dict[str, Look] = {}
        try:
            known = dict(self._root.listing())
        except AdaptermuxError as error:
            self._tell(error)
        restored = {record.adapter_id: record.seen for record in self._catalog.all() if record.followed}
        if known:
            for adapter_id in restored.keys() - known.keys():
                self._lifecycle.unfollow(adapter_id)
        self._watch = Watch(self._root, known)
        self._follow({name: look for name, look in known.items() if restored.get(name) != _digest(look)})

    def start(self) -> None:
        if self._every_s > 0:
            self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def look(self) -> None:
        """Do what has changed since the last look."""
        assert self._watch is not None, "begin comes first; this is a bug"
        changes = self._watch.look()
        self._tell(changes.error)
        for name in changes.gone:
            self._lifecycle.unfollow(name)
        self._follow({name: self._watch.seen(name) for name in (*changes.appeared, *changes.changed)})

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self.look()
            except Exception as error:  # a bug of ours: the adapters that are served go on
                logs.event("look_failed", trace=traceback.format_exception(error))

    def _follow(self, looks: dict[str, Look]) -> None:
        if self._folder is not None:
            self._again(name for name in looks if not self._lifecycle.follow(self._folder, name))
        elif looks:
            began = time.monotonic()
            with ThreadPoolExecutor(NUM_FETCHERS, thread_name_prefix="adaptermux-fetcher") as pool:
                done = pool.map(self._fetch, looks.items())
            self._again(name for name, was_done in zip(looks, done, strict=True) if not was_done)
            logs.event("adapters_fetched", num_adapters=len(looks), seconds=round(time.monotonic() - began, 3))

    def _fetch(self, item: tuple[str, Look]) -> bool:
        name, look = item
        return self._lifecycle.follow_source(name, f"{self._text.rstrip('/')}/{name}", _digest(look))

    def _again(self, names: Iterable[str]) -> None:
        for name in names:
            if self._watch is not None:
                self._watch.report_again(name)

    def _tell(self, error: AdaptermuxError | None) -> None:
        before, self._catalog.trouble = self._catalog.trouble, Refusal(error.code, str(error)) if error else None
        if self._catalog.trouble is not None and before is None:
            logs.event("adapters_unreachable", root=self._text, reason=str(error))


def _digest(look: Look) -> str:
    """What an adapter looked like, short enough to be written down."""
    states = {name: asdict(state) for name, state in look.items()}
    return hashlib.sha256(json.dumps(states, sort_keys=True).encode()).hexdigest()[:16]
