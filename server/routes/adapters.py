"""Adapters: which there are, how they come, go, and stand for one of their versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from server.desk import Desk, InVisit, Needs, Visit
from server.errors import AdapterForbidden, InvalidInput, SourceForbidden
from server.manifest import ADAPTER_ID
from server.record import AdapterCard, Record, Refusal, Target
from server.residency import Tier, key_of
from server.routes.responses import ALWAYS, WITH_BODY, problems
from server.schemas import (
    AdapterEntry,
    AdapterList,
    AliasRequest,
    PutAdapterRequest,
    Reason,
    VersionEntry,
    VersionShare,
)

router = APIRouter(tags=["adapters"], responses=ALWAYS)
READING = [Depends(Needs("classify"))]
CHANGING = [Depends(Needs("admin"))]
CHANGED = problems(
    s404="No such adapter or version",
    s409="It does not fit what is; `detail` says why",
    s502="The source cannot be reached; what was served is still served",
    s503="There is no room for it",
    s507="It could not be written down: the disk is full or read-only",
)
AdapterId = Annotated[str, Path(description="Name of the adapter, as `GET /v1/adapters` lists it", max_length=256)]


@router.get("/v1/adapters", dependencies=READING)
async def list_adapters(
    visit: InVisit, tag: Annotated[str | None, Query(description="Only those with this tag")] = None
) -> AdapterList:
    """All adapters you may use, those that were refused included."""
    catalog = visit.desk.catalog
    adapters = await _entries(catalog.all(visit.caller.sees, tag), visit.desk)
    trouble = catalog.trouble if visit.caller.tenant is None else None  # it names the folder or bucket
    return AdapterList(adapters=adapters, trouble=_reason(trouble))


@router.get("/v1/adapters/{adapter_id}", dependencies=READING, responses=problems(s404="No such adapter"))
async def show_adapter(adapter_id: AdapterId, visit: InVisit) -> AdapterEntry:
    """One adapter and its versions."""
    return await entry(visit.desk.catalog.find(adapter_id, visit.caller.sees), visit.desk)


@router.put("/v1/adapters/{adapter_id}", dependencies=CHANGING, responses=CHANGED | WITH_BODY)
async def put_adapter(adapter_id: AdapterId, body: PutAdapterRequest, visit: InVisit) -> AdapterEntry:
    """Fetch a version from a source and serve it under this id, or change an adapter's tags and pin.

    It is answered once the version is in memory and checked to its last byte. Until then, and if anything goes wrong,
    the id stands for what it stood for before.
    """
    check_new_id(adapter_id, visit)
    if body.source is not None:
        check_source(visit)
    record = await visit.desk.change(
        visit.desk.lifecycle.put, adapter_id, body.source, body.tags, body.pinned, body.activate
    )
    return await entry(record, visit.desk)


@router.delete("/v1/adapters/{reference}", status_code=204, dependencies=CHANGING, responses=CHANGED)
async def delete_adapter(
    reference: Annotated[str, Path(description="`id`, or `id@version` for one version", max_length=256)],
    visit: InVisit,
) -> Response:
    """Forget an adapter, or one version. Texts it is classifying are answered; its memory is free with the last."""
    adapter_id, at, version = reference.partition("@")
    if at and not version:  # such as of a script whose variable is empty: it does not mean all of it
        raise InvalidInput("reference", "`reference` names no version behind its @; send `id` for the whole adapter")
    _check_allowed(adapter_id, visit)
    visit.desk.catalog.find(adapter_id, visit.caller.sees)
    await visit.desk.change(visit.desk.lifecycle.remove, reference)
    return Response(status_code=204)


@router.put("/v1/adapters/{adapter_id}/alias", dependencies=CHANGING, responses=CHANGED | WITH_BODY)
async def put_alias(adapter_id: AdapterId, body: AliasRequest, visit: InVisit) -> AdapterEntry:
    """Let the id stand for another version, for several by weight, or for what it stood for before.

    The change is seen by all requests at once; each is answered wholly by one version, which its answer names.
    """
    _check_allowed(adapter_id, visit)
    visit.desk.catalog.find(adapter_id, visit.caller.sees)
    if body.rollback:
        record = await visit.desk.change(visit.desk.lifecycle.rollback, adapter_id)
    else:
        alias = tuple(Target(share.version, share.weight) for share in body.shares())
        record = await visit.desk.change(visit.desk.lifecycle.set_alias, adapter_id, alias)
    return await entry(record, visit.desk)


async def entry(record: Record, desk: Desk) -> AdapterEntry:
    """An adapter as it is listed."""
    [found] = await _entries([record], desk)
    return found


async def _entries(records: Sequence[Record], desk: Desk) -> list[AdapterEntry]:
    """Adapters as they are listed, all with one look at where their versions are."""
    cards = (card for record in records for card in record.versions.values())
    tiers = await desk.tiers([key_of(card.adapter_id, card.version) for card in cards])
    return [_entry(record, tiers) for record in records]


def _entry(record: Record, tiers: Mapping[str, Tier]) -> AdapterEntry:
    """What describes a version describes the one with the largest share."""
    card = record.current
    refusal = record.refusal or (card.refusal if card is not None else None)
    listed = AdapterEntry(
        adapter_id=record.adapter_id,
        status=record.status,
        versions=[_version(card, tiers) for card in record.versions.values()],
        alias=[VersionShare(version=target.version, weight=target.weight) for target in record.alias],
        tags=list(record.tags),
        pinned=record.is_pinned,
        refusal=_reason(refusal),
    )
    if card is None:
        return listed
    manifest = card.manifest
    measured = manifest.training.metrics if manifest.training else {}
    return listed.model_copy(
        update={
            "version": card.version,
            "method": manifest.method,
            "labels": list(manifest.labels),
            "problem_type": manifest.problem_type,
            "threshold": manifest.threshold if manifest.problem_type == "multi_label" else None,
            "pooling": manifest.pooling,
            "max_length": manifest.max_length,
            "base": manifest.base_name,
            "num_bytes": card.num_bytes,
            "metrics": {name: {"value": m.value, "low": m.low, "high": m.high} for name, m in measured.items()} or None,
            "warnings": list(card.warnings),
        }
    )


def _version(card: AdapterCard, tiers: Mapping[str, Tier]) -> VersionEntry:
    return VersionEntry(
        version=card.version,
        method=card.manifest.method,
        num_bytes=card.num_bytes,
        tier=tiers.get(key_of(card.adapter_id, card.version), "disk"),
        source=card.source,
        created=card.created,
        refusal=_reason(card.refusal),
    )


def _reason(refusal: Refusal | None) -> Reason | None:
    return Reason(code=refusal.code, reason=refusal.reason) if refusal is not None else None


def check_source(visit: Visit) -> None:
    """What may be fetched is allowed to the whole server: a tenant could fetch what belongs to another."""
    if visit.caller.tenant is not None:
        raise SourceForbidden("a tenant's key fetches nothing; let a key without a tenant do it")


def check_new_id(adapter_id: str, visit: Visit) -> None:
    if not ADAPTER_ID.fullmatch(adapter_id):
        raise InvalidInput(
            "adapter_id",
            f"{adapter_id[:80]!a} must be 1 to 128 of A-Z a-z 0-9 . _ - and begin with a letter or digit",
        )
    _check_allowed(adapter_id, visit)


def _check_allowed(adapter_id: str, visit: Visit) -> None:
    """A caller may only change adapters that they may see; whether one of that name is there is not told."""
    if not visit.caller.sees(adapter_id):
        allowed = ", ".join(f"`{pattern}`" for pattern in visit.caller.patterns)
        raise AdapterForbidden(f"your key is for adapters named {allowed}")
