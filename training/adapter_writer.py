"""Write a trained adapter as a standard PEFT folder with our manifest and a model card."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel

from server import manifest as manifest_format
from server.errors import TrainingFailed
from server.manifest import Manifest
from training import whole_folder
from training.adapter_check import check_target as check_target
from training.model_card import model_card

KEPT = ("adapter_config.json", "adapter_model.safetensors")


def write(model: PeftModel, draft: Manifest, folder: Path) -> Manifest:
    """Write the folder, whole or not at all. Returns the manifest with the hash of the weights filled in."""
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters() if p.requires_grad):
        raise TrainingFailed("the weights are not finite any more: training diverged; take a lower learning rate")
    with whole_folder.written(folder) as place:
        model.save_pretrained(str(place))
        for path in place.iterdir():
            if path.name not in KEPT:
                path.unlink()
        name_base(place / "adapter_config.json", draft.base_name)
        digest = hashlib.sha256((place / "adapter_model.safetensors").read_bytes()).hexdigest()
        manifest = replace(draft, weights_sha256=digest)
        manifest_format.write(manifest, place)
        (place / "README.md").write_text(model_card(manifest, folder.name), encoding="utf-8")
    return manifest


def name_base(config: Path, base_name: str) -> None:
    """PEFT records the local path of the base, which is of no use elsewhere and tells where it was trained."""
    record = json.loads(config.read_text(encoding="utf-8"))
    record["base_model_name_or_path"] = base_name
    config.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
