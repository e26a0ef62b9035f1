"""An adapter in memory: the bytes of its file on the base's device, and views into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from server.adapter_folder import AdapterFolder
from server.base_model import BaseModel
from server.heads import Head
from server.manifest import Pooling
from server.methods import Method
from server.methods.base import ATTENTION, KeysValues, widened


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAdapter:
    """One version of one adapter, ready for the forward pass.

    rows: site name -> the method's row there, views of the file's bytes on the base's device. position_offset: places
    that its prefix takes. pooling: what the head reads; `native` only where the base's own pooling is none of ours.
    """

    key: str
    method: Method[Any]
    pooling: Pooling
    rows: Mapping[str, object]
    head: Head
    resident_bytes: int
    position_offset: int = 0
    is_half: bool = False

    @property
    def num_virtual_tokens(self) -> int:
        """Rows that the adapter puts in front of every text's keys and values."""
        prefix = self.rows.get(ATTENTION)
        return prefix.keys.shape[2] if isinstance(prefix, KeysValues) else 0

    def row(self, site: str) -> Any:
        """The method's row at a site in float32, or None."""
        row = self.rows.get(site)
        return widened(row) if self.is_half and row is not None else row


def place(folder: AdapterFolder, key: str, block: Tensor, base: BaseModel) -> LoadedAdapter:
    """Let the method make its rows from views of a file's bytes, which are on the base's device already."""
    by_site: dict[str, dict[str, Tensor]] = {}
    for (site, role), spec in folder.tensors.items():
        by_site.setdefault(site, {})[role] = spec.view(block)
    head = {name: spec.view(block) for name, spec in folder.head.items()}
    pooling = folder.manifest.pooling
    return LoadedAdapter(
        key=key,
        method=folder.method,
        pooling=base.native_pooling if pooling == "native" else pooling,
        rows={site: folder.method.bind(folder.config, base.sites[site], roles) for site, roles in by_site.items()},
        head=Head(folder.head_layers, {**base.native_head.tensors, **head}),
        resident_bytes=block.nbytes,
        position_offset=folder.position_offset,
        is_half=any(spec.dtype != "F32" for spec in folder.tensors.values()),
    )
