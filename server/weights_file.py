"""A safetensors file, read in two steps: what it says it holds, then its weights.

The format: 8 bytes of header length, a JSON object that describes the tensors, then their bytes without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from server.errors import AdapterDamaged

MAX_HEADER_BYTES = 16 << 20
STORED_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a file's header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorSpec]:
    """What a file says it holds: enough to refuse it before its weights are read. Raises AdapterDamaged."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise ValueError(f"its header has {length} bytes")
            record = json.loads(file.read(length))
            size = path.stat().st_size - 8 - length
        specs = {
            key: TensorSpec(str(tensor["dtype"]), tuple(int(part) for part in tensor["shape"]))
            for key, tensor in record.items()
            if key != "__metadata__"
        }
        end = max((int(record[key]["data_offsets"][1]) for key in specs), default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise AdapterDamaged(f"`{path.name}` cannot be read: {error!r}") from error
    if end != size:
        raise AdapterDamaged(f"`{path.name}` cannot be read: it holds {size} bytes of weights, its header says {end}")
    return specs


def load_tensors(data: bytes, specs: Mapping[str, TensorSpec], name: str) -> dict[str, Tensor]:
    """The tensors of a whole file, which must be those of its header, and finite. Raises AdapterDamaged."""
    try:
        tensors = load_safetensors(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise AdapterDamaged(f"`{name}` cannot be read: {error}") from error
    if {key: tuple(tensor.shape) for key, tensor in tensors.items()} != {key: specs[key].shape for key in specs}:
        raise AdapterDamaged(f"`{name}` changed while it was read")
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterDamaged(f"tensor `{key}` holds values that are not finite")
    return tensors
