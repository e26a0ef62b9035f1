"""Load tests of servers that really run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from decision.rows import LatencyRow, MemoryRow, read
from loadtest import service
from loadtest.command import main
from loadtest.errors import LoadTestError
from loadtest.job import NATIVE, Job
from loadtest.measure import LOCUSTFILE, Measured, Span, Target, measure
from loadtest.samples import Samples
from loadtest.scenario import read as read_scenario
from loadtest.service import Service
from loadtest.workload import Texts, Workload

METHODS = ["lora", "ia3", "prefix", "bottleneck"]
SHORT = Texts(kind="fixed", num_tokens=8)
STALL_S = 0.5


@pytest.fixture(scope="module")
def running(base_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server with eight adapters on a small base."""
    root, base = tmp_path_factory.mktemp("loadtest"), str(base_folders["bert"])
    service.make_adapters(root / "adapters", METHODS, 8, base, {})
    with service.started(root / "adapters", {"base": base, "device": "cpu", "threads": 1}, root / "state") as found:
        yield found


def target(running: Service) -> Target:
    hot = [(one.adapter_id, one.method) for one in running.remote.adapters()]
    return Target("adaptermux", running, hot, len(hot), "tiny", "float32", "cpu", {}, True)


def stalled(running: Service, workload: Workload, folder: Path) -> Measured:
    """A run in the middle of which the server stands still for half a second."""
    assert running.pid is not None
    pid, span = running.pid, Span(0.5, 4.0)

    def stall() -> None:
        deadline = time.monotonic() + 30
        while not any(path.stat().st_size > 2000 for path in folder.glob("*.samples")):  # the load is on
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.0)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(STALL_S)
        os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=stall)
    thread.start()
    measured = measure(target(running), workload, span, folder)
    thread.join()
    return measured


def test_a_stall_of_the_server_shows_in_an_open_loop(running: Service, tmp_path: Path) -> None:
    rate_per_s = 50
    measured = stalled(running, Workload(num_hot=8, rate_per_s=rate_per_s, texts=SHORT), tmp_path)
    sent = measured.samples.between(measured.start_s, measured.end_s)
    found = sent.spread("latency_ms")
    assert sent.errors() == {}
    assert found is not None
    assert found.p99 >= STALL_S * 1e3 * 0.5  # of 200 requests some 12 are later than that, and three have to be
    late = int((sent.records["latency_ms"] > 100).sum())
    assert late >= rate_per_s * (STALL_S - 0.1) * 0.5, (
        "every request that was due meanwhile had to wait, not one of each client"
    )


def test_a_closed_loop_hides_the_same_stall(running: Service, tmp_path: Path) -> None:
    """Why there are open loops: its only client asks nothing while it waits, so one request in hundreds is slow."""
    measured = stalled(running, Workload(num_hot=8, num_users=1, texts=SHORT), tmp_path)
    found = measured.samples.between(measured.start_s, measured.end_s).records["latency_ms"]
    assert int((found > STALL_S * 1e3 * 0.8).sum()) <= 1


def test_a_stream_that_is_enough_ends_sooner_and_waits_for_what_it_has_asked(running: Service, tmp_path: Path) -> None:
    def is_enough() -> bool:
        return any(path.stat().st_size > 2000 for path in tmp_path.glob("*.samples"))

    workload = Workload(num_hot=8, rate_per_s=50, texts=SHORT)
    measured = measure(target(running), workload, Span(0, 3600), tmp_path, is_enough=is_enough)
    assert measured.samples.errors() == {}
    assert 40 < len(measured.samples) < 50 * 60


def test_all_that_is_sent_is_kept_also_what_is_never_answered(tmp_path: Path, base_folders: dict[str, Path]) -> None:
    """A server that is killed: every request that was due has its line, with what became of it."""
    base = str(base_folders["bert"])
    service.make_adapters(tmp_path / "adapters", ["lora"], 1, base, {})
    (tmp_path / "samples").mkdir()
    with service.started(tmp_path / "adapters", {"base": base, "device": "cpu"}, tmp_path / "state") as running:
        workload = Workload(rate_per_s=40, texts=SHORT, timeout_s=2)
        job = threading.Timer(0, _kill_when_loaded, (running, tmp_path / "samples"))
        job.start()
        with pytest.raises(LoadTestError, match="the service could not be looked at"):
            measure(target(running), workload, Span(0.5, 4), tmp_path / "samples")
        job.join()
    samples = Samples.read(tmp_path / "samples")
    assert len(samples) == pytest.approx(40 * 6.5, rel=0.25)
    assert sum(samples.errors().values()) > 40
    assert len(samples.answered()) > 20


@pytest.mark.parametrize(("hangs_up", "error"), [(True, "HTTPConnectionClosed"), (False, "TimeoutError")])
def test_what_is_not_answered_is_called_what_it_is(tmp_path: Path, hangs_up: bool, error: str) -> None:
    """And not by the client's own name for some of it, which says that it had tried more than once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_never_answer, args=(listener, hangs_up), daemon=True).start()
        host, port = listener.getsockname()
        workload = Workload(num_users=1, texts=SHORT, timeout_s=0.5)
        job = Job(workload=workload, adapters=["one"], wire=NATIVE, headers={}, num_senders=1, samples=tmp_path)
        job.write(tmp_path / "job.json")
        command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--job", str(tmp_path / "job.json")]
        command += ["--headless", "--users", "1", "--run-time", "3s", "--host", f"http://{host}:{port}"]
        subprocess.run(command, check=False, capture_output=True, timeout=60)
    assert set(Samples.read(tmp_path).errors()) - {"no answer in time"} == {error}


def _never_answer(listener: socket.socket, hangs_up: bool) -> None:
    held = []
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            if hangs_up:
                connection.recv(65536)
                connection.close()
            else:
                held.append(connection)


def _kill_when_loaded(running: Service, folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size > 2000 for path in folder.glob("*.samples")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)


def test_a_service_that_runs_already_is_measured_with_its_own_adapters(
    running: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'warmup_s = 0.5\nduration_s = 1\n[adapters]\nmethods = ["lora", "ia3"]\nnum_registered = 4\n'
        '[workload]\nnum_hot = 4\nnum_users = 2\ntexts = { kind = "fixed", num_tokens = 8 }\n'
    )
    flags = ["run", str(path), "--host", running.remote.url, "--output", str(tmp_path / "out"), "--json", "--trained"]
    assert main(flags) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert row["num_registered"] == 8
    assert row["methods"] == {"lora": 2, "ia3": 2}
    assert row["has_random_weights"] is False
    assert row["num_requests"] > 0

    path.write_text(path.read_text().replace("num_hot = 4", "num_hot = 6").replace("registered = 4", "registered = 6"))
    assert main(["run", str(path), "--host", running.remote.url, "--output", str(tmp_path / "more")]) == 2
    assert "the service has 2" in capsys.readouterr().err


def test_adapters_change_under_load_and_no_request_is_lost(base_folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "warmup_s = 0.5\nduration_s = 3\nchanges_per_s = 10\n"
        '[adapters]\nmethods = ["lora", "ia3"]\nnum_registered = 4\n'
        "cache_share = 0.5\n[workload]\nnum_hot = 4\nrate_per_s = 40\n"
        'texts = { kind = "fixed", num_tokens = 8 }\n'
    )
    flags = ["--set", f"base={base_folders['bert']}", "--set", "service.device=cpu", "--rows", str(tmp_path / "rows")]
    assert main(["run", str(path), *flags, "--output", str(tmp_path / "out")]) == 0
    latency, idle, load = read(tmp_path / "rows")
    assert isinstance(latency, LatencyRow)
    assert isinstance(idle, MemoryRow)
    assert isinstance(load, MemoryRow)
    assert latency.num_errors == 0
    assert latency.changes["load"] >= 5
    assert latency.changes["flip"] >= 10
    assert latency.changes["remove"] >= 5
    assert latency.adapter_loads, "half of the hot adapters do not fit into memory"
    assert latency.service["adapter_bytes"] < (latency.hot_bytes or 0)


def test_the_smoke_scenario_measures_everything_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """As a user runs it, on the embedded base model, under a minute on a machine that has nothing else to do."""
    folder = tmp_path / "smoke"
    command = [sys.executable, "-m", "loadtest", "run", "smoke", "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = read(folder / "rows.jsonl")
    latencies = [row for row in rows if isinstance(row, LatencyRow)]
    assert [row.case for row in latencies] == list(read_scenario("smoke").cases)
    for row in latencies:
        assert row.num_errors == 0
        assert row.has_random_weights
        assert row.methods == dict.fromkeys(METHODS, 2)
        assert row.latency_ms is not None
        assert row.queue_ms is not None
        assert row.compute_ms is not None
        assert row.service_ms is not None
        explained = row.queue_ms.mean + row.compute_ms.mean
        assert explained < row.service_ms.mean < row.latency_ms.mean
        assert row.batch["texts"] >= 1
        assert row.server_cpu_s
        assert row.client_cpu_s
        assert row.provenance.command == "adaptermux-loadtest run smoke"
    assert latencies[1].throughput_per_s == pytest.approx(20, rel=0.5)
    memory = [row for row in rows if isinstance(row, MemoryRow)]
    assert [row.moment for row in memory] == ["idle", "load"] * 2
    assert all((row.rss_bytes or 0) > (row.resident_adapter_bytes or 0) > 0 for row in memory)
    assert all(row.resident_adapters == 8 for row in memory)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Latency over time" in page
    assert done.stdout.count("0 errors") == 2
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or [])]


def test_the_web_page_of_locust_asks_the_same(running: Service, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtest", "ui", "smoke", "--host", running.remote.url, "--web-port", "0"]
    port = _free_port()
    command[-1] = str(port)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert f"http://127.0.0.1:{port} asks {running.remote.url}" in process.stdout.readline()
            page, deadline = "", time.monotonic() + 60
            while "locust" not in page.lower():
                assert time.monotonic() < deadline
                assert process.poll() is None
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
                        page = response.read().decode()
                except OSError:
                    time.sleep(0.2)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
