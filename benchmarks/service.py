"""The service as its clients meet it: what HTTP costs, a reload under load, and a flood.

    python -m benchmarks.service

The server runs as users run it, with default settings, on adapters with seeded random weights. Clients are processes of
their own. Prints and writes `benchmarks/results/service.json`. Fails if an answer is wrong, or is not one at all.

- overhead: one client, one text a request. Processor time of the whole server process less that of its engine thread.
- reload: 10,000 requests of 32 clients while an alias flips 50 times between three versions.
- flood: 5 times as many requests as can be answered, each with a deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from benchmarks.material import make_folders
from benchmarks.timing import machine
from server.app import create_app
from server.connections import web_server
from server.gate import open_gate
from server.service import Service
from server.settings import Settings

RESULT = Path(__file__).parent / "results" / "service.json"
METHODS = ("lora", "ia3", "prefix", "bottleneck")
TEXT = "The cuff fits well and the readings match the ones at the clinic, but the display is hard to read outside."
NUM_CLIENTS, NUM_REQUESTS, NUM_FLIPS = 32, 10_000, 50
DEADLINE_MS, FLOOD_S, TIMES = 1000, 20.0, 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("overhead", "reload", "flood"), help="one of the three")
    parser.add_argument("--client", nargs=2, metavar=("URL", "COUNT"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.client:
        return _client(flags.client[0], int(flags.client[1]))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    parts = {"overhead": overhead, "reload": reload, "flood": flood}
    record: dict[str, Any] = {"schema": 1, "command": "python -m benchmarks.service", **machine()}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Path(folder) / "made"
        _make(made)
        for name, part in parts.items():
            if flags.only in (None, name):
                record[name] = part(made)
                print(f"{name}: {json.dumps(record[name], indent=2)}")
    if flags.only is None or RESULT.exists():
        known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
        record = {**known, **record}
        RESULT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


def overhead(made: Path, count: int = 500, rounds: int = 5) -> dict[str, float]:
    """Processor milliseconds of one request beyond the engine thread's own, median of rounds with its quartiles."""
    settings = Settings(adapters=made, look_s=0, threads=1)
    with Service(settings) as service, _listening(service, settings) as url:
        engine = next(one for one in threading.enumerate() if one.name == "adaptermux-engine")
        assert engine.ident is not None
        clock = time.pthread_getcpuclockid(engine.ident)
        spent, engines = [], []
        for number in range(rounds + 1):
            before = time.process_time(), time.clock_gettime(clock)
            _run_client(url, count)
            engine_s = time.clock_gettime(clock) - before[1]
            if number:  # the first warms up
                spent.append((time.process_time() - before[0] - engine_s) / count * 1e3)
                engines.append(engine_s / count * 1e3)
    low, median, high = statistics.quantiles(spent, n=4)
    return {
        "http_cpu_ms": round(median, 3),
        "http_cpu_ms_low": round(low, 3),
        "http_cpu_ms_high": round(high, 3),
        "engine_cpu_ms": round(statistics.median(engines), 3),
    }


def reload(made: Path) -> dict[str, Any]:
    """Flip an alias under load; every answer must be wholly of a version that the id stood for."""
    with tempfile.TemporaryDirectory() as served, _server(Path(served), made) as (pid, url):
        versions = {}
        for method in METHODS[:3]:
            entry = _ask(url, "PUT", "/v1/adapters/topics", {"source": f"file:{made / method}-0"})
            versions[entry["version"]] = entry["method"]
        counts: Counter[str] = Counter()

        def ask(count: int) -> None:
            connection, body = _connect(url), {"adapter_id": "topics", "inputs": TEXT}
            for _ in range(count):
                status, answer = _send(connection, "POST", "/v1/classify", body)
                right = status == 200 and versions.get(answer["version"]) == answer["method"]
                counts[answer.get("version", "none")] += 1
                counts["right" if right else f"wrong: {status} {answer.get('code')}"] += 1

        def flip() -> None:
            names = list(versions)
            for number in range(NUM_FLIPS):
                while counts["right"] < number * NUM_REQUESTS // NUM_FLIPS:
                    time.sleep(0.005)
                _ask(url, "PUT", "/v1/adapters/topics/alias", {"version": names[number % len(names)]})

        _together([partial(ask, 40)] * NUM_CLIENTS)  # warms up: memory is taken for the batches that this load makes
        counts.clear()
        before, began = _memory(pid), time.monotonic()
        _together([*[partial(ask, NUM_REQUESTS // NUM_CLIENTS + 1)] * NUM_CLIENTS, flip])
        seconds = time.monotonic() - began
        num_right = counts.pop("right")
        if any(name.startswith("wrong") for name in counts):
            raise SystemExit(f"answers were wrong: {dict(counts)}")
        return {
            "requests": num_right,
            "errors": 0,
            "flips": NUM_FLIPS,
            "answers_by_version": dict(counts),
            "requests_per_s": round(num_right / seconds, 1),
            "memory_before_mb": round(before / 1e6, 1),
            "memory_after_mb": round(_memory(pid) / 1e6, 1),
        }


def flood(made: Path) -> dict[str, Any]:
    """Send requests at a fixed rate, whatever becomes of them, at five times the rate that can be answered."""
    with tempfile.TemporaryDirectory() as served, _server(Path(served), made) as (_, url):
        _ask(url, "PUT", "/v1/adapters/topics", {"source": f"file:{made / METHODS[0]}-0"})
        body = {"adapter_id": "topics", "inputs": [f"{TEXT} {number}" for number in range(16)]}
        capacity = asyncio.run(_arrivals(url, body, rate=1e9, seconds=5.0, most=4, deadline_ms=30_000))
        rate = capacity["answered"] / capacity["seconds"]
        found = asyncio.run(_arrivals(url, body, rate * TIMES, FLOOD_S, most=4000))
        return {"capacity_requests_per_s": round(rate, 1), "offered_per_s": round(rate * TIMES, 1), **_summary(found)}


async def _arrivals(
    url: str, body: dict[str, Any], rate: float, seconds: float, most: int, deadline_ms: int = DEADLINE_MS
) -> dict[str, Any]:
    """Requests at random times, at most so many at once; latency counts from when each was due."""
    content, host = json.dumps(body).encode(), url.removeprefix("http://")
    name, port = host.split(":")
    head = (
        f"POST /v1/classify HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        f"x-request-timeout-ms: {deadline_ms}\r\ncontent-length: {len(content)}\r\n\r\n"
    ).encode()
    found: dict[str, list[float]] = {}
    room = asyncio.Semaphore(most)

    async def one(due: float) -> None:
        try:
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection(name, int(port))
                writer.write(head + content)
                status = (await reader.readline()).split()[1].decode()
                await reader.read()
                writer.close()
        except (OSError, TimeoutError, IndexError) as error:
            status = type(error).__name__
        found.setdefault(status, []).append((time.monotonic() - due) * 1e3)
        room.release()

    rng, tasks = random.Random(0), []
    began = due = time.monotonic()
    while due - began < seconds:
        due = time.monotonic() if rate > 1e8 else due + rng.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await room.acquire()
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    return {"answered": len(found.get("200", [])), "seconds": time.monotonic() - began, "found": found}


def _summary(arrivals: dict[str, Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {"deadline_ms": DEADLINE_MS}
    for status, latencies in sorted(arrivals["found"].items()):
        marks = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else latencies * 99
        summary[f"status_{status}"] = {
            "count": len(latencies), "p50_ms": round(marks[49], 1), "p99_ms": round(marks[98], 1),
        }  # fmt: skip
    return summary


@contextmanager
def _listening(service: Service, settings: Settings) -> Iterator[str]:
    """Serve from a thread of this process, whose threads' clocks can then be read."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener, open_gate(settings) as gate:
        server = web_server(create_app(service.desk, settings.max_body_bytes, gate), settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@contextmanager
def _server(served: Path, made: Path) -> Iterator[tuple[int, str]]:
    """A server process over an empty folder; yields its process id and address."""
    command = [sys.executable, "-m", "server", "--adapters", str(served), "--source-root", str(made), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(event["url"] for event in map(json.loads, process.stderr) if event["event"] == "server_started")
        draining = threading.Thread(target=process.stderr.read)
        draining.start()
        try:
            yield process.pid, url
        finally:
            process.send_signal(signal.SIGTERM)
            draining.join()


def _make(root: Path) -> None:
    for method in METHODS:
        make_folders(root, method, 1)


def _together(works: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _run_client(url: str, count: int) -> None:
    command = [sys.executable, "-m", "benchmarks.service", "--client", url, str(count)]
    subprocess.run(command, check=True, cwd=Path(__file__).parent.parent)


def _client(url: str, count: int) -> int:
    connection = _connect(url)
    for _ in range(count):
        status, answer = _send(connection, "POST", "/v1/classify", {"adapter_id": f"{METHODS[0]}-0", "inputs": TEXT})
        if status != 200:
            print(f"answered {status}: {answer}", file=sys.stderr)
            return 1
    return 0


def _connect(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)


def _send(connection: http.client.HTTPConnection, method: str, path: str, body: object) -> tuple[int, dict[str, Any]]:
    connection.request(method, path, json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def _ask(url: str, method: str, path: str, body: object) -> dict[str, Any]:
    status, answer = _send(_connect(url), method, path, body)
    if status != 200:
        raise SystemExit(f"{method} {path} answered {status}: {answer}")
    return answer


def _memory(pid: int) -> float:
    """Resident bytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
