"""What an adapter is compared with: the commonest label, a linear probe on the frozen base, all of it trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from server import base_model
from server.tokenizer import Tokenizer
from training.data import Splits
from training.fit import EVALUATION_BATCH, true_answers
from training.floor import logistic_logits
from training.metrics import Values
from training.model import PooledClassifier
from training.recipe import Plan
from training.texts import Padding, Texts


@dataclass(frozen=True, slots=True)
class FullFineTuning:
    """Trains every weight of the base; gives no adapter, but a model of its own."""

    name: str = "full"
    options: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-2
    weight_decay: float = 0.01

    def num_virtual_tokens(self, options: Mapping[str, float]) -> int:
        """None."""
        return 0


def majority(splits: Splits) -> Mapping[str, Values]:
    """Every label's share of the training rows, whatever the text says."""
    counts = np.bincount(true_answers(splits)["train"], minlength=len(splits.labels))
    logits = np.log((counts + 1) / (counts + 1).sum())
    return {name: np.tile(logits, (len(rows), 1)) for name, rows in splits.by_name().items()}


def probe(splits: Splits, folder: Path, plan: Plan, strength: float) -> Mapping[str, Values]:
    """A logistic regression on the texts' pooled embeddings, each computed once.

    strength: C of scikit-learn, the inverse of the regularisation.
    """
    return logistic_logits(embed(splits, folder, plan), true_answers(splits)["train"], len(splits.labels), strength)


@torch.no_grad()
def embed(splits: Splits, folder: Path, plan: Plan) -> Mapping[str, Values]:
    """What the frozen base makes of every text, pooled: [rows, hidden]."""
    family = base_model.family_of_folder(folder)
    model = PooledClassifier.load(str(folder), len(splits.labels), plan.pooling).eval()
    setattr(model, family.head, nn.Identity())
    device = base_model.choose_device("auto")
    model.to(device)
    padding = Padding(model.config.pad_token_id or 0, family.takes_type_ids(model.config))
    tokenizer, truth = Tokenizer(folder), true_answers(splits)
    found = {}
    for name, rows in splits.by_name().items():
        texts = Texts(rows, truth[name], tokenizer, plan.max_length, sort=True)
        batches = DataLoader(texts, EVALUATION_BATCH, collate_fn=padding)
        parts = []
        for batch in batches:
            batch.pop("labels")
            batch = {key: value.to(device) for key, value in batch.items()}
            parts.append(model(**batch).logits.double().cpu().numpy())
        pooled = np.empty((len(rows), parts[0].shape[1]))
        pooled[texts.order] = np.concatenate(parts)
        found[name] = pooled
    return found
