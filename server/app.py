"""The FastAPI application: its routes, and every error in the shape that the callers of its route know."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import __version__
from server.callers import ANYBODY
from server.description import describe
from server.desk import Desk
from server.errors import (
    AdaptermuxError,
    BodyTooLarge,
    InvalidJson,
    MethodNotAllowed,
    NoSuchRoute,
    RequestError,
    UnsupportedMediaType,
)
from server.problems import invalid_input, problem
from server.routes import ROUTERS, batch
from server.wire import WIRES

REQUEST_PARTS = ("body", "path", "query")


def create_app(desk: Desk, max_body_bytes: int) -> FastAPI:
    """The application over one desk. Bodies of more than max_body_bytes are refused with 413."""
    app: FastAPI = FastAPIOffline(
        title="adaptermux", version=__version__, summary="One frozen base model, many adapters, one forward pass"
    )
    app.state.desk = desk
    app.openapi = partial(describe, app)  # type: ignore[method-assign]
    for router in (*ROUTERS, *(wire.router for wire in WIRES)):
        app.include_router(router)
    for kind in (AdaptermuxError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer)
    app.add_middleware(_BodyLimit, max_body_bytes=max_body_bytes)
    app.add_middleware(_Admission)
    return app


class _Admission:
    """Says who asks."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["caller"] = ANYBODY
        await self.app(scope, receive, send)


class _BodyLimit:
    """Answers 413 once a body is longer than allowed, whatever its header said; nothing of it is parsed."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app, self.max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes = 0
        if scope["type"] != "http" or scope["path"] == batch.PATH:  # it limits its lines
            await self.app(scope, receive, send)
            return

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_body_bytes:
                raise BodyTooLarge(f"the body has more than {self.max_body_bytes} bytes, the most that are taken")
            return message

        await self.app(scope, counted, send)


async def _answer(request: Request, error: Exception) -> Response:
    """The answer to an error, in the shape that the route's callers know."""
    ours = _as_ours(request, error)
    if isinstance(error, RequestValidationError):
        request.app.state.desk.metrics.request_answered("", ours.code)
    return _shape(request)(ours)


def _shape(request: Request) -> Callable[[AdaptermuxError], Response]:
    for wire in WIRES:
        if any(route.matches(request.scope)[0] is not Match.NONE for route in wire.router.routes):
            return wire.problem
    return problem


def _as_ours(request: Request, error: Exception) -> AdaptermuxError:
    if isinstance(error, HTTPException) and isinstance(error.__cause__, BodyTooLarge):
        return error.__cause__  # FastAPI wraps what reading the body raises
    if isinstance(error, AdaptermuxError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid_body(request, error)
    if isinstance(error, HTTPException):
        return _http_error(request, error)
    return AdaptermuxError(f"{type(error).__name__} in the server; this is a bug")


def _invalid_body(request: Request, error: RequestValidationError) -> RequestError:
    """Name every field that is wrong; a body that is no JSON at all is 400."""
    found = error.errors()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip()
    if found[0]["loc"] == ("body",) and not media_type.endswith("json"):
        return UnsupportedMediaType(f"the content type is `{media_type}`, it must be application/json")
    if any(one["type"] == "json_invalid" for one in found):
        reason = found[0].get("ctx", {}).get("error", "it cannot be parsed")
        return InvalidJson(f"the body is not JSON: {reason}")
    return invalid_input([{**one, "loc": one["loc"][1:]} if one["loc"][0] in REQUEST_PARTS else one for one in found])


def _http_error(request: Request, error: HTTPException) -> RequestError:
    if error.status_code == 404:
        return NoSuchRoute(f"there is no route {request.url.path}; see /docs")
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "another method")
        return MethodNotAllowed(f"{request.url.path} takes {allow}, not {request.method}", allow)
    return InvalidJson(str(error.detail))  # FastAPI: the body could not be read
