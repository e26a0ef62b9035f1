"""What the tests of the other servers' routes share: a service that really listens, with adapters of every problem."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI, Request

from server.app import create_app
from server.base_model import BaseModel
from server.callers import ANYBODY
from server.desk import Visit, visit
from server.service import Service
from server.settings import Settings
from tests.seeded import make_adapter, peft_configs
from tests.serving import listening
from tests.test_adapter_folder import add_manifest

MAX_INPUTS = 8
MAX_BODY_BYTES = 100_000
MAX_TOKENS = 12


@dataclass(frozen=True)
class Wired:
    """A service, its application, and the address at which it listens."""

    service: Service
    app: FastAPI
    url: str

    def post(self, path: str, body: object = None, headers: dict[str, str] | None = None) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, headers=headers)

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx2.Response:
        return httpx2.get(self.url + path, headers=headers)

    def native(self, adapter_id: str, inputs: object, **options: Any) -> list[dict[str, float]]:
        """What the native route says: the score of every label, for each input."""
        response = self.post("/v1/classify", {"adapter_id": adapter_id, "inputs": inputs, **options})
        assert response.status_code == 200, response.text
        return [{one["label"]: one["score"] for one in each["scores"]} for each in response.json()["predictions"]]

    def version(self, adapter_id: str) -> str:
        return str(self.get(f"/v1/adapters/{adapter_id}").json()["version"])


def make_adapters(root: Path, base: BaseModel) -> None:
    """`reviews` and `intents` (one of three labels), `tags` (several of four), `stars` (a number), `cut` (damaged)."""
    for seed, (name, config) in enumerate({"intents": "lora-qv", "reviews": "ia3-paper"}.items()):
        make_adapter(root / name, base.folder, peft_configs("bert")[config], 3, seed=seed)
        add_manifest(root / name, base, temperature=2.0, max_length=MAX_TOKENS)
    make_adapter(root / "tags", base.folder, peft_configs("bert")["lora-qv"], 4, seed=10)
    add_manifest(root / "tags", base, problem_type="multi_label", threshold=0.45)
    make_adapter(root / "stars", base.folder, peft_configs("bert")["head"], 1, seed=11)
    add_manifest(root / "stars", base, problem_type="regression", labels=("stars",))
    make_adapter(root / "cut", base.folder, peft_configs("bert")["head"], 2, seed=12)
    weights = root / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


@contextmanager
def wired(root: Path, base: BaseModel, **changed: Any) -> Iterator[Wired]:
    """Serve the adapters below a folder."""
    settings = Settings(
        adapters=root,
        base=str(base.folder),
        device="cpu",
        dtype="float32",
        threads=1,
        max_inputs=MAX_INPUTS,
        **changed,
    )
    with Service(settings) as service:
        app = create_app(service.desk, MAX_BODY_BYTES)
        with listening(app, settings) as (host, port):
            yield Wired(service, app, f"http://{host}:{port}")


@contextmanager
def seeing(wired: Wired, *patterns: str) -> Iterator[None]:
    """Whoever asks meanwhile may know of adapters of these names only."""

    async def narrow(request: Request) -> Visit:
        return replace(await visit(request), caller=replace(ANYBODY, patterns=patterns))

    wired.app.dependency_overrides[visit] = narrow
    try:
        yield
    finally:
        wired.app.dependency_overrides.clear()
