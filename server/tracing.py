"""Traces for OpenTelemetry, for those who have its packages: one span a request."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from server import __version__
from server.edges import route_of
from server.errors import SettingsError
from server.trail import Trail

TRACES_PATH = "/v1/traces"
PARENT = (b"traceparent", b"tracestate")


class Tracing:
    """Sends spans to a collector, in batches, from a thread of its own."""

    def __init__(self, endpoint: str) -> None:
        """endpoint: `http://collector:4318`. Raises SettingsError where the packages are missing."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"--otlp-endpoint needs the package `{error.name}`: pip install 'adaptermux[otel]'"
            ) from error
        address = urlsplit(endpoint)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise SettingsError(f"--otlp-endpoint: {endpoint!r} is no address such as http://collector:4318")
        if address.path in ("", "/"):
            endpoint = endpoint.rstrip("/") + TRACES_PATH
        named = Resource.create({"service.name": "adaptermux", "service.version": __version__})
        self._provider = TracerProvider(resource=named, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self.tracer = self._provider.get_tracer("adaptermux", __version__)
        self.propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class Traced:
    """Middleware: a span around each request, below the client's own where it sends a W3C `traceparent`."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        self._app, self._tracing = app, tracing
        self._kind, self._failed = SpanKind.SERVER, Status(StatusCode.ERROR)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        carrier = {str(name, "latin-1"): str(value, "latin-1") for name, value in scope["headers"] if name in PARENT}
        parent = self._tracing.propagator.extract(carrier)
        span = self._tracing.tracer.start_span(scope["method"], context=parent, kind=self._kind)
        trail: Trail = scope["state"]["trail"]
        try:
            await self._app(scope, receive, send)
        finally:
            route = route_of(scope)
            span.update_name(f"{scope['method']} {route}")
            span.set_attributes(_attributes(scope["method"], route, trail))
            if trail.status >= 500 or not trail.status:
                span.set_status(self._failed)
            span.end()


def _attributes(method: str, route: str, trail: Trail) -> dict[str, Any]:
    """Never texts, keys or what stands in an address."""
    attributes: dict[str, Any] = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": trail.status,
        "adaptermux.request_id": trail.request_id,
    }
    if trail.caller.tenant is not None:
        attributes["adaptermux.tenant"] = trail.caller.tenant
    if trail.cards:
        cards = trail.cards.values()
        attributes |= {
            "adaptermux.adapter": ",".join(card.adapter_id for card in cards),
            "adaptermux.version": ",".join(card.version for card in cards),
            "adaptermux.method": ",".join(card.manifest.method for card in cards),
            "adaptermux.texts": trail.num_texts,
            "adaptermux.tokens": trail.num_tokens,
            "adaptermux.tokenize_ms": trail.tokenize_ms,
            "adaptermux.queue_ms": trail.queue_ms,
            "adaptermux.compute_ms": trail.compute_ms,
        }
    return attributes
