"""A safetensors file, read in two steps: what it says it holds, then its weights as one block of memory.

The format: 8 bytes of header length, a JSON object that describes the tensors, then their bytes without gaps.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import torch
from torch import Tensor

from server.adapter_files import MAX_WEIGHTS_BYTES
from server.errors import AdapterDamaged

MAX_HEADER_BYTES = 16 << 20
MAX_DIMENSIONS = 8
STORED_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHARED_HEADER_BYTES, NUM_SHARED_HEADERS = 64 << 10, 64
MAPPED_BYTES = 64 << 10
"""From this size on a block is a mapping of its own: freeing it gives the memory back at once, page by page."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a file's header says of one tensor; start and stop: its bytes within the block."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def view(self, block: Tensor) -> Tensor:
        """The tensor itself, a view of a block of bytes."""
        return block[self.start : self.stop].view(STORED_DTYPES[self.dtype]).view(self.shape)


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file whose header has been read. header_bytes: where the weights begin. num_bytes: how many they are.

    header_sha256: of these first bytes, so that the weights are known to belong to this header.
    """

    path: Path
    specs: Mapping[str, TensorSpec]
    header_bytes: int
    header_sha256: str
    num_bytes: int


def read_header(path: Path) -> WeightsFile:
    """What a file says it holds: enough to refuse it before its weights are read. Raises AdapterDamaged."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise ValueError(f"its header has {length} bytes")
            head += file.read(length)
            num_bytes = os.fstat(file.fileno()).st_size - 8 - length
    except (OSError, ValueError) as error:
        raise AdapterDamaged(f"`{path.name}` cannot be read: {error!r:.200}") from error
    specs, end = (_parse_alike if length <= SHARED_HEADER_BYTES else _parse)(head[8:], path.name)
    if end != num_bytes:
        raise AdapterDamaged(
            f"`{path.name}` cannot be read: it holds {num_bytes} bytes of weights, its header says {end}"
        )
    if num_bytes > MAX_WEIGHTS_BYTES:
        raise AdapterDamaged(f"`{path.name}` has {num_bytes} bytes of weights, at most {MAX_WEIGHTS_BYTES} are read")
    return WeightsFile(path, specs, 8 + length, hashlib.sha256(head).hexdigest(), num_bytes)


def sha256_of(path: Path) -> str:
    """The digest of a whole file. Raises AdapterDamaged."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AdapterDamaged(f"`{path.name}` cannot be read: {error.strerror}") from error


def check_digest(weights: WeightsFile, sha256: str) -> None:
    """Raises AdapterDamaged unless a file is the one that was to be."""
    found = sha256_of(weights.path)
    if found != sha256:
        raise AdapterDamaged(_other_digest(weights.path, found, sha256))


def read_block(weights: WeightsFile, sha256: str) -> Tensor:
    """The weights of a whole file as it was when its digest was taken: uint8 [bytes], finite.

    Raises AdapterDamaged, and OSError where the file cannot be read at the moment or is not there: its folder may be
    mounted again.
    """
    name = weights.path.name
    try:
        with weights.path.open("rb") as file:
            digest = hashlib.sha256(file.read(weights.header_bytes))
            if digest.hexdigest() != weights.header_sha256:
                raise AdapterDamaged(f"`{name}` has another header than when it was checked; it was replaced")
            block = _fill(file, weights.num_bytes)
            digest.update(block.numpy().data)
            digest.update(file.read(1))  # nothing, unless the file grew
    except IsADirectoryError as error:
        raise AdapterDamaged(f"`{name}` is not a file any more: {error.strerror}") from error
    if digest.hexdigest() != sha256:
        raise AdapterDamaged(_other_digest(weights.path, digest.hexdigest(), sha256))
    if not bool(torch.isfinite(_as_one(block, weights)).all()):
        key = next(key for key, spec in weights.specs.items() if not bool(torch.isfinite(spec.view(block)).all()))
        raise AdapterDamaged(f"tensor `{key}` holds values that are not finite")
    return block


def _other_digest(path: Path, found: str, wanted: str) -> str:
    return f"`{path.name}` has sha256 {found[:12]}, it was to be {wanted[:12]}"


def _parse(header: bytes, name: str) -> tuple[Mapping[str, TensorSpec], int]:
    """The tensors of a header, which lie behind one another, and the byte at which the last one ends."""
    try:
        record = json.loads(header, object_pairs_hook=_without_doubles)
        json.dumps(record, ensure_ascii=False).encode("utf-8")  # an escape may hide half a surrogate pair
        specs = {key: _spec(tensor) for key, tensor in record.items() if key != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterDamaged(f"`{name}` cannot be read: {error!r:.200}") from error
    for key, spec in specs.items():
        _check(key, spec)
    end = 0
    for spec in sorted(specs.values(), key=lambda spec: spec.start):
        if spec.start != end:
            raise AdapterDamaged(f"`{name}` cannot be read: its tensors overlap or leave gaps at byte {end}")
        end = spec.stop
    return MappingProxyType(specs), end


_parse_alike = lru_cache(NUM_SHARED_HEADERS)(_parse)
"""Adapters trained alike have the same header, byte for byte: it is parsed, checked and kept once."""


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a name occurs twice")
    return record


def _spec(record: Mapping[str, object]) -> TensorSpec:
    dtype, shape, offsets = record["dtype"], record["shape"], record["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError(f"a tensor is described by {record!r:.80}")
    if len(offsets) != 2 or len(shape) > MAX_DIMENSIONS or any(type(one) is not int for one in (*shape, *offsets)):
        raise ValueError(f"a tensor has the shape {shape!r:.80} and the bytes {offsets!r:.80}")
    return TensorSpec(str(dtype), tuple(shape), *offsets)


def _check(key: str, spec: TensorSpec) -> None:
    if spec.dtype not in STORED_DTYPES:
        raise AdapterDamaged(f"tensor `{key:.200}` is {spec.dtype:.20}, it must be one of {', '.join(STORED_DTYPES)}")
    item = STORED_DTYPES[spec.dtype].itemsize
    if any(size < 0 for size in spec.shape) or spec.stop - spec.start != prod(spec.shape) * item:
        raise AdapterDamaged(f"tensor `{key:.200}` of shape {list(spec.shape)} does not fill the bytes that it has")
    if spec.start % item:
        raise AdapterDamaged(
            f"tensor `{key:.200}` begins at byte {spec.start}, which is not aligned; save the file anew"
        )


def _fill(file: BinaryIO, num_bytes: int) -> Tensor:
    if num_bytes < MAPPED_BYTES:
        return torch.frombuffer(bytearray(file.read(num_bytes).ljust(num_bytes, b"\0")), dtype=torch.uint8)
    mapping = mmap.mmap(-1, num_bytes)  # freed with the last tensor that views it
    file.readinto(mapping)  # type: ignore[attr-defined]  # typeshed's BinaryIO lacks it; a short read fails the digest
    return torch.frombuffer(mapping, dtype=torch.uint8)


def _as_one(block: Tensor, weights: WeightsFile) -> Tensor:
    """The block as one flat tensor where all in it has one format, which is the usual case."""
    dtypes = {spec.dtype for spec in weights.specs.values()}
    if len(dtypes) == 1:
        return block.view(STORED_DTYPES[dtypes.pop()])
    return torch.cat([spec.view(block).flatten().float() for spec in weights.specs.values()])
