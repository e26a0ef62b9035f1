"""The server as several processes: one engine, some for HTTP, and the one that watches over them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

from server import logs
from server.command import BACKLOG, exit_code
from server.settings import Settings

BEAT_S = 0.25
LOOK_S = 1.0
EARLY_S = 600.0
"""A process that ends sooner than this after its start, and had before, is started again after a pause that grows."""
PAUSES_S = (0, 1, 3, 7, 15, 31)
"""Then we give up, and whoever started us may try elsewhere."""
PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOP = "stop"


@dataclass
class Child:
    """A process that is to run. due: when it is to be started (monotonic seconds)."""

    name: str
    work: Callable[[], int]
    process: ForkProcess | None = None
    since: float = 0.0
    due: float = 0.0
    num_early: int = 0

    def pause_s(self) -> float | None:
        """It has ended by itself: how long to wait before it is started again; None if there is no use in that."""
        self.num_early = self.num_early + 1 if time.monotonic() - self.since < EARLY_S else 1
        return PAUSES_S[self.num_early - 1] if self.num_early <= len(PAUSES_S) else None


class Supervisor:
    """Starts the processes, starts them again when they end, and ends them all. One thread; torch is never imported.

    Processes are forked, which is safe as long as there is no other thread here. They share the socket that clients
    connect to, and another one, in a folder of the user's own, to which an HTTP process connects and an engine listens:
    it outlives the engine, so that who connects meanwhile waits for the next one. All of them end when we do, however
    that comes (on Linux).
    """

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        """listener: bound, not yet listening: an HTTP process does once it can answer."""
        self._settings, self._listener = settings, listener
        self._context = multiprocessing.get_context("fork")
        self._beat = RawValue(ctypes.c_double, 0.0)
        self._news, self._told = self._context.Pipe(duplex=False)
        self._num_ready = 0
        self._engine = Child("engine", lambda: 1)
        self._fronts: list[Child] = []

    def run(self) -> int:
        """Until a signal comes or there is no use in going on; returns the exit code."""
        with _private_listener() as (address, inner):
            self._engine.work = partial(run_engine, self._settings, inner, self._listener, self._beat)
            http = partial(run_http, self._settings, address, inner, self._listener, self._told)
            self._fronts = [Child(f"http-{index}", http) for index in range(self._settings.http_processes)]
            for number in SIGNALS:
                signal.signal(number, lambda *_: self._told.send(STOP))
            try:
                return self._watch()
            finally:
                for child in self._children():
                    if child.process is not None:
                        child.process.kill()
                        child.process.join()

    def _children(self) -> list[Child]:
        return [self._engine, *self._fronts]

    def _watch(self) -> int:
        while True:
            for child in self._children():
                if child.process is None and child.due <= time.monotonic():
                    self._start(child)
            if self._news.poll() or self._news in wait([self._news, *self._sentinels()], LOOK_S):
                if (news := self._news.recv()) == STOP:
                    return self._stop()
                self._count_ready(news)
            self._end_frozen()
            for child in self._children():
                if child.process is not None and child.process.exitcode is not None:
                    code = self._bury(child)
                    if code is not None:
                        return code

    def _sentinels(self) -> list[int]:
        return [child.process.sentinel for child in self._children() if child.process is not None]

    def _start(self, child: Child) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # the child takes them once it knows what they mean
        if child is self._engine:
            self._beat.value = 0.0
        child.process = self._context.Process(target=_run_child, args=(child.work, os.getpid()), name=child.name)
        child.process.start()
        child.since = time.monotonic()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _count_ready(self, num_adapters: int) -> None:
        self._num_ready += 1
        if self._num_ready == len(self._fronts):
            host, port = self._listener.getsockname()[:2]
            logs.event("server_started", url=f"http://{host}:{port}", adapters=num_adapters)

    def _end_frozen(self) -> None:
        """An engine process that does not even say that it lives is of no use."""
        process, stall_s = self._engine.process, self._settings.stall_s
        if process is not None and stall_s and 0 < self._beat.value < time.monotonic() - stall_s:
            logs.event("engine_frozen", seconds=stall_s)
            process.kill()

    def _bury(self, child: Child) -> int | None:
        """What becomes of a process that has ended by itself; our exit code if it is not to be started again."""
        assert child.process is not None
        code = child.process.exitcode or 0
        child.process.close()
        child.process = None
        if self._num_ready < len(self._fronts):
            return code if code > 0 else 1  # the start has failed, and the process has said why
        pause_s = child.pause_s()
        logs.event("process_ended", process=child.name, code=code, again_in_s=pause_s)
        if pause_s is None:
            return 1
        child.due = time.monotonic() + pause_s
        return None

    def _stop(self) -> int:
        """Let what is asked be answered, then end all."""
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever asks twice does not want to wait
        self._listener.close()
        for children in (self._fronts, [self._engine]):
            running = [child.process for child in children if child.process is not None]
            for process in running:
                process.terminate()
            for process in running:
                process.join()
        logs.event("server_stopped")
        return 0


@contextmanager
def _private_listener() -> Iterator[tuple[Path, socket.socket]]:
    """Where an engine listens, and nobody but this user can connect."""
    with tempfile.TemporaryDirectory(prefix="adaptermux-") as folder, socket.socket(socket.AF_UNIX) as listener:
        address = Path(folder) / "engine"
        listener.bind(str(address))
        listener.listen(128)
        yield address, listener


def _run_child(work: Callable[[], int], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the supervisor passes on what it means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:
        sys.exit(exit_code(work))


def run_engine(settings: Settings, inner: socket.socket, listener: socket.socket, beat: ctypes.c_double) -> int:
    """The engine process: answers HTTP processes until it is told to stop and they have gone."""
    listener.close()

    from server.fronts import Fronts
    from server.service import Service

    told: list[int] = []
    with Service(settings) as service:
        fronts = Fronts(service.desk, service.metrics, service.quotas, service.store.tiers, service.base.folder, inner)
        signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
        fronts.start()
        while not told or len(fronts):
            health = service.engine.health()
            if not health.alive:
                logs.event("engine_given_up", num_texts=health.num_running, stalled=health.stalled)
                os._exit(1)  # the forward pass may never come back, and we would wait for it
            beat.value = time.monotonic()
            fronts.beat()
            time.sleep(BEAT_S)
    return 0


def run_http(settings: Settings, address: Path, inner: socket.socket, listener: socket.socket, told: Connection) -> int:
    """An HTTP process: answers clients until it is told to stop."""
    inner.close()

    from server.advice import Advice
    from server.app import create_app
    from server.connections import web_server
    from server.gate import open_gate
    from server.remote import Remote

    with listener, open_gate(settings) as gate:
        remote, advice = Remote(address), Advice(settings.evidence, settings.prices)
        web = web_server(create_app(remote.desk(settings), settings.max_body_bytes, gate, advice), settings)
        signal.signal(signal.SIGTERM, web.handle_exit)
        listener.listen(BACKLOG)
        told.send(len(remote.catalog.all()))
        web.run(sockets=[listener])
    return 0
