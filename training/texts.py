"""Texts as the Trainer takes them: token ids from the server's own tokenizer, padded batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from server.tokenizer import Tokenizer
from training.data import Row


class Texts(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows as token ids, with the tokenizer that the server uses."""

    def __init__(
        self,
        rows: Sequence[Row],
        targets: NDArray[Any],
        tokenizer: Tokenizer,
        max_length: int,
        sort: bool = False,
    ) -> None:
        """targets: what the loss compares with, one entry a row (`training.data.targets`). sort: shortest text first.

        order: the row that each entry is made of.
        """
        self.items: list[dict[str, Any]] = []
        for row, target in zip(rows, targets, strict=True):
            encoded = tokenizer.encode(row.text, row.text_pair, max_length, truncate=True, field="text")
            self.items.append({"input_ids": encoded.token_ids, "token_type_ids": encoded.type_ids, "labels": target})
        self.order = np.arange(len(rows))
        if sort:
            self.order = np.argsort([len(item["input_ids"]) for item in self.items], kind="stable")
            self.items = [self.items[row] for row in self.order]

    def token_ids(self) -> set[int]:
        """Every token that occurs."""
        return {token for item in self.items for token in item["input_ids"]}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.items[position]


@dataclass(frozen=True, slots=True)
class Padding:
    """Pads a batch on the right to its longest text."""

    pad_id: int
    uses_type_ids: bool

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        ids = [torch.tensor(item["input_ids"]) for item in items]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_id),
            "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
            "labels": torch.from_numpy(np.stack([item["labels"] for item in items])),
        }
        if self.uses_type_ids:
            types = [torch.tensor(item["token_type_ids"]) for item in items]
            batch["token_type_ids"] = pad_sequence(types, batch_first=True)
        return batch
