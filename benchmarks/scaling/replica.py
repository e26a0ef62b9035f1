"""One replica: a line of requests, batches one after the other, adapters that come and go."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

import simpy

from benchmarks.scaling.pace import Pace


@dataclass(slots=True, eq=False)
class Request:
    """index: its place in the traffic. router: the one that holds it."""

    index: int
    adapter: int
    num_tokens: int
    came_s: float
    router: int
    began_s: float = 0.0
    was_hit: bool = True
    num_sent: int = 1


class Replica:
    """Takes what waits as soon as the last batch is done, up to the pace's tokens, in the order it came.

    room: adapters that it holds; the one that was used longest ago goes first. A miss waits load_s for its adapter, and
    so does who asks for it meanwhile; others do not wait for it.
    """

    def __init__(
        self,
        env: simpy.Environment,
        pace: Pace,
        room: int,
        load_s: float,
        answered: Callable[[int, Request], None],
        number: int,
    ) -> None:
        self._env, self._pace, self._room, self._load_s = env, pace, room, load_s
        self._answered, self._number = answered, number
        self._line: deque[Request] = deque()
        self._loading: dict[int, list[Request]] = {}
        self._running: list[Request] = []
        self._wake = env.event()
        self._process = env.process(self._run())
        self.resident: OrderedDict[int, None] = OrderedDict()
        self.busy_s = 0.0
        self.num_loads = 0
        self.is_alive = True

    def fill(self, adapters: Iterable[int]) -> None:
        """Have these in memory, the one used last at the end."""
        self.resident = OrderedDict.fromkeys(adapters)

    @property
    def num_held(self) -> int:
        """Requests that it has not answered."""
        return len(self._line) + len(self._running) + sum(map(len, self._loading.values()))

    def take(self, request: Request) -> None:
        adapter = request.adapter
        if adapter in self.resident:
            self.resident.move_to_end(adapter)
            self._enter(request)
            return
        request.was_hit = False
        if adapter in self._loading:
            self._loading[adapter].append(request)
            return
        self._loading[adapter] = [request]
        self.num_loads += 1
        loaded = self._env.timeout(self._load_s, value=adapter)
        assert loaded.callbacks is not None
        loaded.callbacks.append(self._loaded)

    def kill(self) -> list[Request]:
        """End at once; returns what was not answered."""
        self.is_alive = False
        lost = [*self._running, *self._line, *(one for some in self._loading.values() for one in some)]
        self._line.clear()
        self._loading.clear()
        self._running = []
        self._process.interrupt()
        return lost

    def _enter(self, request: Request) -> None:
        self._line.append(request)
        if not self._wake.triggered:
            self._wake.succeed()

    def _loaded(self, event: simpy.Event) -> None:
        if not self.is_alive:
            return
        adapter: int = event.value  # type: ignore[assignment]
        self.resident[adapter] = None
        if len(self.resident) > self._room:
            self.resident.popitem(last=False)
        for request in self._loading.pop(adapter):
            self._enter(request)

    def _run(self) -> Generator[simpy.Event, None, None]:
        try:
            while True:
                while not self._line:
                    self._wake = self._env.event()
                    yield self._wake
                batch_s = self._begin()
                yield self._env.timeout(batch_s)
                self.busy_s += batch_s
                done, self._running = self._running, []
                for request in done:
                    self._answered(self._number, request)
        except simpy.Interrupt:
            return

    def _begin(self) -> float:
        line, most, num_tokens = self._line, self._pace.batch_tokens, 0
        while line and (not num_tokens or num_tokens + line[0].num_tokens <= most):
            request = line.popleft()
            request.began_s = self._env.now
            num_tokens += request.num_tokens
            self._running.append(request)
        return self._pace.batch_s(num_tokens, len({request.adapter for request in self._running}))
