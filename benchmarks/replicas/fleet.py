"""Replicas: server processes over one folder of adapters, on ports that they keep as the chart's pods keep names."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

LIMIT_S = 300.0
LOOK_S = 0.05
TEXT = "The cuff fits well and the readings match the ones at the clinic."


@dataclass(frozen=True)
class Reading:
    """What a replica has counted since its start. requests: by adapter. resident: the adapters in its memory."""

    num_hits: float
    num_misses: float
    requests: Counter[str]
    resident: frozenset[str]


class Replica:
    """One server process, which can be killed, stopped and started again. Used from one thread."""

    def __init__(self, number: int, command: Sequence[str], folder: Path) -> None:
        self.number, self.port = number, free_port()
        self._command = [*command, "--port", str(self.port), "--state", str(folder / f"state-{number}")]
        self._log = folder / f"replica-{number}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        # an ADAPTERMUX_ variable of the user's would change what is measured
        env = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTERMUX_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stderr=log, stdin=subprocess.DEVNULL, env=env)

    def wait_until_ready(self) -> None:
        until(self._is_ready, f"replica {self.number} is ready")

    def kill(self) -> None:
        """Without a word, as when a node is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """As Kubernetes asks; the exit code."""
        return self._end(signal.SIGTERM)

    def read(self) -> Reading:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=LIMIT_S) as response:
            families = {one.name: one for one in text_string_to_metric_families(response.read().decode())}
        requests: Counter[str] = Counter()
        for sample in families["adaptermux_requests"].samples:
            if sample.name.endswith("_total"):
                requests[sample.labels["adapter"]] += int(sample.value)
        [told] = families["vllm:lora_requests_info"].samples
        return Reading(
            num_hits=families["adaptermux_adapter_hits"].samples[0].value,
            num_misses=families["adaptermux_adapter_misses"].samples[0].value,
            requests=requests,
            resident=frozenset(filter(None, told.labels["running_lora_adapters"].split(","))),
        )

    def _is_ready(self) -> bool:
        assert self._process is not None, "it was started"
        if self._process.poll() is not None:
            said = self._log.read_text(encoding="utf-8").strip().splitlines()
            raise SystemExit(f"replica {self.number} did not start: {said[-1] if said else 'no reason was given'}")
        return answers_200(f"{self.url}/health/ready")

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        code = self._process.wait(LIMIT_S)
        self._process = None
        return code


class Fleet:
    """Replicas that run; all of them end with it. adapter_ids: what they can be asked for."""

    def __init__(self, adapters: Path, folder: Path, settings: Mapping[str, str | int], num_replicas: int = 3) -> None:
        """adapters: a folder of them. folder: for the replicas' own files. settings: flags of `adaptermux-serve`."""
        self.adapter_ids = sorted(path.name for path in adapters.iterdir() if (path / "adapter.json").exists())
        command = [sys.executable, "-m", "server", "--adapters", str(adapters), "--look-s", "0"]
        command += ["--metrics-top-adapters", str(len(self.adapter_ids))]
        command += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        self.replicas = [Replica(number, command, folder) for number in range(num_replicas)]

    def __enter__(self) -> Self:
        try:
            for replica in self.replicas:
                replica.start()
            for replica in self.replicas:
                replica.wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for replica in self.replicas:
            replica.kill()

    @property
    def ports(self) -> list[int]:
        return [replica.port for replica in self.replicas]

    def read(self) -> list[Reading]:
        return [replica.read() for replica in self.replicas]

    def homes(self, url: str) -> dict[str, int]:
        """The replica that a router sends each adapter to as long as nothing else is asked."""
        before = {replica: replica.read() for replica in self.replicas if replica.is_running}
        ask_each(url, self.adapter_ids)
        return {
            adapter_id: replica.number
            for replica, old in before.items()
            for adapter_id in replica.read().requests - old.requests
        }


def ask_each(url: str, adapter_ids: Iterable[str]) -> None:
    """Ask one after the other, so that each goes to its home, and fail if one is not answered."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=LIMIT_S)
    for adapter_id in adapter_ids:
        body = json.dumps({"adapter_id": adapter_id, "inputs": TEXT})
        connection.request("POST", "/v1/classify", body, {"content-type": "application/json"})
        response = connection.getresponse()
        said = response.read()
        if response.status != 200:
            raise SystemExit(f"`{adapter_id}` was answered {response.status}: {said[:200]!r}")
    connection.close()


def answers_200(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=LIMIT_S) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def until(holds: Callable[[], bool], claim: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"it never came to hold that {claim}")
        time.sleep(LOOK_S)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
