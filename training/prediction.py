"""What an adapter answers to the rows of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from server import base_model
from server.errors import DataError
from server.families import Family
from server.tokenizer import Tokenizer
from training.adapter_reader import TrainedAdapter
from training.data import Row
from training.texts import Padding, Texts

BATCH_SIZE = 64


Item = Mapping[str, Any]
"""A text as `Texts` has it."""


def encode(adapter: TrainedAdapter, rows: Sequence[Row]) -> list[Item]:
    """The rows as a model takes them, cut to the adapter's length."""
    texts = Texts(rows, np.zeros(len(rows)), Tokenizer(adapter.base_folder), adapter.manifest.max_length)
    return list(texts.items)


@torch.inference_mode()
def logits_of(
    model: nn.Module, family: Family, texts: Sequence[Item], show_progress: bool = False
) -> NDArray[np.float64]:
    """Logits [texts, labels] in the given order, computed in float32, texts of similar length together.

    model: of transformers or PEFT. Raises DataError where they are not finite.
    """
    device = base_model.choose_device("auto")
    config: Any = model.config
    model.to(device).eval()
    order = sorted(range(len(texts)), key=lambda position: -len(texts[position]["input_ids"]))
    found: NDArray[np.float64] | None = None
    with (
        _pad_id_of(config, texts) as pad_id,
        tqdm(total=len(texts), unit="text", disable=not show_progress) as bar,
    ):
        padding = Padding(pad_id, family.takes_type_ids(config))
        for start in range(0, len(order), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            batch = padding([texts[position] for position in chosen])
            batch.pop("labels")
            logits = model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits
            if found is None:
                found = np.empty((len(texts), logits.shape[1]))
            found[chosen] = logits.double().cpu().numpy()
            bar.update(len(chosen))
    assert found is not None, "there is at least one row"
    if not bool(np.isfinite(found).all()):
        raise DataError("the adapter's logits are not finite: its weights are of no use")
    return found


@contextmanager
def _pad_id_of(config: Any, texts: Sequence[Item]) -> Iterator[int]:
    """The id of padding, by which the stock decoder heads look for it; where there is none, one that no text has."""
    told = config.pad_token_id
    if told is None:
        used = {token for text in texts for token in text["input_ids"]}
        config.pad_token_id = next(i for i in range(config.vocab_size) if i not in used)
    try:
        yield config.pad_token_id
    finally:
        config.pad_token_id = told
