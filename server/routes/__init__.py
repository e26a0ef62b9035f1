"""The native HTTP routes."""

from __future__ import annotations

from server.routes import adapters, classify, operate

ROUTERS = (classify.router, adapters.router, operate.router)
