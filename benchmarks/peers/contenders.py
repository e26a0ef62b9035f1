"""What is compared: our server and its peers, all of them running, each idle until it is asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import infinity
from loadtest.errors import LoadTestError
from loadtest.job import NATIVE
from loadtest.measure import Target
from loadtest.remote import Remote
from loadtest.service import Service, started
from server.base_model import EMBEDDED_ID
from server.methods import method_named
from training import dummy

METHODS = ("lora", "ia3", "prefix", "bottleneck")
BASE_METHOD = "head"
"""An adapter of this method is the base model without one, and a head."""
OURS, MIX, FRONTED, BASE = "adaptermux", "mix", "mix, HTTP process", "base"
"""Ours, and its cases: as it starts by itself, the same with `FRONTS`, and the bare base."""
FRONTS = {"http_processes": 1}


@dataclass(frozen=True)
class Contender:
    """case: what tells it apart from others of the same service."""

    case: str
    target: Target

    @property
    def name(self) -> str:
        return f"{self.target.name}, {self.case}"


def make_adapters(folder: Path, num_adapters: int) -> None:
    """As many of each method, with random weights, and a head alone. Heads are the architecture's own."""
    counts = dict.fromkeys(METHODS, num_adapters // len(METHODS)) | {BASE_METHOD: 1}
    for method, count in counts.items():
        list(dummy.make(folder, method_named(method), count, pooling="native"))


@contextmanager
def running(adapters: Path, state: Path, dtype: str) -> Iterator[list[Contender]]:
    """Ours on all adapters and on the base, and every peer with as many threads as ours has, and with its own choice.

    adapters: as `make_adapters` writes them.
    """
    names = sorted(path.name for path in adapters.iterdir())
    mix = [(name, method) for some in zip(*(_of(one, names) for one in METHODS), strict=True) for name, method in some]

    def contender(
        case: str,
        name: str,
        service: Service,
        hot: Sequence[tuple[str, str]],
        settings: Mapping[str, int],
        wire: str = NATIVE,
    ) -> Contender:
        num_registered = len(names) if wire == NATIVE else 0
        return Contender(
            case, Target(name, service, hot, num_registered, EMBEDDED_ID, dtype, "cpu", settings, True, None, wire)
        )

    with ExitStack() as stack:
        ours = stack.enter_context(started(adapters, {"dtype": dtype}, state / "one"))
        fronted = stack.enter_context(started(adapters, {"dtype": dtype, **FRONTS}, state / "two"))
        found = [
            contender(MIX, OURS, ours, mix, {}),
            contender(FRONTED, OURS, fronted, mix, FRONTS),
            contender(BASE, OURS, ours, _of(BASE_METHOD, names), {}),
        ]
        for threads in (default_threads(), None):
            case = "default threads" if threads is None else f"threads {threads}"
            settings = {} if threads is None else {"threads": threads}
            flags = ["--dtype", dtype, *([] if threads is None else ["--threads", str(threads)])]
            peer = stack.enter_context(started_peer("set_adapter", "--adapters", str(adapters), *flags))
            found.append(contender(case, "set_adapter", peer, mix, settings))
            if infinity.is_installed():
                peer = stack.enter_context(started_peer("infinity", *flags))
                hot = [(infinity.MODEL_ID, "full")]
                found.append(contender(case, "infinity", peer, hot, settings, "benchmarks.peers.wire:Infinity"))
        yield found


@contextmanager
def started_peer(module: str, *flags: str) -> Iterator[Service]:
    """A module of this package as a process, on a free port; stopped at the end. Raises LoadTestError."""
    command = [sys.executable, "-m", f"benchmarks.peers.{module}", *flags]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield Service(Remote(_url(process, module)), process.pid)
        finally:
            process.send_signal(signal.SIGTERM)


def default_threads() -> int:
    """What `server.settings.Settings.threads` says of 0."""
    return max(1, (os.cpu_count() or 1) - 1)


def _of(method: str, names: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, method) for name in names if name.startswith(f"{method}-")]


def _url(process: subprocess.Popen[str], module: str) -> str:
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        if '"server_started"' in line:
            threading.Thread(target=process.stderr.read, daemon=True).start()  # so that it is never held up
            return str(json.loads(line)["url"])
        said += line
    raise LoadTestError(f"`benchmarks.peers.{module}` did not start: {said}")
