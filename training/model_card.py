"""The model card of an adapter: what it is, what it was measured at, what it is not for, and how to run it."""

from __future__ import annotations

import json

from huggingface_hub import EvalResult, ModelCardData

from server.base_model import EMBEDDED_ID
from server.manifest import Manifest, Metric, TrainingFacts
from server.methods import method_named

NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "subset_accuracy": "all labels of a text right",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "rmse": "root mean squared error",
}
"""What people call our figures."""
HUB_TYPES = {"macro_f1": "f1", "micro_f1": "f1", "subset_accuracy": "accuracy", "pearson": "pearsonr",
             "spearman": "spearmanr"}  # fmt: skip
"""What the hub's metrics are called, where not as ours."""
ANSWERS = {
    "single_label": "One of these labels a text",
    "multi_label": "Any of these labels a text, each at a score of {threshold:g} or more",
    "regression": "A number a text",
}
LIMITS = {
    "single_label": "Every text is given one of the labels above, also a text that belongs to none of them or is in "
    "another language, and the score of such a text may be high.",
    "multi_label": "A text that belongs to none of the labels above may still be given some, with a high score.",
    "regression": "Every text is given a number, also one that such a number cannot be told of; nothing says how sure "
    "it is.",
}


def model_card(manifest: Manifest, name: str) -> str:
    """A card whose code loads the adapter with plain PEFT, and whose header tells the hub the test figures."""
    facts = manifest.training
    assert facts is not None, "a trained adapter has training facts"
    parts = (
        f"---\n{_header(manifest, facts, name).to_yaml()}\n---\n\n# {name}\n",
        _summary(manifest),
        _data(manifest, facts),
        _metrics(facts),
        _calibration(manifest),
        _limits(manifest, facts),
        _set_up(manifest, facts),
        _use(manifest, name),
    )
    return "\n".join(part for part in parts if part)


def _header(manifest: Manifest, facts: TrainingFacts, name: str) -> ModelCardData:
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=facts.data_set,
            dataset_name=facts.data_set,
            dataset_split="test",
            metric_type=HUB_TYPES.get(key, key),
            metric_name=NAMES[key],
            metric_value=round(metric.value, 6),
        )
        for key, metric in _of_split(facts, "test")
    ]
    return ModelCardData(
        base_model=manifest.base_name,
        library_name="peft",
        pipeline_tag="text-classification",
        tags=["adaptermux", manifest.method, "text-classification"],
        datasets=[facts.data_set] if "/" in facts.data_set else None,
        model_name=name,
        eval_results=results or None,
    )


def _summary(manifest: Manifest) -> str:
    answers = ANSWERS[manifest.problem_type].format(threshold=manifest.threshold)
    return (
        f"{manifest.method.upper()} adapter on a frozen `{manifest.base_name}`, {manifest.pooling} pooling.\n"
        f"{answers}: {', '.join(' '.join(label.split()) for label in manifest.labels)}.\n"
    )


def _data(manifest: Manifest, facts: TrainingFacts) -> str:
    num_test_rows = next((metric.num_rows for _, metric in _of_split(facts, "test")), 0)
    return f"""## Data

`{facts.data_set}`, {len(manifest.labels)} label{"s" if len(manifest.labels) > 1 else ""}.

| split | rows | for |
|---|---|---|
| train | {facts.num_train_rows} | the weights |
| validation | {facts.num_validation_rows} | temperature and threshold |
| test | {num_test_rows} | the figures below alone |
"""


def _metrics(facts: TrainingFacts) -> str:
    shown = [(f"{split} {NAMES[key]}", metric) for split in ("validation", "test") for key, metric in
             _of_split(facts, split)]  # fmt: skip
    shown += [
        (f"floor of a linear model on words, test {NAMES[key]}", metric)
        for key, metric in _of_split(facts, "floor_test")
    ]
    rows = "\n".join(
        f"| {name} | {metric.value:.3f} | {metric.low:.3f} to {metric.high:.3f} | {metric.num_rows} |"
        for name, metric in shown
    )
    return f"""## Figures

| metric | value | 95 % interval | rows |
|---|---|---|---|
{rows}

The intervals say what other test rows from the same source would change, not what another seed or other data would.
"""


def _calibration(manifest: Manifest) -> str:
    if manifest.problem_type == "regression":
        return ""
    more = (
        f" A label counts from a score of {manifest.threshold:g} on, which gave the best micro-F1 on the same rows."
        if manifest.problem_type == "multi_label"
        else ""
    )
    return f"""## Calibration

Logits are divided by a temperature of {manifest.temperature:g}, fitted on the validation rows (Guo et al. 2017), before
they become scores; plain PEFT does not do so.{more} Scores are for texts like those of the data set.
"""


def _limits(manifest: Manifest, facts: TrainingFacts) -> str:
    return f"""## Limits

- {LIMITS[manifest.problem_type]}
- It has seen `{facts.data_set}` only. On texts of another language, domain or time it may be worse than the figures
  say: measure it on rows of your own with `adaptermux-train evaluate`.
- Texts are cut to {manifest.max_length} tokens; what is behind is not read.
- It has what bias its data and its base model have, and was not checked for any. It is not for decisions about people
  that nobody looks at again.
"""


def _set_up(manifest: Manifest, facts: TrainingFacts) -> str:
    versions = ", ".join(f"{library} {version}" for library, version in facts.library_versions.items())
    recipe = "\n".join(f"| {key} | `{json.dumps(value)}` |" for key, value in facts.recipe.items())
    return f"""## Training

Seed {facts.seed}, {facts.train_s:.0f} s, {facts.created[:10]}, adaptermux {facts.code_version}, {versions}.
Base model weights: sha256 `{manifest.base_fingerprint}`.

| setting | value |
|---|---|
{recipe}
"""


def _use(manifest: Manifest, name: str) -> str:
    module = method_named(manifest.method).peft_module
    extra = f"import {module}  # tells peft of the method\n" if module else ""
    kind = "" if manifest.problem_type == "single_label" else f', problem_type="{manifest.problem_type}"'
    base = "" if manifest.base_name == EMBEDDED_ID else f" --base {manifest.base_name}"
    return f"""## Use

Serve it, together with any others; FOLDER holds this folder:

```sh
adaptermux-serve --adapters FOLDER{base}
curl -s http://127.0.0.1:8000/v1/classify -H 'content-type: application/json' \\
  -d '{{"adapter_id": "{name}", "inputs": ["a text"]}}'
```

Or load it with PEFT. The head was trained on {manifest.pooling} pooling, so the base is loaded with adaptermux's small
model class:

```python
{extra}from peft import PeftModel
from training.model import PooledClassifier

base = PooledClassifier.load(
    "{manifest.base_name}", num_labels={len(manifest.labels)}, pooling="{manifest.pooling}"{kind}
)
model = PeftModel.from_pretrained(base, "{name}").eval()
```
"""


def _of_split(facts: TrainingFacts, split: str) -> list[tuple[str, Metric]]:
    """The figures of a split, under names without it."""
    return [(key, facts.metrics[f"{split}_{key}"]) for key in NAMES if f"{split}_{key}" in facts.metrics]
