"""The native HTTP routes."""

from __future__ import annotations

from server.routes import adapters, batch, classify, decision, operate

ROUTERS = (classify.router, batch.router, adapters.router, decision.router, operate.router)
