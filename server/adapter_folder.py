"""Read an adapter folder from disk and refuse, with a reason, everything that could answer wrongly.

Nothing read here is trusted: names may not leave the root, pickles are never opened, and every size,
shape and dtype is checked before memory for the adapter is taken.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from server import manifest as manifest_format
from server.base_model import BaseModel
from server.errors import AdapterDamaged, AdapterMismatch, MethodUnsupported, PathEscape, PickleRefused
from server.manifest import Manifest
from server.methods import Method, method_of
from server.methods.base import KEY_PREFIX

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
MAX_TEXT_BYTES = 16 << 20
MAX_WEIGHTS_BYTES = 4 << 30
ADAPTER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
STORED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """A checked adapter, its tensors still as stored on disk.

    tensors: (site name, role) -> tensor. head_weight [labels, hidden], head_bias [labels] or None.
    warnings: what is unknown about an adapter that came without a manifest.
    """

    adapter_id: str
    version: str
    method: Method[Any]
    config: Mapping[str, object]
    manifest: Manifest
    tensors: Mapping[tuple[str, str], Tensor]
    head_weight: Tensor
    head_bias: Tensor | None
    warnings: tuple[str, ...]


def scan(root: Path) -> list[str]:
    """Names of the folders below `root` that may be adapters; hidden ones are being written."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def read(root: Path, name: str, base: BaseModel) -> AdapterFolder:
    """Read and check the adapter folder `name` below `root` for a base. Raises AdapterRefused."""
    files = _read_files(root, name)
    config = _parse_config(files[CONFIG_FILE])
    method = method_of(config.get("peft_type"))
    method.check_config(config)
    if config.get("task_type") not in (None, "SEQ_CLS"):
        raise MethodUnsupported(f"`task_type` is {config['task_type']!r}; this server classifies text (SEQ_CLS)")
    tensors, head_weight, head_bias = _sort_tensors(_parse_weights(files[WEIGHTS_FILE]), method, base)
    _check_shapes(tensors, method, config, base)
    _check_head(head_weight, head_bias, base)
    if manifest_format.FILE_NAME in files:
        manifest = _own_manifest(files, method, base, len(head_weight))
        warnings: tuple[str, ...] = ()
    else:
        manifest, warnings = _foreign_manifest(files, config, method, base, len(head_weight))
    if manifest.pooling == "native" and not base.has_native_pool:
        raise AdapterMismatch(
            f"the head needs the base's own pooling layer, and base `{base.names[0]}` has no weights for it"
        )
    digest = hashlib.sha256(b"".join(files[part] for part in sorted(files)))
    return AdapterFolder(
        adapter_id=name,
        version=digest.hexdigest()[:12],
        method=method,
        config=config,
        manifest=manifest,
        tensors=tensors,
        head_weight=head_weight,
        head_bias=head_bias,
        warnings=warnings,
    )


def _read_files(root: Path, name: str) -> dict[str, bytes]:
    """The files of a folder, each read once, so that what is checked is what is used."""
    if not ADAPTER_ID.fullmatch(name):
        raise PathEscape(
            f"adapter name {name!r} must be 1 to 128 of A-Z a-z 0-9 . _ - and begin with a letter or digit"
        )
    home, folder = root.resolve(), root / name
    if not folder.resolve().is_relative_to(home):
        raise PathEscape(f"adapter folder `{name}` leads out of the adapter root")
    if not (folder / WEIGHTS_FILE).exists():
        pickles = [file for file in PICKLE_FILES if (folder / file).exists()]
        if pickles:
            raise PickleRefused(
                f"`{pickles[0]}` is a pickle file, which can run code; save the adapter as {WEIGHTS_FILE}"
            )
    limits = {CONFIG_FILE: MAX_TEXT_BYTES, WEIGHTS_FILE: MAX_WEIGHTS_BYTES}
    if (folder / manifest_format.FILE_NAME).exists():
        limits[manifest_format.FILE_NAME] = MAX_TEXT_BYTES
    return {file: _read_file(folder / file, home, limit) for file, limit in limits.items()}


def _read_file(path: Path, home: Path, limit: int) -> bytes:
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(home):
            raise PathEscape(f"`{path.name}` leads out of the adapter root")
        if not real.is_file():
            raise AdapterDamaged(f"`{path.name}` is not a file")
        size = real.stat().st_size
        if size > limit:
            raise AdapterDamaged(f"`{path.name}` has {size} bytes, at most {limit} are read")
        return real.read_bytes()
    except FileNotFoundError as error:
        raise AdapterDamaged(f"`{path.name}` is missing") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise AdapterDamaged(f"`{path.name}` cannot be read: {error}") from error


def _parse_config(data: bytes) -> dict[str, object]:
    try:
        config = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterDamaged(f"`{CONFIG_FILE}` is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterDamaged(f"`{CONFIG_FILE}` holds {type(config).__name__}, not an object")
    return config


def _parse_weights(data: bytes) -> dict[str, Tensor]:
    try:
        return load_safetensors(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise AdapterDamaged(f"`{WEIGHTS_FILE}` cannot be read: {error}") from error


def _sort_tensors(
    stored: Mapping[str, Tensor], method: Method[Any], base: BaseModel
) -> tuple[dict[tuple[str, str], Tensor], Tensor, Tensor | None]:
    """Split a file into adapter tensors by (site, role) and the head; nothing may be left over."""
    tensors: dict[tuple[str, str], Tensor] = {}
    head: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        if tensor.dtype not in STORED_DTYPES:
            raise AdapterDamaged(f"tensor `{key}` is {tensor.dtype}, it must be float32, float16 or bfloat16")
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterDamaged(f"tensor `{key}` holds values that are not finite")
        name = key.removeprefix(KEY_PREFIX)
        if name in (f"{base.family.head}.weight", f"{base.family.head}.bias"):
            head[name.rpartition(".")[2]] = tensor
            continue
        role = next((role for role in method.roles if name.endswith(f".{role}")), None)
        if role is None or name == key:
            raise AdapterDamaged(
                f"tensor `{key}` is no part of a {method.name} adapter with a `{base.family.head}` head"
            )
        tensors[name.removesuffix(f".{role}"), role] = tensor
    if "weight" not in head:
        raise AdapterDamaged(f"the file holds no classification head (`{KEY_PREFIX}{base.family.head}.weight`)")
    return tensors, head["weight"], head.get("bias")


def _check_shapes(
    tensors: Mapping[tuple[str, str], Tensor], method: Method[Any], config: Mapping[str, object], base: BaseModel
) -> None:
    if not tensors:
        raise AdapterDamaged(f"the file holds no {method.name} tensors ({', '.join(method.roles)})")
    for site_name, role in tensors:
        if site_name not in base.sites:
            raise AdapterMismatch(
                f"the adapter changes `{site_name}`, which is no linear layer that adapters may change in base "
                f"`{base.names[0]}` (family {base.family.name})"
            )
        missing = [other for other in method.roles if (site_name, other) not in tensors]
        if missing:
            raise AdapterDamaged(f"`{site_name}` has `{role}` without `{missing[0]}`")
        stored = tuple(tensors[site_name, role].shape)
        wanted = method.shape(config, base.sites[site_name], role, stored)
        if stored != wanted:
            raise AdapterMismatch(
                f"`{site_name}.{role}` has shape {list(stored)}; on base `{base.names[0]}` its config asks for "
                f"{list(wanted)}"
            )


def _check_head(weight: Tensor, bias: Tensor | None, base: BaseModel) -> None:
    if weight.ndim != 2 or not 1 <= weight.shape[0] <= manifest_format.MAX_LABELS:
        raise AdapterDamaged(f"the head has shape {list(weight.shape)}, it must be [labels, {base.hidden_size}]")
    if weight.shape[1] != base.hidden_size:
        raise AdapterMismatch(
            f"the head reads {weight.shape[1]} features; base `{base.names[0]}` gives {base.hidden_size}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise AdapterDamaged(f"the head's bias has shape {list(bias.shape)} for {len(weight)} labels")
    if bias is None and base.family.head_has_bias:
        raise AdapterDamaged("the head has no bias")


def _own_manifest(files: Mapping[str, bytes], method: Method[Any], base: BaseModel, num_labels: int) -> Manifest:
    try:
        text = files[manifest_format.FILE_NAME].decode("utf-8")
    except UnicodeDecodeError as error:
        raise AdapterDamaged(f"`{manifest_format.FILE_NAME}` is not UTF-8: {error}") from error
    manifest = manifest_format.parse(text)
    if manifest.method != method.name:
        raise AdapterDamaged(f"the manifest says method `{manifest.method}`, adapter_config.json says `{method.name}`")
    if manifest.base_fingerprint != base.fingerprint:
        raise AdapterMismatch(
            f"trained on base `{manifest.base_name}` ({manifest.base_fingerprint[:12]}), this server holds "
            f"`{base.names[0]}` ({base.fingerprint[:12]}); retrain it or start with that base"
        )
    digest = hashlib.sha256(files[WEIGHTS_FILE]).hexdigest()
    if manifest.weights_sha256 != digest:
        raise AdapterDamaged(
            f"`{WEIGHTS_FILE}` has sha256 {digest[:12]}, the manifest says {manifest.weights_sha256[:12]}"
        )
    if len(manifest.labels) != num_labels:
        raise AdapterDamaged(f"the manifest names {len(manifest.labels)} labels, the head has {num_labels}")
    if manifest.max_length > base.max_length:
        raise AdapterMismatch(
            f"`max_length` is {manifest.max_length}; base `{base.names[0]}` takes {base.max_length} tokens"
        )
    return manifest


def _foreign_manifest(
    files: Mapping[str, bytes], config: Mapping[str, object], method: Method[Any], base: BaseModel, num_labels: int
) -> tuple[Manifest, tuple[str, ...]]:
    """What can be said of a folder without `adapter.json`: it uses the architecture's own head."""
    recorded = str(config.get("base_model_name_or_path") or "")
    known = {name.rpartition("/")[2].lower() for name in base.names}
    matches = recorded.rstrip("/").rpartition("/")[2].lower() in known
    looks_like_id = bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", recorded)) and not recorded.startswith(".")
    if not matches and looks_like_id:
        raise AdapterMismatch(
            f"adapter_config.json names base `{recorded}`, this server holds `{base.names[0]}`; start with that base, "
            "or correct `base_model_name_or_path` if it is the same model"
        )
    warnings = [f"no {manifest_format.FILE_NAME}: labels are LABEL_0 to LABEL_{num_labels - 1}, pooling is native"]
    if not matches:
        warnings.append(f"base `{recorded}` could not be compared with `{base.names[0]}`; only the shapes agree")
    return (
        Manifest(
            method=method.name,
            labels=tuple(f"LABEL_{index}" for index in range(num_labels)),
            problem_type="single_label" if num_labels > 1 else "regression",
            max_length=base.max_length,
            pooling="native",
            temperature=1.0,
            base_name=recorded or base.names[0],
            base_fingerprint=base.fingerprint,
            weights_sha256=hashlib.sha256(files[WEIGHTS_FILE]).hexdigest(),
        ),
        tuple(warnings),
    )
