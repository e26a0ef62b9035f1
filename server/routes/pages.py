"""The pages for people: files without data, which ask the other routes for everything they show.

The page of decisions is written anew for every question, so that it can be read without scripts; to whom this server
would not answer it is a file like the others.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from server.errors import AdaptermuxError, ScopeMissing
from server.problems import headers_of
from server.routes.decision import advice

FOLDER = Path(__file__).parent.parent / "pages"
ASSETS = "/assets/"
CONSOLE, DECISION = "/", "/decision"
FILLED = "<!-- filled in by the server -->"
"""Where the page of decisions holds the answer; what stands below it is for those who get none."""


def is_page(path: str) -> bool:
    """Whether a path is a page or a part of one. A browser asks for these before it has a key to show."""
    return path in (CONSOLE, DECISION) or path.startswith(ASSETS)


def add_pages(app: FastAPI) -> None:
    """Serve the pages, and what they are made of."""
    files = StaticFiles(directory=FOLDER)

    async def console(request: Request) -> Response:
        return await files.get_response("console.html", request.scope)

    app.add_route(CONSOLE, console, include_in_schema=False)
    app.add_route(DECISION, _decision, include_in_schema=False)
    app.mount(ASSETS.rstrip("/"), StaticFiles(directory=FOLDER / "assets"), name="assets")


async def _decision(request: Request) -> Response:
    """With its answer, or with the reason why there is none."""
    try:
        request.state.caller.check("classify")
        query = dict(request.query_params)
        found = await advice(request).ask(lambda adviser: adviser.page(query))
    except ScopeMissing:
        return HTMLResponse(_page().replace(FILLED, ""))
    except AdaptermuxError as error:
        from decision.web.markup import element

        text = element("p", str(error), class_="notice bad")
        return HTMLResponse(_without_rest(text), status_code=error.status, headers=headers_of(error))
    return HTMLResponse(_without_rest(found.main), status_code=200 if found.is_right else 422)


@cache
def _page() -> str:
    return (FOLDER / "decision.html").read_text(encoding="utf-8")


def _without_rest(main: str) -> str:
    head, _, rest = _page().partition(FILLED)
    return f"{head}{main}\n{rest[rest.index('</main>') :]}"
