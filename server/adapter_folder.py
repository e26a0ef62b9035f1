"""Read an adapter folder from disk and refuse, with a reason, everything that could answer wrongly.

Nothing read here is trusted: names may not leave the root, pickles are never opened, and every size,
shape and dtype is checked before memory for the adapter is taken. The weights themselves are read later, by
`server.store`, when the adapter is first needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from server import manifest as manifest_format
from server.adapter_files import CONFIG_FILE as CONFIG_FILE
from server.adapter_files import MAX_TEXT_BYTES, PICKLE_FILES
from server.adapter_files import WEIGHTS_FILE as WEIGHTS_FILE
from server.base_model import BaseModel
from server.errors import AdapterDamaged, AdapterMismatch, MethodUnsupported, PathEscape, PickleRefused
from server.families import Family
from server.heads import Layer, head_modules, head_shapes
from server.manifest import ADAPTER_ID, FILE_NAME, Manifest, Pooling
from server.methods import Method, method_of
from server.methods.base import ATTENTION, KEY_PREFIX, SHORT_KEY_PREFIX, check_target
from server.weights_file import TensorSpec, WeightsFile, read_header, sha256_of

NUM_LAYOUTS = 64


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """A checked adapter whose weights are still on disk.

    tensors: (site name, role) -> where its bytes are. head: the same by name, those that the base holds left out.
    position_offset: places that a prefix takes in front of a text.
    warnings: what is unknown about an adapter that came without a manifest.
    """

    adapter_id: str
    version: str
    method: Method[Any]
    config: Mapping[str, object]
    manifest: Manifest
    weights: WeightsFile
    tensors: Mapping[tuple[str, str], TensorSpec]
    head_layers: tuple[Layer, ...]
    head: Mapping[str, TensorSpec]
    position_offset: int
    warnings: tuple[str, ...]


def scan(root: Path) -> list[str]:
    """Names of the folders below `root` that may be adapters; hidden ones are being written."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def read(root: Path, name: str, base: BaseModel) -> AdapterFolder:
    """Read and check all but the weights of the adapter folder `name` below `root`. Raises AdapterRefused."""
    files = _open_folder(root, name)
    config_bytes = _read_bytes(files[CONFIG_FILE], MAX_TEXT_BYTES)
    config = _parse_config(config_bytes)
    method = method_of(config.get("peft_type"))
    method.check_config(config)
    method.check_family(base.family)
    if config.get("task_type") not in (None, "SEQ_CLS"):
        raise MethodUnsupported(f"`task_type` is {config['task_type']!r}; this server classifies text (SEQ_CLS)")
    own = _read_bytes(files[FILE_NAME], MAX_TEXT_BYTES) if FILE_NAME in files else None
    manifest = _parse_manifest(own) if own is not None else None
    weights = read_header(files[WEIGHTS_FILE])
    pooling = manifest.pooling if manifest is not None else "native"
    layout = _layout(weights, config_bytes, method, config, pooling, base)
    warnings: list[str] = []
    if manifest is not None:
        _check_manifest(manifest, method, base, layout.num_labels)
    else:
        digest = sha256_of(weights.path)
        manifest, warnings = _foreign_manifest(digest, config, method, base, layout.num_labels, layout.prefix)
    position_offset = layout.prefix if manifest.positions == "shifted" else 0
    # in a model with a window the prefix takes places of it, whatever the positions
    limit = base.max_length - (layout.prefix if base.has_window else position_offset)
    if manifest.max_length > limit:
        raise AdapterMismatch(f"`max_length` is {manifest.max_length}; base `{base.name}` takes {limit} tokens")
    if manifest.pooling == "native" and not base.has_native_pool:
        raise AdapterMismatch(
            f"the head needs the base's own pooling layer, and base `{base.name}` has no weights for it"
        )
    parts = (json.dumps(config, sort_keys=True).encode(), manifest.weights_sha256.encode(), own or b"")
    return AdapterFolder(
        adapter_id=name,
        version=hashlib.sha256(b"\0".join(parts)).hexdigest()[:12],
        method=method,
        config=config,
        manifest=manifest,
        weights=weights,
        tensors=layout.tensors,
        head_layers=layout.head_layers,
        head=layout.head,
        position_offset=position_offset,
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a configuration and the shapes in a file come to on a base. prefix: rows in front of a text's own."""

    tensors: Mapping[tuple[str, str], TensorSpec]
    head_layers: tuple[Layer, ...]
    head: Mapping[str, TensorSpec]
    num_labels: int
    prefix: int


_LAYOUTS: WeakKeyDictionary[BaseModel, OrderedDict[tuple[bytes, str, Pooling], _Layout]] = WeakKeyDictionary()
"""Adapters trained alike differ in their weights only: what was found of one holds for all with the same bytes."""


def _layout(
    weights: WeightsFile,
    config_bytes: bytes,
    method: Method[Any],
    config: Mapping[str, object],
    pooling: Pooling,
    base: BaseModel,
) -> _Layout:
    """Check that tensors, configuration and base fit each other; what passed once is known by its bytes."""
    known = _LAYOUTS.setdefault(base, OrderedDict())
    key = hashlib.sha256(config_bytes).digest(), weights.header_sha256, pooling
    found = known.get(key)
    if found is None:
        layers = base.native_head.layers if pooling == "native" else _linear_head(base.family, weights.specs)
        keys, head_keys = _sort_keys(weights.specs, method, layers, pooling)
        tensors = {place: weights.specs[key] for place, key in keys.items()}
        head = {part: weights.specs[key] for part, key in head_keys.items()}
        _check_adapter({place: spec.shape for place, spec in tensors.items()}, method, config, base)
        num_labels = _check_head({name: spec.shape for name, spec in head.items()}, layers, pooling, base)
        prefix = max((spec.shape[0] for (site, _), spec in tensors.items() if site == ATTENTION), default=0)
        found = known[key] = _Layout(tensors, layers, head, num_labels, prefix)
        if len(known) > NUM_LAYOUTS:
            known.popitem(last=False)
    return found


def _open_folder(root: Path, name: str) -> dict[str, Path]:
    """The real paths of an adapter's files, none of them outside the root."""
    if not ADAPTER_ID.fullmatch(name):
        raise PathEscape(
            f"adapter name {name!a} must be 1 to 128 of A-Z a-z 0-9 . _ - and begin with a letter or digit"
        )
    home, folder = root.resolve(), root / name
    if not (folder / WEIGHTS_FILE).exists():
        pickles = [file for file in PICKLE_FILES if (folder / file).exists()]
        if pickles:
            raise PickleRefused(
                f"`{pickles[0]}` is a pickle file, which can run code; save the adapter as {WEIGHTS_FILE}"
            )
    names = [CONFIG_FILE, WEIGHTS_FILE]
    if os.path.lexists(folder / FILE_NAME):
        names.append(FILE_NAME)
    return {file: _real_file(folder / file, home) for file in names}


def _real_file(path: Path, home: Path) -> Path:
    try:
        real = path.resolve(strict=True)
    except FileNotFoundError as error:
        raise AdapterDamaged(f"`{path.name}` is missing") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links; its text would name the path
        reason = getattr(error, "strerror", None) or "its links form a loop"
        raise AdapterDamaged(f"`{path.name}` cannot be read: {reason}") from error
    if not real.is_relative_to(home):
        raise PathEscape(f"`{path.name}` leads out of the adapter root")
    if not real.is_file():
        raise AdapterDamaged(f"`{path.name}` is not a file")
    return real


def _read_bytes(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise AdapterDamaged(f"`{path.name}` cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise AdapterDamaged(f"`{path.name}` has more than {limit} bytes, the most that are read")
    return data


def _parse_config(data: bytes) -> dict[str, object]:
    try:
        config = json.loads(data.decode("utf-8"))
        json.dumps(config, ensure_ascii=False).encode("utf-8")  # an escape may hide half a surrogate pair
    except (ValueError, RecursionError) as error:
        raise AdapterDamaged(f"`{CONFIG_FILE}` is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterDamaged(f"`{CONFIG_FILE}` holds {type(config).__name__}, not an object")
    return config


def _sort_keys(
    specs: Mapping[str, TensorSpec], method: Method[Any], layers: tuple[Layer, ...], pooling: Pooling
) -> tuple[dict[tuple[str, str], str], dict[str, str]]:
    """Tell the adapter's tensors, by (site, role), from the head's, by their names; nothing may be left over."""
    keys: dict[tuple[str, str], str] = {}
    head: dict[str, str] = {}
    head_names = head_shapes(layers, 0, 0).keys()
    for key in specs:
        name = key.removeprefix(KEY_PREFIX)
        if method.at_attention:
            name = name.removeprefix(SHORT_KEY_PREFIX)
        role = next((role for role in method.roles if name.endswith(f".{role}")), None)
        if name in head_names and name not in head:
            head[name] = key
        elif method.at_attention and key in method.roles:
            keys[ATTENTION, key] = key
        elif role is not None and name not in (key, f".{role}") and not method.at_attention:
            keys[name.removesuffix(f".{role}"), role] = key
        else:
            raise AdapterDamaged(
                f"tensor `{key:.200}` is no part of a {method.name} adapter whose head, for {pooling} pooling, has "
                f"{', '.join(f'`{layer.name}`' for layer in layers)}"
            )
    return keys, head


def _check_adapter(
    shapes: Mapping[tuple[str, str], tuple[int, ...]],
    method: Method[Any],
    config: Mapping[str, object],
    base: BaseModel,
) -> None:
    if not shapes and method.roles:
        raise AdapterDamaged(f"the file holds no {method.name} tensors ({', '.join(method.roles)})")
    for (site, role), stored in shapes.items():
        if site not in base.sites:
            raise AdapterMismatch(
                f"the adapter changes `{site}`, which is no linear layer that adapters may change in base "
                f"`{base.name}` (family {base.family.name})"
            )
        if site != ATTENTION:
            check_target(config, site)
        missing = [other for other in method.roles if (site, other) not in shapes]
        if missing:
            raise AdapterDamaged(f"`{site}` has `{role}` without `{missing[0]}`")
        wanted = method.shape(config, base.sites[site], role, stored)
        if stored != wanted:
            raise AdapterMismatch(
                f"`{site}.{role}` has shape {list(stored)}; on base `{base.name}` its config asks for {list(wanted)}"
            )
    for site in {site for site, _ in shapes}:  # numbers in the config that cannot be used show here, not at loading
        roles = {role: torch.empty(shapes[site, role], device="meta") for role in method.roles}
        method.bind(config, base.sites[site], roles)


def _check_head(
    stored: Mapping[str, tuple[int, ...]], layers: tuple[Layer, ...], pooling: Pooling, base: BaseModel
) -> int:
    """How many labels a head has, whose tensors are all there, in the file or in the base, and fit each other."""
    held = base.native_head.tensors if pooling == "native" else {}
    missing = [name for name in head_shapes(layers, 0, 0) if name not in stored and name not in held]
    if missing:
        raise AdapterDamaged(
            f"the file lacks `{missing[0]}` of the head for {pooling} pooling, and so does base `{base.name}`; "
            f"train it with `modules_to_save={head_modules(layers)}`"
        )
    last = stored[f"{layers[-1].name}.weight"]
    if len(last) != 2 or not 1 <= last[0] <= manifest_format.MAX_LABELS:
        raise AdapterDamaged(f"the head has shape {list(last)}, it must be [labels, {base.hidden_size}]")
    wanted = head_shapes(layers, base.hidden_size, last[0])
    for name, shape in stored.items():
        if shape != wanted[name]:
            raise AdapterMismatch(
                f"`{name}` has shape {list(shape)}; a head of {last[0]} labels on base `{base.name}` asks for "
                f"{list(wanted[name])}"
            )
    return last[0]


def _linear_head(family: Family, keys: Iterable[str]) -> tuple[Layer, ...]:
    """The head behind a pooling of ours; decoders' may have a bias, which a head of one number needs."""
    has_bias = family.head_has_bias or f"{KEY_PREFIX}{family.head}.bias" in keys
    return (replace(family.linear_head()[0], has_bias=has_bias),)


def _parse_manifest(data: bytes) -> Manifest:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AdapterDamaged(f"`{FILE_NAME}` is not UTF-8: {error}") from error
    return manifest_format.parse(text)


def _check_manifest(manifest: Manifest, method: Method[Any], base: BaseModel, num_labels: int) -> None:
    if manifest.method != method.name:
        raise AdapterDamaged(f"the manifest says method `{manifest.method}`, adapter_config.json says `{method.name}`")
    if manifest.base_fingerprint != base.fingerprint:
        raise AdapterMismatch(
            f"trained on base `{manifest.base_name}` ({manifest.base_fingerprint[:12]}), this server holds "
            f"`{base.name}` ({base.fingerprint[:12]}); retrain it or start with that base"
        )
    if len(manifest.labels) != num_labels:
        raise AdapterDamaged(f"the manifest names {len(manifest.labels)} labels, the head has {num_labels}")


def _foreign_manifest(
    weights_sha256: str,
    config: Mapping[str, object],
    method: Method[Any],
    base: BaseModel,
    num_labels: int,
    prefix: int,
) -> tuple[Manifest, list[str]]:
    """What can be said of a folder without `adapter.json`: it uses the architecture's own head."""
    recorded = str(config.get("base_model_name_or_path") or "")
    same = _is_same_base(recorded, base)
    if same is False:
        raise AdapterMismatch(
            f"adapter_config.json names base `{recorded}`, this server holds `{base.name}`; start with that base, "
            "or correct `base_model_name_or_path` if it is the same model"
        )
    warnings = [f"no {FILE_NAME}: labels are LABEL_0 to LABEL_{num_labels - 1}, pooling is native"]
    if same is None:
        warnings.append(f"base `{recorded}` could not be compared with `{base.name}`; only the shapes agree")
    manifest = Manifest(
        method=method.name,
        labels=tuple(f"LABEL_{index}" for index in range(num_labels)),
        problem_type="single_label" if num_labels > 1 else "regression",
        max_length=base.max_length - prefix,
        pooling="native",
        temperature=1.0,
        base_name=recorded or base.name,
        base_fingerprint=base.fingerprint,
        weights_sha256=weights_sha256,
        positions="shifted" if method.at_attention else "kept",
    )
    return manifest, warnings


def _is_same_base(recorded: str, base: BaseModel) -> bool | None:
    """Compare the base that peft recorded, a hub id or a path, with ours; None where that cannot be told."""
    if recorded in (base.name, str(base.folder)):
        return True
    last, ours = recorded.rstrip("/").rpartition("/")[2], base.name.rpartition("/")[2]
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", recorded) is not None
    if is_id and "/" in recorded and "/" in base.name:
        return False
    if last == ours:
        return True
    return False if is_id else None
