"""Fold an adapter into its base: one plain transformers folder, kept only if it answers as the adapter does."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel

from server.errors import MethodUnsupported, TrainingFailed
from server.manifest import Manifest
from training import evaluation, whole_folder
from training.adapter_reader import TrainedAdapter
from training.evaluation import Calibration
from training.model import PooledClassifier
from training.prediction import Item, logits_of

NUM_PROBES = 64
MAX_PROBE_LENGTH = 128
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the merged model is from the adapter.

    largest: logit of either, without its sign. num_same: texts with the same labels; None where answers are numbers.
    """

    num_texts: int
    difference: float
    largest: float
    num_same: int | None

    def holds(self, tolerance: float) -> bool:
        """Whether logits differ by no more than the tolerance, which grows with logits beyond 1."""
        return self.difference <= tolerance * max(1.0, self.largest)


def probes(adapter: TrainedAdapter, seed: int = 0) -> list[Item]:
    """Made-up texts: tokens at random, of every length up to 128."""
    rng, config = np.random.default_rng(seed), adapter.model.config
    longest = min(MAX_PROBE_LENGTH, adapter.manifest.max_length)
    special = {config.pad_token_id, config.bos_token_id, config.eos_token_id}
    # one id is left to those who need one that no text has
    usable = [token for token in range(config.vocab_size - 1) if token not in special]
    return [
        {"input_ids": ids, "token_type_ids": [0] * len(ids), "labels": np.float64(0)}
        for ids in (rng.choice(usable, length).tolist() for length in rng.integers(2, longest + 1, NUM_PROBES))
    ]


def merge(
    adapter: TrainedAdapter, texts: Sequence[Item], folder: Path, tolerance: float, show_progress: bool = False
) -> Parity:
    """Write the merged model, and read it back to compare it with the adapter on the texts.

    Raises MethodUnsupported where the method cannot be merged, and TrainingFailed, with nothing written, where the
    logits differ by more than `tolerance`.
    """
    _check_method(adapter)
    wanted = logits_of(adapter.model, adapter.family, texts, show_progress)
    merged = _fold(adapter)
    manifest = adapter.manifest
    merged.config.id2label = dict(enumerate(manifest.labels))
    merged.config.label2id = {label: index for index, label in enumerate(manifest.labels)}
    with whole_folder.written(folder) as place:
        merged.save_pretrained(place)
        for name in TOKENIZER_FILES:
            if (adapter.base_folder / name).is_file():
                shutil.copyfile(adapter.base_folder / name, place / name)
        again = PooledClassifier.load(str(place), len(manifest.labels), manifest.pooling, manifest.problem_type)
        parity = compare(manifest, wanted, logits_of(again, adapter.family, texts, show_progress))
        if not parity.holds(tolerance):
            raise TrainingFailed(
                f"merged, `{adapter.name}` answers otherwise: logits differ by up to {parity.difference:.2g} on "
                f"{parity.num_texts} texts, at most {tolerance:g} is allowed (--tolerance); nothing was written"
            )
        (place / "README.md").write_text(_card(manifest, adapter.name, folder.name, parity), encoding="utf-8")
    return parity


def _check_method(adapter: TrainedAdapter) -> None:
    if adapter.model.active_peft_config.is_prompt_learning:
        raise MethodUnsupported(
            f"`{adapter.name}` cannot be merged: {adapter.manifest.method} puts keys and values in front of a text's "
            "own, and the base has no weight that they could be added to; serve it as it is"
        )


def _fold(adapter: TrainedAdapter) -> PreTrainedModel:
    _put_head(adapter.model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of merging biases, which is what is wanted
            merged: PreTrainedModel = adapter.model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:  # peft's layers say what they cannot do
        raise MethodUnsupported(f"`{adapter.name}` cannot be merged: {error}; serve it as it is") from error
    return merged.cpu()


def _put_head(model: PeftModel) -> None:
    """Put the trained head in the base's place; of a head of several layers PEFT's own merge fails at it."""
    base = model.get_base_model()
    wrapped = [(name, part) for name, part in base.named_modules() if isinstance(part, ModulesToSaveWrapper)]
    for name, wrapper in wrapped:
        parent, _, last = name.rpartition(".")
        setattr(base.get_submodule(parent), last, wrapper.modules_to_save[wrapper.active_adapters[0]])


def compare(manifest: Manifest, wanted: NDArray[np.float64], found: NDArray[np.float64]) -> Parity:
    """The adapter's logits and the merged model's [texts, labels]."""
    num_same: int | None = None
    if manifest.problem_type != "regression":
        calibration = Calibration(manifest.temperature, manifest.threshold)
        first, second = (evaluation.decide(manifest.problem_type, logits, calibration) for logits in (wanted, found))
        num_same = int((first == second).reshape(len(wanted), -1).all(1).sum())
    return Parity(
        num_texts=len(wanted),
        difference=float(np.abs(wanted - found).max()),
        largest=float(np.abs(wanted).max()),
        num_same=num_same,
    )


def _card(manifest: Manifest, adapter: str, name: str, parity: Parity) -> str:
    kind = "" if manifest.problem_type == "single_label" else f', problem_type="{manifest.problem_type}"'
    if manifest.pooling == "native":
        note = "The architecture's own class loads it (`AutoModelForSequenceClassification`), and so does ours:"
    else:
        note = (
            f"The head reads {manifest.pooling}-pooled hidden states. `AutoModelForSequenceClassification` would load "
            "these files and pool\notherwise, so its answers would be wrong; load it with adaptermux's class:"
        )
    after = "" if manifest.problem_type == "regression" else f"Divide logits by {manifest.temperature:g} for scores. "
    if manifest.problem_type == "multi_label":
        after += f"A label counts from a score of {manifest.threshold:g} on. "
    return f"""# {name}

Adapter `{adapter}` ({manifest.method}, weights sha256 `{manifest.weights_sha256[:12]}`) merged into
`{manifest.base_name}`. On {parity.num_texts} texts its logits differ by at most {parity.difference:.2g} from the
adapter's.

{note}

```python
from training.model import PooledClassifier

model = PooledClassifier.load(
    "{name}", num_labels={len(manifest.labels)}, pooling="{manifest.pooling}"{kind}
).eval()
```

{after}Texts are cut to {manifest.max_length} tokens. The names of the labels are in `config.json`.
"""
