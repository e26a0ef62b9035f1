"""The FastAPI application: routes, and errors as RFC 9457 problems."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import __version__
from server.api import Desk, router
from server.errors import AdaptermuxError, BodyTooLarge, InvalidInput, Overloaded
from server.schemas import FieldProblem, Problem

PROBLEM_TYPE = "application/problem+json"


def create_app(desk: Desk, max_body_bytes: int) -> FastAPI:
    """The application over one desk. Bodies of more than max_body_bytes are refused with 413."""
    app: FastAPI = FastAPIOffline(
        title="adaptermux", version=__version__, summary="One frozen base model, many adapters, one forward pass"
    )
    app.state.desk = desk
    app.include_router(router)
    app.add_exception_handler(AdaptermuxError, _own_error)
    app.add_exception_handler(RequestValidationError, _invalid_body)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(_BodyLimit, max_body_bytes=max_body_bytes)
    return app


class _BodyLimit:
    """Answers 413 once a body is longer than allowed, whatever its header said; nothing of it is parsed."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app, self.max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_body_bytes:
                raise BodyTooLarge(f"the body has more than {self.max_body_bytes} bytes, the most that are taken")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


def _problem(status: int, code: str, detail: str, errors: list[FieldProblem] | None = None) -> JSONResponse:
    problem = Problem(title=code.replace("_", " "), status=status, code=code, detail=detail, errors=errors)
    return JSONResponse(problem.model_dump(exclude_none=True), status_code=status, media_type=PROBLEM_TYPE)


async def _own_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AdaptermuxError)
    errors = [FieldProblem(field=error.field, message=str(error))] if isinstance(error, InvalidInput) else None
    response = _problem(error.status, error.code, str(error), errors)
    if isinstance(error, Overloaded):
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


async def _invalid_body(request: Request, error: Exception) -> JSONResponse:
    """Name every field that is wrong; a body that is no JSON at all is 400."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    request.app.state.desk.metrics.request_answered("", InvalidInput.code)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip()
    if found[0]["loc"] == ("body",) and not media_type.endswith("json"):
        return _problem(
            415, "unsupported_media_type", f"the content type is `{media_type}`, it must be application/json"
        )
    if any(one["type"] == "json_invalid" for one in found):
        reason = found[0].get("ctx", {}).get("error", "it cannot be parsed")
        return _problem(400, "invalid_json", f"the body is not JSON: {reason}")
    errors = []
    for one in found:
        field = one.get("ctx", {}).get("field") or _path(one["loc"])
        message = one["msg"] if one["type"] == "invalid_input" else f"`{field}`: {one['msg']}"
        errors.append(FieldProblem(field=field, message=message))
    return _problem(422, InvalidInput.code, "; ".join(one.message for one in errors), errors)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, BodyTooLarge):  # FastAPI wraps what reading the body raises
        return await _own_error(request, error.__cause__)
    codes = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed"}
    allowed = (error.headers or {}).get("Allow", "another method")
    details = {
        404: f"there is no route {request.url.path}; see /docs",
        405: f"{request.url.path} takes {allowed}, not {request.method}",
    }
    detail = details.get(error.status_code, str(error.detail))
    response = _problem(error.status_code, codes.get(error.status_code, "http_error"), detail)
    response.headers.update(error.headers or {})
    return response


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return _problem(500, "internal_error", f"{type(error).__name__} in the server; this is a bug")


def _path(location: tuple[int | str, ...]) -> str:
    """`("body", "inputs", 3, "text")` -> `inputs[3].text`."""
    path = ""
    for part in location[1:] if location and location[0] in ("body", "path", "query") else location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "body"
