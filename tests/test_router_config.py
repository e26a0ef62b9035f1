"""The routers send an adapter to one replica, however it is named, and ask twice only where that is safe.

HAProxy runs with the configuration that the chart renders, Envoy with the variant beside it; replicas are small
listeners that say who they are. What is beyond a replica's share goes elsewhere, and with so little traffic that is two
requests at a time: so the share is a large one here.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.replicas.fleet import free_port
from benchmarks.replicas.router import HAPROXY, on_loopback
from tests.chart import CHART, CLUSTERS, documented, router_config, yaml
from tests.serving import LIMIT_S, until

ENVOY = shutil.which("envoy") or shutil.which("envoy", path=str(Path(sys.executable).parent))
ENVOY_CONFIG = CHART / "variants" / "envoy.yaml"
ADAPTERS = [f"adapter-{number}" for number in range(60)]
NUM_REPLICAS = 3

needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="needs haproxy (apt-get install haproxy)")
needs_envoy = pytest.mark.skipif(ENVOY is None, reason="needs envoy (the extra `deploy`)")


class Replica:
    """Answers with its number. hangs_up, resets: ends the connection instead, after reading the request."""

    def __init__(self, number: int) -> None:
        self.hangs_up = self.resets = False
        self.paths: list[str] = []
        replica = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.path != "/health/ready":
                    replica.paths.append(self.path)
                    if replica.resets:  # what a client sees of a process that is killed before it has read all
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        os.close(self.connection.detach())
                    if replica.hangs_up or replica.resets:
                        self.close_connection = True
                        return
                body = str(number).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._handler = Handler
        self._server = self._listen(0)
        self.port = self._server.server_port

    def _listen(self, port: int) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", port), self._handler)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # routers reset connections as they please
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def start(self) -> None:
        self._server = self._listen(self.port)


class Front:
    """A router that runs, and how it is asked."""

    def __init__(self, port: int, replicas: list[Replica]) -> None:
        self.port, self.replicas = port, replicas

    def ask(
        self, path: str, body: dict[str, Any] | None = None, method: str = "POST", headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            sent = json.dumps(body if body is not None else {"inputs": "x"})
            connection.request(method, path, sent, {"content-type": "application/json"} | (headers or {}))
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def home(self, adapter: str) -> int:
        status, number = self.ask(f"/v1/adapters/{adapter}/classify")
        assert status == 200, number
        return int(number)

    def homes(self) -> dict[str, int]:
        return {adapter: self.home(adapter) for adapter in ADAPTERS}

    def answers(self) -> bool:
        try:
            seen = {self.ask(f"/v1/adapters/{number}/classify") for number in range(30)}
        except (OSError, http.client.HTTPException):
            return False
        return seen == {(200, str(number)) for number in range(len(self.replicas))}


def haproxy_text(replicas: list[Replica], port: int) -> str:
    text = router_config({"replicas": NUM_REPLICAS, "router": {"balancePercent": 1000}})
    return on_loopback(text, port, free_port(), [replica.port for replica in replicas])


def envoy_text(replicas: list[Replica], port: int) -> str:
    config = yaml.safe_load(ENVOY_CONFIG.read_text(encoding="utf-8"))
    config["admin"]["address"]["socket_address"]["port_value"] = free_port()
    config["static_resources"]["listeners"][0]["address"] = {
        "socket_address": {"address": "127.0.0.1", "port_value": port}
    }
    [cluster] = config["static_resources"]["clusters"]
    cluster["common_lb_config"]["consistent_hashing_lb_config"]["hash_balance_factor"] = 1000
    cluster["load_assignment"]["endpoints"] = [
        {"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": replica.port}}}}
            for replica in replicas
        ]}
    ]  # fmt: skip
    return str(yaml.safe_dump(config))


@contextmanager
def front(kind: str, folder: Path) -> Iterator[Front]:
    replicas = [Replica(number) for number in range(NUM_REPLICAS)]
    port = free_port()
    path = folder / ("haproxy.cfg" if kind == "haproxy" else "envoy.yaml")
    if kind == "haproxy":
        path.write_text(haproxy_text(replicas, port))
        command = [str(HAPROXY), "-db", "-f", str(path)]
    else:
        path.write_text(envoy_text(replicas, port))
        command = [str(ENVOY), "-c", str(path), "--concurrency", "1", "--base-id", str(port), "--log-level", "error"]
    with ExitStack() as stack:
        for replica in replicas:
            stack.callback(replica.stop)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(process.wait, LIMIT_S)
        stack.callback(process.kill)
        found = Front(port, replicas)
        until(found.answers)
        yield found


@pytest.fixture(
    params=[pytest.param("haproxy", marks=needs_haproxy), pytest.param("envoy", marks=needs_envoy)], scope="module"
)
def router(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with front(request.param, tmp_path_factory.mktemp("router")) as found:
        yield found


@pytest.fixture
def haproxy(tmp_path: Path) -> Iterator[Front]:
    with front("haproxy", tmp_path) as found:
        yield found


@needs_haproxy
@pytest.mark.parametrize(
    "values",
    [CLUSTERS["as it is"], CLUSTERS["an HPA"], CLUSTERS["own names"], {"router": {"changes": "pass"}}],
)
def test_haproxy_takes_what_the_chart_renders(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "haproxy.cfg").write_text(router_config(values))
    done = subprocess.run(
        [str(HAPROXY), "-c", "-f", str(tmp_path / "haproxy.cfg")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_the_router_knows_every_replica_that_there_may_be() -> None:
    for values in (CLUSTERS | documented()).values():
        scaling = values.get("autoscaling", {})
        most = scaling.get("maxReplicas", 8) if scaling.get("enabled") else values.get("replicas", 2)
        if most > 1 and values.get("router", {}).get("enabled", "auto") != "never":
            assert len(re.findall(r"^  server replica-", router_config(values), re.MULTILINE)) == most


@needs_envoy
def test_envoy_takes_the_variant() -> None:
    done = subprocess.run(
        [str(ENVOY), "--mode", "validate", "-c", str(ENVOY_CONFIG)], capture_output=True, text=True, check=False
    )
    assert "OK" in done.stdout, done.stderr


def test_an_adapter_has_one_home_however_it_is_named(router: Front) -> None:
    for adapter in ADAPTERS[:15]:
        home = router.home(adapter)
        for path, body, headers in (
            (f"/v1/adapters/{adapter}", None, {}),
            (f"/v1/adapters/{adapter}@0f3a5c7e9b1d/classify", None, {}),
            ("/v1/classify", {"inputs": '{"adapter_id": "another"}', "adapter_id": adapter}, {}),
            ("/v1/classify", {"adapter_id": f"{adapter}@0f3a5c7e9b1d", "inputs": "x"}, {}),
            ("/classify", {"model": adapter, "input": "x"}, {}),
            ("/predict", {"inputs": "x"}, {"X-Adapter-Id": adapter}),
            (f"/models/{adapter}", None, {}),
            (f"/tei/{adapter}/predict", None, {}),
            (f"/v2/models/{adapter}/infer", None, {}),
            (f"/v1/models/{adapter}:predict", None, {}),
        ):
            assert router.ask(path, body, headers=headers) == (200, str(home)), path


def test_every_replica_is_home_to_a_share(router: Front) -> None:
    counts = Counter(router.homes().values())
    assert set(counts) == set(range(NUM_REPLICAS))
    assert min(counts.values()) >= len(ADAPTERS) // NUM_REPLICAS // 2


def test_requests_without_an_adapter_are_spread(router: Front) -> None:
    seen = {router.ask("/v1/classify/fanout", {"adapters": "tag:x", "inputs": "x"}) for _ in range(30)}
    assert seen == {(200, str(number)) for number in range(NUM_REPLICAS)}


def test_a_change_of_one_replica_only_is_refused_and_so_are_its_metrics(router: Front) -> None:
    for method, path in (
        ("PUT", "/v1/adapters/x"),
        ("PUT", "/v1/adapters/x/alias"),
        ("DELETE", "/v1/adapters/x"),
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/unload_lora_adapter"),
        ("POST", "/v2/repository/models/x/load"),
    ):
        assert router.ask(path, method=method)[0] == 409, path
    assert router.ask("/metrics", method="GET")[0] == 404


@pytest.mark.parametrize("size", [1_000, 60_000, 500_000])
def test_bodies_of_any_size_pass(router: Front, size: int) -> None:
    body = {"adapter_id": "adapter-1", "inputs": "x" * size}
    assert router.ask("/v1/classify", body) == (200, str(router.home("adapter-1")))


@needs_haproxy
def test_a_dead_replica_moves_its_own_adapters_only_and_they_come_back(haproxy: Front) -> None:
    before = haproxy.homes()
    haproxy.replicas[1].stop()
    after = haproxy.homes()  # at once: a refused connection is tried elsewhere
    assert {adapter for adapter in ADAPTERS if before[adapter] != after[adapter]} == {
        adapter for adapter, home in before.items() if home == 1
    }
    haproxy.replicas[1].start()
    until(lambda: haproxy.homes() == before)


@needs_haproxy
@pytest.mark.parametrize("way", ["hangs_up", "resets"])
def test_a_replica_that_hangs_up_is_asked_elsewhere_only_where_nothing_is_done_twice(haproxy: Front, way: str) -> None:
    homes = haproxy.homes()
    setattr(haproxy.replicas[2], way, True)
    for adapter in [adapter for adapter, home in homes.items() if home == 2]:
        status, number = haproxy.ask(f"/v1/adapters/{adapter}/classify")
        assert (status, number) in {(200, "0"), (200, "1")}
    for replica in haproxy.replicas:
        setattr(replica, way, True)
        replica.paths.clear()
    assert haproxy.ask("/v1/classify/batch")[0] == 502
    assert [path for replica in haproxy.replicas for path in replica.paths] == ["/v1/classify/batch"]
