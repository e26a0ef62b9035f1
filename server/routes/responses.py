"""What the native routes may answer besides success, as their description says it."""

from __future__ import annotations

from typing import Any

from server.schemas import Problem

Responses = dict[int | str, dict[str, Any]]


def problems(**described: str) -> Responses:
    """`problems(s404="no such adapter")` -> the entry of 404 in the description."""
    return {int(name[1:]): {"model": Problem, "description": text} for name, text in described.items()}


ALWAYS = problems(
    s401="No key, or one that is not known",
    s403="The key does not allow this",
    s422="A field has a wrong value; `errors` names it",
)
WITH_BODY = problems(
    s400="The body is not JSON",
    s413="The body is longer than this server takes",
    s415="The body is not declared as JSON",
)
CLASSIFYING = problems(
    s404="No such adapter or version; `detail` names near ones",
    s409="The adapter was refused when it was loaded; `detail` says why",
    s429="The tenant's quota is used up; see `Retry-After`",
    s500="The forward pass failed",
    s503="The server is overloaded or stopping; see `Retry-After`",
    s504="The time of `X-Request-Timeout-Ms` was up",
)
