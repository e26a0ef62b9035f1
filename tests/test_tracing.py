"""Traces: what a collector is sent, over its own protocol."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.testclient import TestClient

from server.app import create_app
from server.base_model import BaseModel
from server.errors import SettingsError
from server.gate import open_gate
from server.service import Service
from server.tracing import Tracing
from tests.serving import make_adapters, settings_for

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A collector on loopback, and the spans it was sent."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()
        thread.join()


def test_every_request_is_a_span_with_what_was_done_and_below_the_clients_own(
    bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory, collector: tuple[str, list[Any]]
) -> None:
    endpoint, spans = collector
    root = make_adapters(tmp_path_factory.mktemp("traced"), bert_base, ["one", "two"])
    settings = settings_for(root, bert_base, otlp_endpoint=endpoint)
    with (
        open_gate(settings) as gate,
        Service(settings) as service,
        TestClient(create_app(service.desk, 100_000, gate)) as client,
    ):
        body = {"inputs": ["word1 markertext", "word2"]}
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "trace-me"}
        version = client.post("/v1/adapters/one/classify?q=1", json=body, headers=headers).json()["version"]
        client.post("/v1/classify/fanout", json=body | {"adapters": ["one", "two"]})
        client.get("/v1/none")
    first, fanned, unknown = spans
    told = {one.key: one.value for one in first.attributes}
    assert first.name == "POST /v1/adapters/{adapter_id}/classify"
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert told["http.response.status_code"].int_value == 200
    assert told["adaptermux.request_id"].string_value == "trace-me"
    assert told["adaptermux.adapter"].string_value == "one"
    assert told["adaptermux.version"].string_value == version
    assert told["adaptermux.method"].string_value == "lora"
    assert told["adaptermux.texts"].int_value == 2
    assert told["adaptermux.tokens"].int_value == 7
    assert told["adaptermux.compute_ms"].double_value > 0
    assert told["adaptermux.queue_ms"].double_value >= 0
    assert "one,two" in str(fanned.attributes)
    assert unknown.name == "GET none"
    assert "markertext" not in str(spans)


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://collector:4317", "http://"])
def test_a_collector_that_is_no_address_stops_the_start(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="--otlp-endpoint"):
        Tracing(endpoint)


def test_a_missing_package_stops_the_start_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"adaptermux\[otel\]"):
        Tracing("http://collector:4318")
