"""Servers for the tests of the HTTP side: adapters of two tenants, keys, and a real listener on loopback."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.routing import Mount
from starlette.types import ASGIApp

from server.base_model import BaseModel
from server.connections import web_server
from server.settings import Settings
from tests.seeded import make_adapter, peft_configs
from tests.test_adapter_folder import add_manifest

LIMIT_S = 30


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def settings_for(adapters: Path, base: BaseModel, **given: Any) -> Settings:
    fixed = {"device": "cpu", "dtype": "float32", "threads": 1, "kernels": "off", "max_inputs": 8}
    return Settings(adapters=adapters, base=str(base.folder), **(fixed | given))


def make_adapters(root: Path, base: BaseModel, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        make_adapter(root / name, base.folder, peft_configs("bert")["lora-qv"], 3, seed=seed)
        add_manifest(root / name, base)
    return root


def entry(key: str, *scopes: str, tenant: str | None = None, **given: Any) -> dict[str, Any]:
    """What the key file says of a key; its id is the key's own first word."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    return {"id": key.partition("-")[0], "sha256": digest, "tenant": tenant, "scopes": list(scopes)} | given


def write_keys(path: Path, *keys: dict[str, Any], **tenants: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"schema": 1, "keys": keys, "tenants": tenants}))
    path.chmod(0o600)
    return path


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def routes(app: Any) -> list[Any]:
    """Every route of an application, those of its routers included."""
    found: list[Any] = []
    for route in app.routes:
        inner = getattr(route, "original_router", None)
        found += [route] if inner is None else routes(inner)
    return found


def endpoints(app: Any) -> list[tuple[str, str]]:
    """Every method and path template that an application answers."""
    found = []
    for route in routes(app):
        path = f"{route.path}/x" if isinstance(route, Mount) else route.path
        found += [(method, path) for method in sorted(getattr(route, "methods", None) or {"GET"})]
    assert len(found) > 15
    return found


@contextmanager
def listening(app: ASGIApp, settings: Settings) -> Iterator[tuple[str, int]]:
    """The application behind our own connections, on a port of loopback."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        server = web_server(app, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started)
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join(LIMIT_S)


def until(holds: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.005)
