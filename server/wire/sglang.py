"""SGLang's two routes that load and unload adapters. Its `/v1/classify` is not here: that is our own route."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from server.desk import InVisit, Needs, Visit
from server.errors import AdaptermuxError
from server.problems import headers_of
from server.wire.lora_adapters import LoadLoraRequest, UnloadLoraRequest, load, root_of, served, unload
from server.wire.responses import BODY, CHANGING, DENIED, errors


class LoadRequest(LoadLoraRequest):
    """Fields that are not known change nothing."""

    pinned: Annotated[bool, Field(strict=True)] = False
    """Keep it in memory whoever else wants the room."""


class Outcome(BaseModel):
    """loaded_adapters: every adapter you may use, with where it came from."""

    success: bool
    error_message: str | None = None
    loaded_adapters: dict[str, str] = {}


RESPONSES = errors(Outcome, *DENIED, *BODY, *CHANGING)

router = APIRouter(tags=["SGLang"], dependencies=[Depends(Needs("admin"))], responses=RESPONSES)


@router.post("/load_lora_adapter", operation_id="sglang_load_lora_adapter")
async def load_lora_adapter(body: LoadRequest, visit: InVisit) -> Outcome:
    """Serve an adapter, of whatever method, under a new id."""
    await load(body, visit, is_pinned=body.pinned)
    return _done(visit)


@router.post("/unload_lora_adapter", operation_id="sglang_unload_lora_adapter")
async def unload_lora_adapter(body: UnloadLoraRequest, visit: InVisit) -> Outcome:
    """Forget an adapter."""
    await unload(body.lora_name, visit)
    return _done(visit)


def problem(error: AdaptermuxError) -> Response:
    outcome = Outcome(success=False, error_message=str(error))
    status = 400 if error.status in (404, 409, 422) else error.status  # the only one that SGLang has
    return JSONResponse(outcome.model_dump(), status_code=status, headers=headers_of(error))


def _done(visit: Visit) -> Outcome:
    return Outcome(success=True, loaded_adapters={one.adapter_id: root_of(one) for one in served(visit)})
