from __future__ import annotations

import os
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pytest
import torch

from server import adapter_folder
from server.base_model import BaseModel
from server.forward import Forward, load_base
from server.store import Store
from tests.corpora import write_corpus
from tests.seeded import Peer, make_adapter, make_base, peft_configs

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "llama", "mistral", "qwen2", "qwen3")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # on a busy machine two threads wait for each other longer than they compute


@pytest.fixture(scope="session")
def base_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small base model of every family."""
    root = tmp_path_factory.mktemp("bases")
    return {model_type: make_base(root / f"tiny-{model_type}", model_type) for model_type in MODEL_TYPES}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts about three topics; nobody writes into it."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session", params=MODEL_TYPES)
def model_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def base(model_type: str, base_folders: dict[str, Path]) -> BaseModel:
    return load_base(str(base_folders[model_type]), "cpu", "float32")


@pytest.fixture(scope="session")
def bert_base(base_folders: dict[str, Path]) -> BaseModel:
    return load_base(str(base_folders["bert"]), "cpu", "float32")


@pytest.fixture(scope="session")
def forward(base: BaseModel) -> Forward:
    return Forward(base)


@pytest.fixture(scope="session")
def peers(
    model_type: str, base: BaseModel, tmp_path_factory: pytest.TempPathFactory, base_folders: dict[str, Path]
) -> list[Peer]:
    """Adapters of every configuration with 2 to 150 labels, on both sides."""
    root = tmp_path_factory.mktemp(f"adapters-{model_type}")
    store = Store(base)
    found = []
    for index, (name, config) in enumerate(peft_configs(model_type).items()):
        num_labels = (2, 3, 150, 7, 5, 2, 77, 4, 3, 11, 2, 6, 9, 2)[index]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns about options that these tests choose on purpose
            oracle = make_adapter(root / name, base_folders[model_type], config, num_labels, seed=index)
        found.append(Peer(store.load(adapter_folder.read(root, name, base)), oracle))
    return found
