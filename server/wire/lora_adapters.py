"""Adapters that come and go as vLLM and SGLang let them: bodies, and what they mean for `server.desk.Lifecycle`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from server.desk import Visit
from server.errors import InvalidInput
from server.record import Record
from server.routes.adapters import check_new_id, check_source

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w.-]+(/[\w.-]+)*)?", re.ASCII)


class LoadLoraRequest(BaseModel):
    """Fields that are not known change nothing."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"lora_name": "device-reviews", "lora_path": "s3://models/device-reviews"}]},
    )

    lora_name: str
    """The id to serve it under. Adapters of every method are taken."""
    lora_path: Annotated[str, Field(max_length=2048)]
    """An absolute path, `s3://bucket/prefix`, `gs://bucket/prefix`, or `organisation/name` on the hub."""
    load_inplace: Annotated[bool, Field(strict=True)] = False
    """Let an id that is served stand for this version instead."""


class UnloadLoraRequest(BaseModel):
    """Fields that are not known change nothing."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"lora_name": "device-reviews"}]})

    lora_name: str


def served(visit: Visit) -> Sequence[Record]:
    """The adapters that the caller may ask."""
    return [record for record in visit.desk.catalog.all(visit.caller.sees) if record.status != "failed"]


def root_of(record: Record) -> str:
    """Where an adapter came from; those that lie in the adapters folder are named as they are there."""
    return (record.current.source if record.current else None) or record.adapter_id


async def load(body: LoadLoraRequest, visit: Visit, is_pinned: bool | None = None) -> None:
    """Serve what lies at a path."""
    name = body.lora_name
    check_new_id(name, visit)
    check_source(visit)
    if name == visit.desk.base.name:
        raise InvalidInput("lora_name", f"`lora_name`: '{name}' is the base model")
    if not body.load_inplace and name in {record.adapter_id for record in served(visit)}:
        raise InvalidInput(
            "lora_name",
            f"The lora adapter '{name}' has already been loaded. "
            "If you want to load the adapter in place, set 'load_inplace' to True.",
        )
    await visit.desk.change(visit.desk.lifecycle.put, name, _source(body.lora_path), None, is_pinned, True)


async def unload(adapter_id: str, visit: Visit) -> None:
    """Forget an adapter."""
    visit.desk.catalog.find(adapter_id, visit.caller.sees)
    await visit.desk.change(visit.desk.lifecycle.remove, adapter_id)


def _source(lora_path: str) -> str:
    """The source that a path means: a folder, a bucket, or a name on the hub."""
    if lora_path.startswith("/"):
        return f"file:{lora_path}"
    path = re.sub("^huggingface://", "", lora_path)  # as AIBrix writes it
    if HUB_NAME.fullmatch(path):
        return f"hf:{path}"
    if re.match("[a-z0-9]+:", path):
        return path
    raise InvalidInput(
        "lora_path",
        f"`lora_path` is {lora_path[:80]!a}; send an absolute path, s3://bucket/prefix, gs://bucket/prefix "
        "or organisation/name on the hub",
    )
