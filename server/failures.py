"""Which answer an error gets: one of ours for every exception, in the shape that the callers of the path know."""

from __future__ import annotations

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from server.errors import (
    AdaptermuxError,
    InvalidJson,
    MethodNotAllowed,
    NoSuchRoute,
    RequestError,
    UnsupportedMediaType,
)
from server.problems import invalid_input, problem
from server.wire import WIRES

REQUEST_PARTS = ("body", "path", "query")


async def answer(request: Request, error: Exception) -> Response:
    """The answer to what a route raised."""
    ours = _as_ours(request, error)
    if isinstance(error, RequestValidationError):
        request.app.state.desk.metrics.request_answered("", ours.code)
    return shaped(request.scope, ours)


def shaped(scope: Scope, error: AdaptermuxError) -> Response:
    """The answer to an error on a path, whether or not a route was reached."""
    for wire in WIRES:
        if any(route.matches(scope)[0] is not Match.NONE for route in wire.router.routes):
            return wire.problem(error)
    return problem(error)


def _as_ours(request: Request, error: Exception) -> AdaptermuxError:
    if isinstance(error, HTTPException) and isinstance(error.__cause__, AdaptermuxError):
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
