"""Write a trained adapter as a standard PEFT folder with our manifest and a model card."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import torch
from peft import PeftModel

from server import manifest as manifest_format
from server.errors import DataError, TrainingFailed
from server.manifest import ADAPTER_ID, Manifest
from server.methods import method_named

KEPT = ("adapter_config.json", "adapter_model.safetensors")


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse an output that is in the way, before any time is spent. Raises DataError."""
    if not ADAPTER_ID.fullmatch(folder.name):
        raise DataError(f"output `{folder.name}` is no adapter name; take 1 to 128 of A-Z a-z 0-9 . _ -")
    if folder.exists() and not overwrite:
        raise DataError(f"output `{folder}` exists already; choose another name or pass --overwrite")


def write(model: PeftModel, draft: Manifest, folder: Path) -> Manifest:
    """Write under a hidden name, then rename: the folder is there whole or not at all.

    Returns the manifest with the hash of the weights filled in.
    """
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad):
        raise TrainingFailed("the weights are not finite any more: training diverged; take a lower learning rate")
    folder.parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        hidden.chmod(0o755)
        model.save_pretrained(str(hidden))
        for path in hidden.iterdir():
            if path.name not in KEPT:
                path.unlink()
        _name_base(hidden / "adapter_config.json", draft.base_name)
        digest = hashlib.sha256((hidden / "adapter_model.safetensors").read_bytes()).hexdigest()
        manifest = replace(draft, weights_sha256=digest)
        manifest_format.write(manifest, hidden)
        (hidden / "README.md").write_text(model_card(manifest, folder.name), encoding="utf-8")
        _swap_in(hidden, folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return manifest


def model_card(manifest: Manifest, name: str) -> str:
    """A model card whose code loads the adapter with plain PEFT."""
    assert manifest.training is not None, "a trained adapter has training facts"
    rows = "\n".join(
        f"| {metric} | {value.value:.3f} | {value.low:.3f} to {value.high:.3f} | {value.num_rows} |"
        for metric, value in manifest.training.metrics.items()
    )
    module = method_named(manifest.method).peft_module
    extra = f"import {module}  # tells peft of the method\n" if module else ""
    tags = "\n".join(f"- {tag}" for tag in ("adaptermux", manifest.method, "text-classification"))
    answers = {
        "single_label": "One of these labels a text:",
        "multi_label": f"Any of these labels a text, each at a score of {manifest.threshold:g} or more:",
        "regression": "A number a text:",
    }[manifest.problem_type]
    kind = "" if manifest.problem_type == "single_label" else f', problem_type="{manifest.problem_type}"'
    return f"""---
base_model: {manifest.base_name}
library_name: peft
pipeline_tag: text-classification
tags:
{tags}
---

# {name}

{manifest.method.upper()} adapter on a frozen `{manifest.base_name}`, {manifest.pooling} pooling, trained on
{manifest.training.num_train_rows} rows of `{manifest.training.data_set}` with seed {manifest.training.seed}.
{answers} {", ".join(manifest.labels)}.

| metric | value | 95 % interval | rows |
|---|---|---|---|
{rows}

## Use

Serve it with `adaptermux-serve --adapters FOLDER`, where FOLDER holds this folder, or load it with PEFT. The head
was trained on {manifest.pooling} pooling, so the base is loaded with adaptermux's small model class:

```python
{extra}from peft import PeftModel
from training.model import PooledClassifier

base = PooledClassifier.load(
    "{manifest.base_name}", num_labels={len(manifest.labels)}, pooling="{manifest.pooling}"{kind}
)
model = PeftModel.from_pretrained(base, "{name}").eval()
```
"""


def _name_base(config: Path, base_name: str) -> None:
    """PEFT records the local path of the base, which is of no use elsewhere and tells where it was trained."""
    record = json.loads(config.read_text(encoding="utf-8"))
    record["base_model_name_or_path"] = base_name
    config.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _swap_in(hidden: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(hidden, folder)
        return
    old = Path(mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.rename(folder, old / folder.name)
    os.rename(hidden, folder)
    shutil.rmtree(old)
