"""Errors as HTTP answers: RFC 9457 problems on our own routes."""

from __future__ import annotations

from fastapi.responses import JSONResponse

from server.errors import AdaptermuxError, BodyTooSlow, InvalidInput, MethodNotAllowed, NotAuthenticated
from server.schemas import FieldProblem, Problem

PROBLEM_TYPE = "application/problem+json"


def problem(error: AdaptermuxError) -> JSONResponse:
    """The answer to an error; its wrong fields are listed."""
    fields = error.problems if isinstance(error, InvalidInput) else ()
    body = Problem(
        title=error.code.replace("_", " "),
        status=error.status,
        code=error.code,
        detail=str(error),
        errors=[FieldProblem(field=field, message=message) for field, message in fields] or None,
    )
    return JSONResponse(
        body.model_dump(exclude_none=True),
        status_code=error.status,
        media_type=PROBLEM_TYPE,
        headers=headers_of(error),
    )


def headers_of(error: AdaptermuxError) -> dict[str, str]:
    """What an error says in headers, whatever the shape of its body."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allow
    if isinstance(error, NotAuthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTooSlow):
        headers["Connection"] = "close"  # the rest of it may never come
    return headers
