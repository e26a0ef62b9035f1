"""The FastAPI application: its routes, and the layers that every request passes before it reaches one.

From the outside: `server.edges.Edge`, a trace if wanted, cross-origin rules if wanted,
`server.request_limits.RequestLimits`, `server.admission.Admission`.
"""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from server import __version__
from server.admission import Admission
from server.advice import Advice
from server.description import describe
from server.desk import Desk
from server.edges import Edge
from server.errors import AdaptermuxError
from server.failures import answer
from server.gate import Gate
from server.request_limits import RequestLimits
from server.routes import ROUTERS
from server.routes.pages import add_pages
from server.tracing import Traced
from server.wire import WIRES


def create_app(desk: Desk, max_body_bytes: int, gate: Gate | None = None, advice: Advice | None = None) -> FastAPI:
    """The application over one desk. Bodies of more than max_body_bytes are refused with 413."""
    gate = gate or Gate()
    app: FastAPI = FastAPIOffline(
        title="adaptermux",
        version=__version__,
        summary="One frozen base model, many adapters, one forward pass",
        redirect_slashes=False,  # a redirect would name whatever host the client has named
    )
    app.state.desk = desk
    app.state.advice = advice or Advice()
    app.openapi = partial(describe, app)  # type: ignore[method-assign]
    for router in (*ROUTERS, *(wire.router for wire in WIRES)):
        app.include_router(router)
    if gate.has_pages:
        add_pages(app)
    for kind in (AdaptermuxError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)
    if gate.keys is not None:
        keys = gate.keys
        desk.metrics.watch_keys(lambda: len(keys), lambda: keys.is_fresh)
    # the last one added is the outermost
    app.add_middleware(Admission, keys=gate.keys, has_pages=gate.has_pages, metrics=desk.metrics)
    app.add_middleware(RequestLimits, max_body_bytes=max_body_bytes, read_s=gate.read_s, metrics=desk.metrics)
    if gate.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=gate.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Server-Timing", "Retry-After"],
        )
    if gate.tracing is not None:
        app.add_middleware(Traced, tracing=gate.tracing)
    app.add_middleware(Edge, logs_access=gate.logs_access)
    return app
