"""Every method's logits on the card, alone and in a mixed batch, against plain peft in float32 on the CPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from benchmarks.gpu_check.adapters import (
    LOGIT_TOLERANCE,
    Texts,
    answers,
    known,
    known_methods,
    make_sets,
)
from benchmarks.gpu_check.report import IsOver, Report, part_of, short
from benchmarks.material import job, skewed_texts
from server.forward import Forward, load_base
from server.store import Store
from training.model import PooledClassifier

NUM_SETS, NUM_TEXTS = 2, 8


def check_logits(spec: str, device: torch.device, root: Path, report: Report, is_over: IsOver) -> None:
    """Launched passes of a base in either format."""
    exact = load_base(spec, str(device), short(torch.float32))
    sets = make_sets(root, known_methods(report), exact, NUM_SETS, report)
    texts = known(skewed_texts(NUM_TEXTS), exact.vocabulary_size)
    folders = [folder for folders in sets for folder in folders]
    expected = [_peft_logits(exact.folder, folder.weights.path.parent, texts) for folder in folders]

    def run(dtype: torch.dtype) -> None:
        limit, kind = LOGIT_TOLERANCE[dtype], short(dtype)
        base = exact if dtype == exact.dtype else load_base(spec, str(device), kind)
        forward, store = Forward(base, uses_graphs=False), Store(base)
        loaded = [store.load(folder) for folder in folders]
        for adapter, right in zip(loaded, expected, strict=True):
            error = part_of(answers(forward, adapter, texts), right)
            report.note(f"logits of {adapter.method.name}, {kind}", adapter.key, error, limit)
        rows = forward.run([(job(text), adapter) for text in texts for adapter in loaded])
        for number, (adapter, right) in enumerate(zip(loaded, expected, strict=True)):
            error = part_of(torch.stack(rows[number :: len(loaded)]), right)
            report.note(f"logits in a mixed batch, {kind}", adapter.key, error, limit)
        store.close()

    report.try_each("logits", list(LOGIT_TOLERANCE), len(LOGIT_TOLERANCE), is_over, run)


def peft_model(base: Path, folders: Sequence[Path]) -> PeftModel:
    """Plain peft with these adapters, named a0, a1, ..."""
    adapter = json.loads((folders[0] / "adapter.json").read_text(encoding="utf-8"))
    bare = PooledClassifier.load(str(base), len(adapter["labels"]), adapter["pooling"])
    model = PeftModel.from_pretrained(bare, folders[0], adapter_name="a0")
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=f"a{number}")
    return model.eval()


@torch.inference_mode()
def _peft_logits(base: Path, folder: Path, texts: Texts) -> Tensor:
    """What plain peft answers on the CPU, [texts, labels]."""
    model = peft_model(base, [folder]).float()
    inputs = [torch.tensor([list(text)]) for text in texts]
    return torch.cat([model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for ids in inputs])
