"""A peer: plain `peft` behind FastAPI, one `set_adapter` a request under a lock.

    python -m benchmarks.peers.set_adapter --adapters DIR

What the libraries give without a server of adapters, made as well as it can be: all adapters are in memory, texts are
cut into tokens outside of the lock, one padded forward pass a request, weights in one number format. peft refuses
adapters of several methods in one model, so there is a model for every method, and all of them share the tensors of one
base. Takes folders with the architecture's own head, all with the same number of labels.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import signal
import socket
import sys
import threading
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from peft import PeftModel
from pydantic import BaseModel
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from server import base_model, logs, manifest
from server.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from server.methods import method_of
from training.model import PooledClassifier

LONGEST = 512


class ClassifyRequest(BaseModel):
    """The part of our own body that the load tests use."""

    adapter_id: str
    inputs: str | list[str]


class Score(BaseModel):
    label: str
    score: float


class Prediction(Score):
    scores: list[Score]


class ClassifyResponse(BaseModel):
    adapter_id: str
    method: str
    predictions: list[Prediction]


@dataclass(frozen=True, slots=True)
class Adapter:
    """name: what peft calls it, in the model of its method."""

    method: str
    name: str
    model: PeftModel
    labels: tuple[str, ...]
    temperature: float


class Classifier:
    """Every adapter below a folder, in a model a method. Any thread may call it; a lock is held by who uses a model."""

    def __init__(self, root: Path, base: str, dtype: torch.dtype) -> None:
        folders = sorted(path.parent for path in root.glob(f"*/{CONFIG_FILE}"))
        if not folders:
            raise SystemExit(f"`{root}` holds no adapters: no folder in it has {CONFIG_FILE}")
        bare = PooledClassifier.load(base, _num_labels(folders[0]), "native").eval()
        self.models: dict[str, PeftModel] = {}
        self._adapters = {folder.name: self._load(folder, bare, f"a{i}") for i, folder in enumerate(folders)}
        for model in self.models.values():
            model.to(dtype).eval()
        self._lock = threading.Lock()
        self._tokenizer = Tokenizer.from_file(str(base_model.locate(base) / "tokenizer.json"))
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(min(LONGEST, bare.config.max_position_embeddings))

    def adapter(self, adapter_id: str) -> Adapter | None:
        return self._adapters.get(adapter_id)

    @torch.inference_mode()
    def scores(self, adapter: Adapter, texts: list[str]) -> list[list[float]]:
        """Of every text, by label."""
        encodings = self._tokenizer.encode_batch(texts)
        inputs = {
            "input_ids": torch.tensor([one.ids for one in encodings]),  # [texts, tokens]
            "attention_mask": torch.tensor([one.attention_mask for one in encodings]),
        }
        with self._lock:
            if adapter.model.active_adapter != adapter.name:
                adapter.model.set_adapter(adapter.name, inference_mode=True)
            logits: Tensor = adapter.model(**inputs).logits  # [texts, labels]
        found: list[list[float]] = (logits.float() / adapter.temperature).softmax(-1).tolist()
        return found

    def _load(self, folder: Path, bare: PreTrainedModel, name: str) -> Adapter:
        method = method_of(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["peft_type"])
        if method.peft_module is not None:
            importlib.import_module(method.peft_module)  # makes a method known that peft has not
        model = self.models.get(method.name)
        if model is None:
            model = PeftModel.from_pretrained(_twin(bare), folder, adapter_name=name)
            self.models[method.name] = model
        else:
            model.load_adapter(folder, adapter_name=name)
        labels, temperature = tuple(f"LABEL_{index}" for index in range(_num_labels(folder))), 1.0
        if (folder / manifest.FILE_NAME).exists():
            told = manifest.parse((folder / manifest.FILE_NAME).read_text(encoding="utf-8"))
            if told.pooling != "native":
                raise SystemExit(f"adapter `{folder.name}` has a head for {told.pooling} pooling; it must be native")
            labels, temperature = told.labels, told.temperature
        return Adapter(method.name, name, model, labels, temperature)


def create_app(classifier: Classifier, url: str) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        logs.event("server_started", url=url)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/classify")
    def classify(body: ClassifyRequest) -> ClassifyResponse:
        adapter = classifier.adapter(body.adapter_id)
        if adapter is None:
            raise HTTPException(404, f"adapter `{body.adapter_id}` is unknown")
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        predictions = []
        for scores in classifier.scores(adapter, texts):
            ranked = sorted(zip(adapter.labels, scores, strict=True), key=lambda pair: -pair[1])
            found = [Score(label=label, score=score) for label, score in ranked]
            predictions.append(Prediction(label=found[0].label, score=found[0].score, scores=found))
        return ClassifyResponse(adapter_id=body.adapter_id, method=adapter.method, predictions=predictions)

    return app


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--adapters", type=Path, required=True, help="folder of adapter folders")
    parser.add_argument("--base", default=base_model.EMBEDDED_ID, help="folder or hub id (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(%(default)s)")
    parser.add_argument("--threads", type=int, help="of a forward pass; torch's own choice if not given")
    flags = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again once it has stopped
    if flags.threads:
        torch.set_num_threads(flags.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of heads that are not in the base
        classifier = Classifier(flags.adapters, flags.base, getattr(torch, flags.dtype))
    with socket.create_server(("127.0.0.1", flags.port), backlog=2048) as listener:
        app = create_app(classifier, f"http://127.0.0.1:{listener.getsockname()[1]}")
        uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="error")).run(sockets=[listener])
    return 0


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its own modules, which peft may replace, on the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _num_labels(folder: Path) -> int:
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        last = max(key for key in file.keys() if key.endswith("classifier.weight"))  # noqa: SIM118
        return int(file.get_slice(last).get_shape()[0])


if __name__ == "__main__":
    sys.exit(main())
