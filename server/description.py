"""The OpenAPI description, where what FastAPI makes of the routes is not quite what they do."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from server.problems import PROBLEM_TYPE

PROBLEM = {"$ref": "#/components/schemas/Problem"}


def describe(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, with the media types that errors really have."""
    described = FastAPI.openapi(app)
    for operations in described["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if not status.startswith("2"):
                    # FastAPI gives them the media type of the route's success
                    content = [
                        (PROBLEM_TYPE if one.get("schema") == PROBLEM else "application/json", one)
                        for one in response.get("content", {}).values()
                    ]
                    response |= {"content": dict(content)} if content else {}
    return described
