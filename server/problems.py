"""Errors as HTTP answers: RFC 9457 problems on our own routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse

from server.errors import AdaptermuxError, BodyTooSlow, InvalidInput, MethodNotAllowed, NotAuthenticated
from server.schemas import FieldProblem, Problem

PROBLEM_TYPE = "application/problem+json"
MOST_NAMED = 16
"""Wrong fields that an answer names: a short body can have hundreds of thousands."""


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


def invalid_input(found: Sequence[Any]) -> InvalidInput:
    """What pydantic found wrong, as one error that names every field, or the first of very many."""
    problems = []
    for one in found[:MOST_NAMED]:
        field = one.get("ctx", {}).get("field") or _path(one["loc"])
        problems.append((field, one["msg"] if one["type"] == "invalid_input" else f"`{field}`: {one['msg']}"))
    if (num_left := len(found) - MOST_NAMED) > 0:
        problems[-1] = (problems[-1][0], f"{problems[-1][1]}; and {num_left} more")
    return InvalidInput(*problems[0], others=problems[1:])


def _path(location: tuple[int | str, ...]) -> str:
    """`("inputs", 3, "text")` -> `inputs[3].text`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "body"
