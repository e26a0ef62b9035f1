"""Load an adapter folder, ours or plain PEFT's, as its model card says: PEFT on a base with a fresh head."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from server import base_model
from server.adapter_files import CONFIG_FILE
from server.errors import AdapterDamaged, AdapterMismatch, BaseModelError, DataError, MethodUnsupported
from server.families import Family
from server.manifest import FILE_NAME as MANIFEST_FILE
from server.manifest import Manifest, ProblemType
from server.methods import methods
from server.weights_file import WeightsFile, sha256_of
from training import adapter_check
from training.model import PooledClassifier

MAX_LENGTH = 512


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """An adapter as plain PEFT runs it. notes: what is not known of it, and was assumed."""

    name: str
    manifest: Manifest
    model: PeftModel
    base_folder: Path
    family: Family
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """What a caller says of an adapter: base overrides its record, the rest is for folders without adapter.json."""

    base: str | None = None
    labels: Sequence[str] | None = None
    problem_type: ProblemType | None = None


def read(folder: Path, told: Told = Told()) -> TrainedAdapter:  # frozen
    """Load a folder. Raises AdapterRefused, BaseModelError or DataError."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    config, weights = adapter_check.check_files(folder)
    _teach_peft(config)
    own = adapter_check.read_manifest(folder, weights)
    if own is None:
        manifest, notes = _assumed(config, weights, told)
    else:
        if told.labels is not None or told.problem_type is not None:
            raise DataError(f"`{folder}` has its labels and problem type in {MANIFEST_FILE}; leave out what says them")
        manifest, notes = own, ()
    base_folder = _locate(told.base, manifest)
    fingerprint = base_model.fingerprint(base_folder)
    if own is not None and fingerprint != own.base_fingerprint:
        raise AdapterMismatch(
            f"`{folder}` was trained on base `{own.base_name}` ({own.base_fingerprint[:12]}), `{base_folder}` is "
            f"another ({fingerprint[:12]}); name the right one with --base"
        )
    family = base_model.family_of_folder(base_folder)
    model = _load(folder, manifest, base_folder, weights)
    return TrainedAdapter(folder.resolve().name, manifest, model, base_folder, family, notes)


def _teach_peft(config: dict[str, object]) -> None:
    for method in methods().values():
        if method.peft_type == config.get("peft_type") and method.peft_module is not None:
            importlib.import_module(method.peft_module)


def _assumed(config: dict[str, object], weights: WeightsFile, told: Told) -> tuple[Manifest, tuple[str, ...]]:
    """What can be said of a folder without adapter.json: the architecture's own head, on the base that it names."""
    base_name = str(told.base or config.get("base_model_name_or_path") or "")
    if not base_name:
        raise DataError(f"neither {MANIFEST_FILE} nor {CONFIG_FILE} names a base model; name it with --base")
    folder = _locate(base_name, None)
    settings = AutoConfig.from_pretrained(folder)
    family = base_model.family_of_folder(folder)
    last = family.native_head(settings)[-1].name
    num_labels = next((spec.shape[0] for key, spec in weights.specs.items() if key.endswith(f".{last}.weight")), None)
    if num_labels is None:
        raise AdapterDamaged(f"`{weights.path}` holds no head `{last}`; only classification adapters can be measured")
    if told.labels is not None and len(told.labels) != num_labels:
        raise DataError(f"--labels has {len(told.labels)} names, the adapter's head has {num_labels}")
    twice = next((label for label in told.labels or () if list(told.labels or ()).count(label) > 1), None)
    if twice is not None:
        raise DataError(f"--labels has `{twice}` twice; every label has a name of its own")
    kind = told.problem_type or ("single_label" if num_labels > 1 else "regression")
    notes = [
        f"no {MANIFEST_FILE}: taken for {kind} with the architecture's own pooling and head, temperature 1, on a base "
        "whose weights cannot be compared with those it was trained on"
    ]
    if told.labels is None:
        notes.append(f"the labels have no names: LABEL_0 to LABEL_{num_labels - 1}; give them with --labels")
    manifest = Manifest(
        method=str(config.get("peft_type")).lower(),
        labels=tuple(told.labels or (f"LABEL_{index}" for index in range(num_labels))),
        problem_type=kind,
        max_length=min(MAX_LENGTH, family.length_limit(settings)),
        pooling="native",
        temperature=1.0,
        base_name=base_name,
        base_fingerprint="",
        weights_sha256=sha256_of(weights.path),
    )
    return manifest, tuple(notes)


def _locate(base: str | None, manifest: Manifest | None) -> Path:
    if base is not None:
        return base_model.locate(base)
    assert manifest is not None, "one of the two names the base"
    try:
        return base_model.locate(manifest.base_name)
    except BaseModelError as error:
        raise BaseModelError(f"{error}; name its folder with --base") from error


def _load(folder: Path, manifest: Manifest, base_folder: Path, weights: WeightsFile) -> PeftModel:
    base = PooledClassifier.load(str(base_folder), len(manifest.labels), manifest.pooling, manifest.problem_type)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say of missing tensors is checked below
        try:
            model = PeftModel.from_pretrained(base, str(folder))
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, RuntimeError):
                raise AdapterMismatch(f"`{folder}` does not fit base `{base_folder}`: {_line(error)}") from error
            raise MethodUnsupported(f"PEFT cannot load `{folder}`: {_line(error)}") from error
        wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    different = sorted(wanted ^ set(weights.specs))
    if different:
        verb = "lacks" if different[0] in wanted else "has"
        raise AdapterMismatch(
            f"`{weights.path}` {verb} the tensor `{different[0]}`, unlike a {manifest.pooling}-pooled adapter on "
            f"`{base_folder}`"
        )
    return model.eval()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
