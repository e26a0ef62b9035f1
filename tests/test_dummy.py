"""Adapters with random weights: served like others, and marked as what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.methods import methods
from server.service import Service
from server.settings import Settings
from training.command import main
from training.dummy import MARK


@pytest.mark.parametrize("method", list(methods()))
def test_dummies_are_served_and_say_what_they_are(
    method: str, base_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(base_folders["bert"])
    flags = ["dummy", "--method", method, "--count", "3", "--output", str(tmp_path / "a"), "--base", base]
    assert main([*flags, "--labels", "4"]) == 0
    assert f"3 {method} adapters with random weights" in capsys.readouterr().out
    manifests = [json.loads((tmp_path / "a" / f"{method}-{n}" / "adapter.json").read_text()) for n in range(3)]
    assert all(one["training"]["data_set"] == MARK for one in manifests)
    assert len({one["weights_sha256"] for one in manifests}) == 3
    settings = Settings(adapters=tmp_path / "a", base=base, device="cpu", dtype="float32", threads=1, kernels="off")
    with Service(settings) as service:
        assert [one.adapter_id for one in service.desk.catalog.all()] == [f"{method}-{n}" for n in range(3)]


def test_the_same_seed_makes_the_same_dummies(base_folders: dict[str, Path], tmp_path: Path) -> None:
    def weights(folder: str, seed: int) -> bytes:
        flags = ["dummy", "--method", "lora", "--output", str(tmp_path / folder), "--seed", str(seed)]
        assert main([*flags, "--base", str(base_folders["bert"])]) == 0
        return (tmp_path / folder / "lora-0" / "adapter_model.safetensors").read_bytes()

    assert weights("one", 3) == weights("two", 3) != weights("three", 4)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--method", "dora"], "dora"),
        (["--method", "lora", "--option", "lora.rank=many"], "it must be METHOD.NAME=NUMBER, METHOD one of lora"),
        (["--method", "lora", "--option", "ia3.rank=4"], "--option ia3.rank=4: it must be METHOD.NAME=NUMBER"),
        (["--method", "lora", "--option", "lora.rang=4"], "`rang`"),
        (["--method", "lora", "--count", "0"], "--count"),
    ],
)
def test_what_cannot_be_made_is_refused(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dummy", *flags, "--output", str(tmp_path / "a")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_an_adapter_that_is_there_is_not_replaced(
    base_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["dummy", "--method", "ia3", "--output", str(tmp_path), "--base", str(base_folders["bert"])]
    assert main(flags) == 0
    assert main([*flags, "--count", "2"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert not (tmp_path / "ia3-1").exists()


def test_a_count_is_shared_by_the_methods_and_options_go_to_theirs(
    base_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "lora", "--method", "ia3", "--count", "3", "--option", "lora.rank=2"]
    assert main(["dummy", *flags, "--output", str(tmp_path / "a"), "--base", str(base_folders["bert"])]) == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["ia3-0", "lora-0", "lora-1"]
    assert json.loads((tmp_path / "a" / "lora-0" / "adapter_config.json").read_text())["r"] == 2
