"""The FastAPI application: routes, and errors as RFC 9457 problems."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from server import __version__
from server.api import Desk, router
from server.errors import AdaptermuxError, InvalidInput, Overloaded
from server.schemas import FieldProblem, Problem

PROBLEM_TYPE = "application/problem+json"


def create_app(desk: Desk) -> FastAPI:
    """The application over one desk."""
    app: FastAPI = FastAPIOffline(
        title="adaptermux", version=__version__, summary="One frozen base model, many adapters, one forward pass"
    )
    app.state.desk = desk
    app.include_router(router)
    app.add_exception_handler(AdaptermuxError, _own_error)
    app.add_exception_handler(RequestValidationError, _invalid_body)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    return app


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
    codes = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed"}
    detail = (
        f"no route {request.method} {request.url.path}; see /docs"
        if error.status_code in (404, 405)
        else str(error.detail)
    )
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
