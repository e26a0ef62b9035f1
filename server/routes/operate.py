"""The base model, health and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.desk import Desk, Needs
from server.jobs import EngineHealth
from server.routes.responses import ALWAYS
from server.schemas import BaseInfo, Health

router = APIRouter(tags=["operate"])


@router.get("/v1/base", responses=ALWAYS, dependencies=[Depends(Needs("classify"))])
async def show_base(request: Request) -> BaseInfo:
    """The base model."""
    return _desk(request).base


@router.get("/health/live", responses={503: {"model": Health}})
async def live(request: Request, response: Response) -> Health:
    """Whether the engine works, or is being started again; a server that fails this must be restarted."""
    health = _desk(request).engine.health()
    return _told(health, not health.needs_help, response)


@router.get("/health/ready", responses={503: {"model": Health}})
async def ready(request: Request, response: Response) -> Health:
    """Whether requests are answered. The server listens only once its adapters are loaded."""
    health = _desk(request).engine.health()
    return _told(health, health.alive, response)


@router.get("/health/startup", responses={503: {"model": Health}})
async def startup(request: Request, response: Response) -> Health:
    """Whether the start is over: the same as ready, under the name that startup probes have."""
    return await ready(request, response)


@router.get("/metrics", response_class=Response, responses=ALWAYS, dependencies=[Depends(Needs("metrics"))])
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(await _desk(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _told(health: EngineHealth, is_well: bool, response: Response) -> Health:
    response.status_code = 200 if is_well else 503
    return Health(status="ok" if is_well else "failed", waiting=health.num_waiting)


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk
