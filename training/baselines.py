"""What an adapter is compared with: the commonest label, a linear probe on the frozen base, all of it trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from server import base_model
from server.tokenizer import Tokenizer
from training.data import Splits
from training.fit import EVALUATION_BATCH, true_answers
from training.floor import Predict, fit_logistic
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


def fit_majority(splits: Splits) -> Predict:
    """Every label's share of the training rows, whatever the text says."""
    counts = np.bincount(true_answers(splits)["train"], minlength=len(splits.labels))
    logits, rows = np.log((counts + 1) / (counts + 1).sum()), splits.by_name()
    return lambda name: np.tile(logits, (len(rows[name]), 1))


def fit_probe(splits: Splits, folder: Path, plan: Plan, strength: float) -> Predict:
    """A logistic regression on what the frozen base makes of the texts, pooled.

    strength: C of scikit-learn, the inverse of the regularisation.
    """
    family = base_model.family_of_folder(folder)
    model = PooledClassifier.load(str(folder), len(splits.labels), plan.pooling).eval()
    setattr(model, family.head, nn.Identity())
    model.to(base_model.choose_device("auto"))
    padding = Padding(model.config.pad_token_id or 0, family.takes_type_ids(model.config))
    tokenizer, truth, rows = Tokenizer(folder), true_answers(splits), splits.by_name()

    def embed(name: str) -> Values:
        return _embed(model, Texts(rows[name], truth[name], tokenizer, plan.max_length, sort=True), padding)

    return fit_logistic(embed, truth["train"], len(splits.labels), strength)


@torch.no_grad()
def _embed(model: PreTrainedModel, texts: Texts, padding: Padding) -> Values:
    """[rows, hidden], in the order of the rows."""
    parts = []
    for batch in DataLoader(texts, EVALUATION_BATCH, collate_fn=padding):
        batch.pop("labels")
        inputs = {key: value.to(model.device) for key, value in batch.items()}
        parts.append(model(**inputs).logits.double().cpu().numpy())
    pooled = np.empty((len(texts), parts[0].shape[1]))
    pooled[texts.order] = np.concatenate(parts)
    return pooled
