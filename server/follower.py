"""Keeps the served adapters in step with a folder or bucket that others change."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from server import logs
from server.adapter_files import Look
from server.catalog import Catalog
from server.errors import AdaptermuxError, SettingsError
from server.lifecycle import Lifecycle
from server.record import Refusal
from server.watch import FolderRoot, Watch, open_root

NUM_FETCHERS = 8
MOST_LOOKS = 64
"""Between two attempts at something that has failed again and again."""


class Follower:
    """Looks at the root every so many seconds, on a thread of its own, and lets the lifecycle do what has changed.

    One adapter that fails is listed with the reason and keeps none of the others back; a root that cannot be looked at
    changes nothing, and is told of in the catalog.
    """

    def __init__(self, root: str, lifecycle: Lifecycle, catalog: Catalog, every_s: float) -> None:
        self._text, self._lifecycle, self._catalog, self._every_s = root, lifecycle, catalog, every_s
        self._root = open_root(root)
        self._folder = self._root.path if isinstance(self._root, FolderRoot) else None
        if self._folder is not None and not self._folder.is_dir():
            raise SettingsError(f"--adapters: `{root}` is no folder")
        self._watch: Watch | None = None
        self._num_looks = 0
        self._later: dict[str, tuple[int, int]] = {}  # what failed: how often in a row, and the look that tries again
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adaptermux-follower", daemon=True)

    def begin(self) -> None:
        """Take what is there at the start. A root that cannot be looked at then is looked at again later."""
        known: dict[str, Look] = {}
        try:
            known = dict(self._root.listing())
        except AdaptermuxError as error:
            self._tell(error)
        self._watch = Watch(self._root, known)
        restored = {one.adapter_id: one for one in self._catalog.all() if one.followed}
        if known:
            self._unfollow(restored.keys() - known.keys())
        have = {name: one.seen for name, one in restored.items() if one.followed in one.versions}
        pinned = {name for name, one in restored.items() if one.is_pinned}
        names = sorted(known, key=lambda name: name not in pinned)  # those have their room before what is new
        self._follow({name: known[name] for name in names if have.get(name) != _digest(known[name])})

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
        self._num_looks += 1
        due = {name for name, (_, look) in self._later.items() if look <= self._num_looks}
        for name in due:
            self._watch.report_again(name)
        changes = self._watch.look()
        self._tell(changes.error)
        self._unfollow({*changes.gone, *(name for name in due if not self._watch.has_reported(name))})
        self._follow({name: self._watch.seen(name) for name in (*changes.appeared, *changes.changed)})

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self.look()
            except Exception as error:  # a bug of ours: the adapters that are served go on
                logs.event("look_failed", trace=traceback.format_exception(error))

    def _unfollow(self, names: Iterable[str]) -> None:
        for name in names:
            self._note(name, self._lifecycle.unfollow(name))

    def _follow(self, looks: Mapping[str, Look]) -> None:
        if self._folder is not None:
            for name in looks:
                self._note(name, self._stopping.is_set() or self._lifecycle.follow(self._folder, name))
        elif looks:
            began = time.monotonic()
            with ThreadPoolExecutor(NUM_FETCHERS, thread_name_prefix="adaptermux-fetcher") as pool:
                for name, was_done in zip(looks, pool.map(self._fetch, looks.items()), strict=True):
                    self._note(name, was_done)
            logs.event("adapters_fetched", num_adapters=len(looks), seconds=round(time.monotonic() - began, 3))

    def _fetch(self, item: tuple[str, Look]) -> bool:
        name, look = item
        source = self._root.source(name)
        assert source is not None, "only folders are served as they lie; this is a bug"
        return self._stopping.is_set() or self._lifecycle.follow_source(name, source, _digest(look))

    def _note(self, name: str, was_done: bool) -> None:
        """What failed is tried again after one look, then two, four and so on."""
        num_failures = 0 if was_done else self._later.get(name, (0, 0))[0] + 1
        if num_failures:
            wait = min(2 ** (num_failures - 1), MOST_LOOKS)
            self._later[name] = num_failures, self._num_looks + wait
        else:
            self._later.pop(name, None)

    def _tell(self, error: AdaptermuxError | None) -> None:
        before, self._catalog.trouble = self._catalog.trouble, Refusal(error.code, str(error)) if error else None
        if self._catalog.trouble is not None and before is None:
            logs.event("adapters_unreachable", root=self._text, reason=str(error))


def _digest(look: Look) -> str:
    """What an adapter looked like, short enough to be written down."""
    states = {name: asdict(state) for name, state in look.items()}
    return hashlib.sha256(json.dumps(states, sort_keys=True).encode()).hexdigest()[:16]
