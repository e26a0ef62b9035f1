"""What bfloat16 costs in answers: every text of a test set, by trained adapters, against float32.

    python -m benchmarks.precision --adapters FOLDER --texts test.csv

The adapters of one data set are mixed in each batch. float32 equals plain peft within 1e-5 (`tests/test_parity.py`).
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import torch

from server import adapter_folder, base_model
from server.forward import Forward, load_base
from server.jobs import Job
from server.store import Store
from server.tokenizer import Tokenizer

BATCH = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--adapters", type=Path, required=True, help="folder of adapter folders, all of one data set")
    parser.add_argument("--texts", type=Path, required=True, help="CSV file with a column `text`")
    parser.add_argument("--base", default=base_model.EMBEDDED_ID, help="folder or hub id (%(default)s)")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    names = adapter_folder.scan(flags.adapters)
    exact, rough = (_logits(flags.adapters, names, flags.texts, flags.base, dtype) for dtype in ("float32", "bfloat16"))
    print(f"{'adapter':<24}{'texts':>8}{'same label':>12}{'largest logit error':>22}{'median logit range':>20}")
    for name in names:
        error = max(float((a - b).abs().max()) for a, b in zip(exact[name], rough[name], strict=True))
        same = [int(a.argmax()) == int(b.argmax()) for a, b in zip(exact[name], rough[name], strict=True)]
        spread = torch.stack([a.max() - a.min() for a in exact[name]]).median()
        print(f"{name:<24}{len(same):>8}{sum(same) / len(same):>12.4f}{error:>22.4f}{float(spread):>20.2f}")
    return 0


def _logits(root: Path, names: list[str], texts: Path, spec: str, dtype: str) -> dict[str, list[torch.Tensor]]:
    """Every adapter's logits of every text, in mixed batches."""
    base = load_base(spec, "cpu", dtype)
    forward, store, tokenizer = Forward(base), Store(base), Tokenizer(base.folder)
    folders = {name: adapter_folder.read(root, name, base) for name in names}
    adapters = {name: store.load(folder) for name, folder in folders.items()}
    with texts.open(encoding="utf-8", newline="") as file:
        rows = [row["text"] for row in csv.DictReader(file)]
    work, owners = [], []
    for row in rows:
        for name in names:
            limit = folders[name].manifest.max_length
            encoded = tokenizer.encode(row, None, limit, truncate=True, field="text")
            work.append((Job(name, folders[name].version, encoded.token_ids, encoded.type_ids), adapters[name]))
            owners.append(name)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for start in range(0, len(work), BATCH):
        answers = forward.run(work[start : start + BATCH])
        for name, answer in zip(owners[start : start + BATCH], answers, strict=True):
            found[name].append(answer)
    return found


if __name__ == "__main__":
    sys.exit(main())
