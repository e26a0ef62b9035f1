"""Locust's side of a load test: users that send a workload's stream, and keep what became of each request.

    locust -f loadtest/locustfile.py --job JOB.json --host http://127.0.0.1:8000

`adaptermux-loadtest` writes the job and starts this.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import gevent
from gevent.pool import Group
from locust import FastHttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.job import Job
from loadtest.samples import Recorder
from loadtest.wire import Answered, Wire
from loadtest.workload import Ask, Stream

FLUSH_S = 0.5
NO_ANSWER = "no answer in time"
PAUSE_S = 0.1
"""Before a client that could not connect tries again."""


@events.init_command_line_parser.add_listener
def add_flags(parser: LocustArgumentParser) -> None:
    parser.add_argument("--job", required=True, help="file that says what to ask", include_in_web_ui=False)


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    assert environment.parsed_options is not None
    Caller.begin(Job.read(Path(environment.parsed_options.job)), environment)


@events.quit.add_listener
def finish(**_: Any) -> None:
    if Caller.recorder is not None:
        Caller.recorder.flush()


class Caller(FastHttpUser):
    """Closed loop: one client. Open loop: sends what is due, and does not wait for answers."""

    wait_time = constant(0)
    insecure = False  # unlike Locust itself, it checks certificates
    job: Job
    wire: Wire
    recorder: Recorder | None = None
    headers: dict[str, str]
    numbers: Iterator[int]
    """Of the streams in this process, so that each asks something of its own."""

    @classmethod
    def begin(cls, job: Job, environment: Environment) -> None:
        cls.job = job
        cls.network_timeout = cls.connection_timeout = job.workload.timeout_s
        cls.concurrency = 10_000  # connections: an open loop takes as many as there are requests at a time
        module, _, name = job.wire.partition(":")
        cls.wire = getattr(import_module(module), name)()
        cls.headers = {"content-type": "application/json", **job.headers}
        cls.recorder = Recorder(job.samples) if job.samples else None
        worker = getattr(environment.runner, "worker_index", 0)
        cls.numbers = itertools.count(worker * 100_000)
        if cls.recorder is not None:
            gevent.spawn(cls._flush_now_and_then, cls.recorder)

    @staticmethod
    def _flush_now_and_then(recorder: Recorder) -> None:
        while True:
            gevent.sleep(FLUSH_S)
            recorder.flush()

    def on_start(self) -> None:
        workload = self.job.workload
        self.stream = Stream(workload, next(self.numbers), 1 / self.job.num_senders)
        self.in_flight = Group()
        if workload.rate_per_s is not None:
            self.arrivals = self.stream.arrivals()
            self.began = time.perf_counter()

    @task
    def ask(self) -> None:
        if self.job.workload.rate_per_s is None:
            if not self._send(self.stream.next(), time.perf_counter()):
                gevent.sleep(PAUSE_S)
            return
        due = self.began + next(self.arrivals)
        delay = due - time.perf_counter()
        if delay > 0:
            gevent.sleep(delay)
        self.in_flight.spawn(self._send, self.stream.next(), due)

    def on_stop(self) -> None:
        self.in_flight.join(timeout=self.job.workload.timeout_s)
        self.in_flight.kill()

    def _send(self, ask: Ask, due: float) -> bool:
        """Returns whether anything was answered, if only an error."""
        adapter_id = self.job.adapters[ask.adapter_index]
        body = self.wire.body(adapter_id, ask)
        sent = time.perf_counter()
        answered = Answered(NO_ANSWER)
        try:
            with self.client.post(
                self.wire.path, data=body, headers=self.headers, name=self.wire.path, catch_response=True
            ) as response:
                ended = time.perf_counter()
                if response.status_code == 0:
                    answered = Answered(_cause(response.error))
                else:
                    answered = self.wire.read(
                        adapter_id, ask, response.status_code, response.content or b"",
                        (response.headers or {}).get("server-timing"),
                    )  # fmt: skip
                response.request_meta["response_time"] = (ended - due) * 1e3
                if answered.error is not None:
                    response.failure(answered.error)
        except gevent.GreenletExit:  # the run is over and this one still waits
            self._keep(ask, due, sent, time.perf_counter(), answered)
            raise
        self._keep(ask, due, sent, ended, answered)
        return bool(response.status_code)

    def _keep(self, ask: Ask, due: float, sent: float, ended: float, answered: Answered) -> None:
        if self.recorder is None:
            return
        self.recorder.note(
            time.time() - (time.perf_counter() - due),
            (sent - due) * 1e3,
            (ended - due) * 1e3,
            answered.timings,
            answered.num_tokens,
            len(ask.texts),
            ask.adapter_index,
            answered.error,
        )


def _cause(error: BaseException | None) -> str:
    """What happened to a request: the client wraps it, as if it had tried more than once."""
    return type(getattr(error, "original", error)).__name__
