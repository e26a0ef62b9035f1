"""The pages for people: files without data, which ask the other routes for everything they show."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles

FOLDER = Path(__file__).parent.parent / "pages"
ASSETS = "/assets/"
PAGES = {"/": "console.html"}


def is_page(path: str) -> bool:
    """Whether a path is a page or a part of one. A browser asks for these before it has a key to show."""
    return path in PAGES or path.startswith(ASSETS)


def add_pages(app: FastAPI) -> None:
    """Serve the pages, and what they are made of."""
    files = StaticFiles(directory=FOLDER)

    async def page(request: Request) -> Response:
        return await files.get_response(PAGES[request.url.path], request.scope)

    for path in PAGES:
        app.add_route(path, page, include_in_schema=False)
    app.mount(ASSETS.rstrip("/"), StaticFiles(directory=FOLDER / "assets"), name="assets")
