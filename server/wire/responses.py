"""What the routes of a wire may answer besides success, as their description says it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from server.routes.responses import Responses

DENIED = (401, 403)
BODY = (400, 413, 415)
CLASSIFYING = (404, 409, 429, 500, 503, 504)
CHANGING = (404, 409, 502, 503, 507)


def errors(model: type[BaseModel], *statuses: int) -> Responses:
    """The entries of some statuses, all of one shape; any other error has it too."""
    described: dict[str, Any] = {"model": model}
    return {**dict.fromkeys(sorted(statuses), described), "default": described | {"description": "Any error"}}
