"""Adapters with seeded random weights, to measure speed and memory: as fast and as large as trained ones.

What they answer means nothing, and their folders say so.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from server import __version__, base_model, manifest
from server.manifest import Manifest, Pooling, TrainingFacts
from server.methods import Method
from training import whole_folder
from training.adapter_writer import KEPT, name_base
from training.model import PooledClassifier
from training.options import DEFAULT_MAX_LENGTH, options_of

CONFIG, WEIGHTS = KEPT
MARK = "none: random weights"
"""What a dummy's manifest names as the data it was trained on."""
NOISE = 0.02
"""By which adapters of one seed differ from the method's first weights, and from each other."""
CARD = """---
library_name: peft
tags: [adaptermux, {method}, dummy]
---

# {name}

Random weights (seed {seed}), made by `adaptermux-train dummy` to measure speed and memory. What it answers means
nothing.
"""


def make(
    root: Path,
    method: Method[Any],
    count: int,
    base: str = base_model.EMBEDDED_ID,
    num_labels: int = 6,
    pooling: Pooling | None = None,
    options: Mapping[str, float] | None = None,
    seed: int = 0,
    noise: float = NOISE,
) -> Iterator[str]:
    """Write adapters `METHOD-0` to `METHOD-<count - 1>` below a folder, and yield their names.

    pooling: the family's own default if None. options: where they differ from the method's. noise: with little of it,
    adapters answer nearly alike.

    Raises RecipeError, BaseModelError, StorageFailed, and DataError where a name is taken.
    """
    names = [f"{method.name}-{index}" for index in range(count)]
    for name in names:
        whole_folder.check_free(root / name, overwrite=False)
    folder = base_model.locate(base)
    family = base_model.family_of_folder(folder)
    method.check_family(family)
    settled, pooling = options_of(method, options or {}), pooling or family.default_pooling
    limit = family.length_limit(AutoConfig.from_pretrained(folder)) - method.num_virtual_tokens(settled)
    if method.peft_module is not None:
        importlib.import_module(method.peft_module)
    fingerprint = base_model.fingerprint(folder)
    draft = Manifest(
        method=method.name,
        labels=tuple(f"label-{index}" for index in range(num_labels)),
        problem_type="single_label",
        max_length=min(limit, DEFAULT_MAX_LENGTH),
        pooling=pooling,
        temperature=1.0,
        base_name=base_model.name_of(base, fingerprint),
        base_fingerprint=fingerprint,
        weights_sha256="",
        positions="shifted" if method.at_attention and pooling == "native" else "kept",
        training=TrainingFacts(
            data_set=MARK,
            num_train_rows=0,
            num_validation_rows=0,
            seed=seed,
            recipe={"options": settled},
            metrics={},
            train_s=0.0,
            code_version=__version__,
            library_versions={name: version(name) for name in ("torch", "peft")},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with TemporaryDirectory() as scratch:
        torch.manual_seed(seed)
        config = method.peft_config(family, settled)
        model = get_peft_model(PooledClassifier.load(base, num_labels, pooling), config)
        model.save_pretrained(scratch)
        name_base(Path(scratch) / CONFIG, draft.base_name)
        first, record = load_file(Path(scratch) / WEIGHTS), (Path(scratch) / CONFIG).read_text(encoding="utf-8")
    for name in names:
        with whole_folder.written(root / name) as place:
            _write(place, first, record, draft, noise)
            (place / "README.md").write_text(CARD.format(method=method.name, name=name, seed=seed), encoding="utf-8")
        yield name


def _write(place: Path, first: Mapping[str, torch.Tensor], record: str, draft: Manifest, noise: float) -> None:
    place.mkdir()
    weights = place / WEIGHTS
    save_file({key: tensor + torch.randn_like(tensor) * noise for key, tensor in first.items()}, weights)
    (place / CONFIG).write_text(record, encoding="utf-8")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    manifest.write(replace(draft, weights_sha256=digest), place)
