"""`adaptermux-serve check`: what a server would say, said beforehand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.base_model import BaseModel
from server.service import Service
from server.settings import Settings
from tests.seeded import make_adapter, peft_configs
from tests.test_adapter_folder import CONFIG, WEIGHTS, add_manifest

LIMIT_S = 60


@pytest.fixture(scope="module")
def root(bert_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters that can be served, and several that cannot, some of them for their weights only."""
    root = tmp_path_factory.mktemp("checked")
    make_adapter(root / "foreign", bert_base.folder, peft_configs("bert")["ia3-paper"], 2, seed=1)
    make_adapter(root / "good", bert_base.folder, peft_configs("bert")["lora-qv"], 3, seed=0)
    add_manifest(root / "good", bert_base, labels=("a\nb", "ü", "c"))
    for name in ("cut", "not-finite", "other-bytes", "pickled", "unknown"):
        shutil.copytree(root / "good", root / name)
    weights = (root / "good" / WEIGHTS).read_bytes()
    (root / "cut" / WEIGHTS).write_bytes(weights[:-100])
    (root / "other-bytes" / WEIGHTS).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    (root / "pickled" / WEIGHTS).rename(root / "pickled" / "adapter_model.bin")
    tensors = load_file(root / "good" / WEIGHTS)
    next(iter(tensors.values())).fill_(torch.nan)
    save_file(tensors, root / "not-finite" / WEIGHTS)
    add_manifest(root / "not-finite", bert_base)
    config = json.loads((root / "good" / CONFIG).read_text())
    (root / "unknown" / CONFIG).write_text(json.dumps(config | {"use_dora": True}))
    os.mkdir(os.fsencode(root) + b"/\xff\xfe")
    return root


def check(folder: Path, base: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", "check", str(folder), "--base", str(base), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_it_says_what_a_server_says_of_the_same_folders(root: Path, bert_base: BaseModel) -> None:
    done = check(root, bert_base.folder, "--json")
    assert done.returncode == 1, done.stderr
    said = {record["adapter_id"]: record for record in map(json.loads, done.stdout.splitlines())}
    with Service(Settings(adapters=root, base=str(bert_base.folder), device="cpu", dtype="float32")) as service:
        records = service.catalog.all()
    assert sorted(said) == [record.adapter_id for record in records]
    for listed in records:
        record, card = said[listed.adapter_id], listed.current
        refusal = listed.refusal or (card.refusal if card is not None else None)
        if card is not None and refusal is None:
            assert record == {
                "adapter_id": card.adapter_id,
                "status": "ok",
                "version": card.version,
                "method": card.manifest.method,
                "problem_type": card.manifest.problem_type,
                "labels": list(card.manifest.labels),
                "num_bytes": card.num_bytes,
                "warnings": list(card.warnings),
            }
        else:
            assert refusal is not None
            assert record == {
                "adapter_id": listed.adapter_id,
                "status": "refused",
                "code": refusal.code,
                "reason": refusal.reason,
            }
    assert [name for name, record in said.items() if record["status"] == "ok"] == ["foreign", "good"]


def test_every_folder_has_one_line_of_the_table_whatever_its_labels_hold(root: Path, bert_base: BaseModel) -> None:
    done = check(root, bert_base.folder)
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    [good] = [line for line in lines if line.split()[1] == "good"]
    assert good.startswith("ok ")
    assert "lora" in good
    assert r"3 labels: a\nb, ü, c" in good
    [foreign] = [line for line in lines if line.split()[1] == "foreign"]
    assert "warning: no adapter.json" in foreign
    assert sum(line.startswith("refused ") for line in lines) == 6
    assert any("not finite" in line for line in lines)
    assert done.stderr == ""


def test_one_adapter_folder_that_is_good_ends_with_0(root: Path, bert_base: BaseModel) -> None:
    done = check(root / "good", bert_base.folder)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["ok", "good"])


def test_one_adapter_folder_that_is_refused_ends_with_1(root: Path, bert_base: BaseModel) -> None:
    done = check(root / "pickled", bert_base.folder)
    assert (done.returncode, done.stdout.split()[:3]) == (1, ["refused", "pickled", "pickle_refused:"])


def test_a_link_out_of_the_folder_is_refused_as_a_server_refuses_it(
    root: Path, bert_base: BaseModel, tmp_path: Path
) -> None:
    (tmp_path / "linked").symlink_to(root / "good")
    done = check(tmp_path / "linked", bert_base.folder)
    assert (done.returncode, done.stdout.split()[:3]) == (1, ["refused", "linked", "path_escape:"])


def test_the_settings_of_the_server_count(root: Path, bert_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERMUX_ADAPTER_BYTES", "100")
    done = check(root / "good", bert_base.folder)
    assert done.returncode == 1
    assert "--adapter-bytes" in done.stdout


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_without_adapters_is_misuse(folder: str, bert_base: BaseModel, tmp_path: Path) -> None:
    done = check(tmp_path / folder, bert_base.folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_base_that_cannot_be_loaded_fails(root: Path) -> None:
    done = check(root, Path("./nowhere"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "nowhere" in done.stderr
