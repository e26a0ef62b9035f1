"""The service that a load test starts for itself, and the adapters that it makes for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.errors import LoadTestError, Misuse
from loadtest.remote import Remote

STOP_S = 40
Setting = str | int | float | bool


@dataclass(frozen=True)
class Service:
    """One that runs. pid: None if it is not ours, so that its memory cannot be seen."""

    remote: Remote
    pid: int | None
    source_root: Path | None = None
    """Folder from which it may fetch adapters."""


def make_adapters(
    folder: Path, methods: Sequence[str], count: int, base: str | None, options: Mapping[str, Mapping[str, float]]
) -> None:
    """Write adapters with random weights, `count` in all and as many of each method, by `adaptermux-train dummy`.

    options: of each method, where they are not its defaults. Raises Misuse and LoadTestError.
    """
    flags = ["--count", str(count), "--output", str(folder)]
    flags += [part for method in methods for part in ("--method", method)]
    for method, chosen in options.items():
        flags += [part for name, value in chosen.items() for part in ("--option", f"{method}.{name}={value}")]
    flags += ["--base", base] if base else []
    done = subprocess.run([sys.executable, "-m", "training", "dummy", *flags], capture_output=True, text=True)
    if done.returncode != 0:
        kind = Misuse if done.returncode == 2 else LoadTestError
        raise kind(f"adapters could not be made: {_last_line(done.stderr)}")


@contextmanager
def started(
    adapters: Path, settings: Mapping[str, Setting], state: Path, source_root: Path | None = None
) -> Iterator[Service]:
    """A server process over a folder of adapters, on a free port of this machine; stopped at the end.

    settings: flags of `adaptermux-serve` by their names with underscores. state: folder for its own files. Raises
    LoadTestError with what the server said.
    """
    command = [sys.executable, "-m", "server", "--adapters", str(adapters), "--port", "0", "--look-s", "0"]
    command += ["--state", str(state)]
    command += ["--source-root", str(source_root)] if source_root else []
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", str(value).lower() if isinstance(value, bool) else str(value)]
    # an ADAPTERMUX_ variable of the user's would change what is measured
    env = {name: value for name, value in os.environ.items() if not name.startswith("ADAPTERMUX_")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            url = _url(process)
            yield Service(Remote(url), process.pid, source_root)
        finally:
            _stop(process)


def _url(process: subprocess.Popen[str]) -> str:
    """Wait until it listens; what it says afterwards is read, so that it is never held up."""
    assert process.stderr is not None
    last = ""
    for line in process.stderr:
        event = _event(line)
        if event.get("event") == "server_started":
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return str(event["url"])
        last = line.strip() or last
    raise LoadTestError(f"the server did not start: {last}")


def _event(line: str) -> dict[str, object]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("adaptermux-train: ") if lines else "no reason was given"
