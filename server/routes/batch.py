"""Classify any number of requests in one: lines of JSON in, lines of JSON out, as fast as the client reads them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from fastapi import APIRouter, Depends, Request, Response
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from server import classification, logs
from server.classification import Question, Tokens
from server.desk import InVisit, Needs, Visit
from server.errors import AdaptermuxError, BodyTooLarge, BodyTooSlow, InvalidJson, Overloaded, QuotaExceeded
from server.problems import invalid_input
from server.routes.classify import respond
from server.routes.responses import ALWAYS
from server.schemas import BatchFailure, BatchLine, BatchResult

PATH = "/v1/classify/batch"
MEDIA_TYPE = "application/x-ndjson"
Result = TypeVar("Result")
LINES_IN_FLIGHT = 64
MAX_LINE_BYTES = 1 << 20
ROOM_S = 60.0
"""How long a line waits for room in the server."""
PATIENCE_S = 20.0
"""How long the client may let an answer wait to be read; less than a connection is given (`--read-s`)."""

router = APIRouter(tags=["classify"], dependencies=[Depends(Needs("classify"))], responses=ALWAYS)


@router.post(
    PATH,
    response_class=Response,
    responses={
        200: {
            "description": "One line for each line of the body, in order: its answer, or `code` and `detail`",
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
        }
    },
    openapi_extra={"requestBody": {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}, "required": True}},
)
async def classify_batch(request: Request, visit: InVisit) -> Response:
    """Classify a stream of requests: each line is a body of `POST /v1/classify`, and may carry an `id`.

    The body may be of any length. Answers come in the order of the lines while the body is still being sent, and the
    server takes no more lines than the client reads answers: read while you send. A line that fails is answered with
    the error and stops no other; one for which there is no room waits.
    """
    return _Stream(request, visit)


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    content: bytes | None
    """None: it was too long."""


class _NotRead(Exception):
    """The client has let answers wait for too long; num_answers: those that were sent."""

    def __init__(self, num_answers: int) -> None:
        super().__init__(num_answers)
        self.num_answers = num_answers


class _Stream(Response):
    """The answer to a batch, which reads the request while it is sent."""

    media_type = MEDIA_TYPE

    def __init__(self, request: Request, visit: Visit) -> None:
        super().__init__()
        self._request, self._visit = request, visit
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(LINES_IN_FLIGHT)
        reading = asyncio.create_task(self._read(answers))
        writing = asyncio.create_task(self._write(answers, send))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():  # the client left, or no more is to be read
                reading.result()
            await writing
        except ClientDisconnect:
            pass
        except _NotRead as stalled:
            logs.event("batch_stalled", num_answers=stalled.num_answers)
            reading.cancel()
            await self._give_up(stalled, send)
        finally:
            reading.cancel()
            writing.cancel()
            while not answers.empty():
                if (task := answers.get_nowait()) is not None:
                    task.cancel()

    async def _read(self, answers: asyncio.Queue[asyncio.Task[bytes] | None]) -> None:
        """Start an answer for every line, as far as there is room; then wait for the client to leave.

        A client that stands still is told so behind its answers.
        """
        try:
            async for line in _lines(self._request):
                await _start(_answer(self._visit, line), answers)
        except BodyTooSlow as error:
            await _start(_refusal(error), answers)
            await answers.put(None)
            return
        await answers.put(None)
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        raise ClientDisconnect

    async def _write(self, answers: asyncio.Queue[asyncio.Task[bytes] | None], send: Send) -> None:
        """Send the answers in order. Raises _NotRead if the client does not read them."""
        num_sent = 0
        while (task := await answers.get()) is not None:
            body = await task
            num_sent += 1
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            except TimeoutError as error:
                raise _NotRead(num_sent) from error
        await send({"type": "http.response.body", "body": b""})

    async def _give_up(self, stalled: _NotRead, send: Send) -> None:
        """Let a client that only sends finish, so that it comes to read what it was answered, and why not more."""
        with suppress(TimeoutError):
            more = True
            while more:
                async with asyncio.timeout(PATIENCE_S):
                    message = await self._request.receive()
                more = message["type"] == "http.request" and message.get("more_body", False)
            async with asyncio.timeout(PATIENCE_S):
                error = Overloaded(
                    f"the lines after the first {stalled.num_answers} were not answered: for {PATIENCE_S:g} s the "
                    "client read nothing; read while you send, or send fewer lines at once"
                )
                await send({"type": "http.response.body", "body": _failure(0, error), "more_body": True})
                await send({"type": "http.response.body", "body": b""})


async def _lines(request: Request) -> AsyncIterator[_Line]:
    """The lines of a body, those that are blank left out. A line that is too long is not kept in memory."""
    rest, number, is_too_long = b"", 0, False
    async for chunk in request.stream():
        *whole, rest = (rest + chunk).split(b"\n")
        for content in whole:
            number += 1
            if is_too_long or len(content) > MAX_LINE_BYTES:
                yield _Line(number, None)
                is_too_long = False
            elif content.strip():
                yield _Line(number, content)
        if len(rest) > MAX_LINE_BYTES:
            rest, is_too_long = b"", True
    if is_too_long or rest.strip():
        yield _Line(number + 1, None if is_too_long else rest)


async def _start(answer: Coroutine[None, None, bytes], answers: asyncio.Queue[asyncio.Task[bytes] | None]) -> None:
    """Start an answer and line it up, once there is room; who is cancelled meanwhile leaves nothing running."""
    task = asyncio.create_task(answer)
    try:
        await answers.put(task)
    except asyncio.CancelledError:
        task.cancel()
        raise


async def _answer(visit: Visit, line: _Line) -> bytes:
    """One line of the answer."""
    request_id: str | int | None = None
    try:
        body = _parse(line)
        request_id = body.id
        questions = [Question(field, one.text, one.text_pair) for field, one in body.texts()]
        await _patiently(partial(classification.check_count, visit, len(questions)))
        tokens = Tokens(visit.desk.tokenizer, questions, body.truncate)
        asking = partial(classification.classify_tokens, visit, body.adapter_id, tokens, body.threshold)
        classified = await _patiently(asking)
        native = respond(classified, body)
        result = BatchResult(line=line.number, id=request_id, **dict(native))
        return result.model_dump_json(exclude_none=True).encode() + b"\n"
    except AdaptermuxError as error:
        ours = error
    except Exception as error:  # the other lines must be answered
        logs.bug("line_failed", error, request_id=visit.trail.request_id)
        ours = AdaptermuxError(f"{type(error).__name__} in the server; this is a bug")
    return _failure(line.number, ours, request_id)


async def _refusal(error: AdaptermuxError) -> bytes:
    """What is told of the body, not of a line."""
    return _failure(0, error)


def _failure(number: int, error: AdaptermuxError, request_id: str | int | None = None) -> bytes:
    failure = BatchFailure(line=number, id=request_id, status=error.status, code=error.code, detail=str(error))
    return failure.model_dump_json(exclude_none=True).encode() + b"\n"


def _parse(line: _Line) -> BatchLine:
    if line.content is None:
        raise BodyTooLarge(f"line {line.number} has more than {MAX_LINE_BYTES} bytes, the most that a line may have")
    try:
        record = json.loads(line.content)
    except (ValueError, RecursionError) as error:
        raise InvalidJson(f"line {line.number} is not JSON: {error}") from error
    try:
        return BatchLine.model_validate(record)
    except ValidationError as error:
        raise invalid_input(error.errors(include_url=False)) from error


async def _patiently(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Try again while the server is full or the quota is used up: a batch takes what the others leave."""
    give_up = time.monotonic() + ROOM_S
    while True:
        try:
            return await attempt()
        except (Overloaded, QuotaExceeded) as error:
            wait_s = error.retry_after_s or 1
            if time.monotonic() + wait_s > give_up:
                raise
            await asyncio.sleep(wait_s)
