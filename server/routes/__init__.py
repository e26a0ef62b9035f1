"""The native HTTP routes."""

from __future__ import annotations

from server.routes import adapters, batch, classify, operate

ROUTERS = (classify.router, batch.router, adapters.router, operate.router)
