"""The clients in `docs/wire-formats.md` do what the page says."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import constants

from server.base_model import BaseModel
from tests.seeded import make_adapter, peft_configs
from tests.wired import Wired, wired

PAGE = (Path(__file__).parent.parent / "docs" / "wire-formats.md").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:8000"


@pytest.fixture(scope="module")
def server(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    root = tmp_path_factory.mktemp("served")
    make_adapter(root / "device-reviews", bert_base.folder, peft_configs("bert")["lora-qv"], 3, seed=0)
    with wired(root, bert_base) as server:
        yield server


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_clients_print_what_they_were_answered(
    server: Wired, code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the client refuses even loopback otherwise
    assert ADDRESS in code
    names: dict[str, object] = {}
    exec(code.replace(ADDRESS, server.url.removeprefix("http://")), names)
    printed = capsys.readouterr().out
    assert "LABEL_" in printed or "device-reviews" in printed


@pytest.mark.parametrize("line", re.findall(r"```sh\n(curl .*?)```", PAGE, re.DOTALL))
def test_the_curl_lines_are_answered(server: Wired, line: str) -> None:
    arguments = shlex.split(line)
    body = json.loads(arguments[arguments.index("-d") + 1])
    response = httpx2.post(arguments[2].replace(f"http://{ADDRESS}", server.url), json=body)
    assert response.status_code == 200
    assert len(response.json()) == 2


def test_the_page_names_every_route_of_every_wire(server: Wired) -> None:
    specification = server.get("/openapi.json").json()
    tags = {"Hugging Face", "text-embeddings-inference", "vLLM", "SGLang", "Open Inference Protocol"}
    found = {
        re.sub(r"\{(model|adapter_id)\}", "{id}", path).replace("/versions/{version}", "")
        for path, operations in specification["paths"].items()
        for operation in operations.values()
        if tags & set(operation.get("tags", ()))
    }
    assert len(found) == 21
    for path in found:
        assert re.search(rf"[` ]{re.escape(path)}`", PAGE), path
