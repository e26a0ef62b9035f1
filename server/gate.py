"""What stands between the network and the desk, as the settings want it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from server import logs
from server.keys import Keys
from server.settings import Settings
from server.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Gate:
    """keys: None lets everybody in. cors_origins: of web pages that may call this server."""

    keys: Keys | None = None
    read_s: float = 30.0
    cors_origins: tuple[str, ...] = ()
    logs_access: bool = False
    tracing: Tracing | None = None
    has_pages: bool = True


@contextmanager
def open_gate(settings: Settings) -> Iterator[Gate]:
    """Raises SettingsError for a key file or a collector that cannot be used."""
    keys = Keys(settings.keys) if settings.keys is not None else None
    if keys is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
        logs.event("server_open", host=settings.host, better="--keys FILE, or a proxy that asks who comes")
    tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
    origins = tuple(origin.strip() for origin in settings.cors_origins.split(",") if origin.strip())
    try:
        yield Gate(keys, settings.read_s, origins, settings.access_log, tracing, settings.pages)
    finally:
        if tracing is not None:
            tracing.close()
