"""What an adapter answers to the rows of a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from server import base_model
from server.errors import DataError
from server.tokenizer import Tokenizer
from training.adapter_reader import TrainedAdapter
from training.data import Row
from training.texts import Padding, Texts

BATCH_SIZE = 64


def encode(adapter: TrainedAdapter, rows: Sequence[Row]) -> tuple[Texts, Padding]:
    """The rows as a model takes them, and what pads batches of them."""
    texts = Texts(rows, np.zeros(len(rows)), Tokenizer(adapter.base_folder), adapter.manifest.max_length)
    config = adapter.model.config
    if config.pad_token_id is None:
        # the stock decoder heads look for padding by its id: take one that no text has
        used = texts.token_ids()
        config.pad_token_id = next(i for i in range(config.vocab_size) if i not in used)
    return texts, Padding(config.pad_token_id, adapter.family.takes_type_ids(config))


@torch.inference_mode()
def logits_of(
    model: torch.nn.Module, texts: Texts, padding: Padding, show_progress: bool = False
) -> NDArray[np.float64]:
    """Logits [rows, labels] in the rows' order, computed in float32, texts of similar length together."""
    device = base_model.choose_device("auto")
    model.to(device).eval()
    order = sorted(range(len(texts)), key=lambda position: -len(texts[position]["input_ids"]))
    found: NDArray[np.float64] | None = None
    bar = tqdm(total=len(texts), unit="text", disable=not show_progress)
    with bar:
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
