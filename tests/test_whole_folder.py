"""What a verb writes is there as a whole or not at all: on a full disk, under a bad name, when it is ended."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from server.errors import StorageFailed
from tests.corpora import write_corpus
from training import command, whole_folder

START_S = 60.0


@contextmanager
def disk_with(num_bytes: int) -> Iterator[None]:
    """Within this no file grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_text(place: Path) -> None:
    (place / "answers.csv").write_text("x" * 10_000)


def write_weights(place: Path) -> None:
    save_file({"weight": torch.zeros(10_000)}, place / "model.safetensors")


def fill(folder: Path, write: Callable[[Path], None]) -> None:
    with whole_folder.written(folder) as place:
        place.mkdir()
        write(place)


@pytest.mark.parametrize("write", [write_text, write_weights])
def test_a_disk_that_fills_up_leaves_nothing_and_is_told_in_one_sentence(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    with disk_with(1000), pytest.raises(StorageFailed, match=r"report` cannot be written: .*[Ff]ile too large"):
        fill(tmp_path / "report", write)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "reason"), [("notes.txt/out", "is no folder"), ("x" * 300, "name too long")])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_done(
    name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("in the way")
    assert command.main(["evaluate", "nothing", "--data", "nothing", "--output", str(tmp_path / name)]) == 1
    assert reason in capsys.readouterr().err


def test_a_run_that_is_terminated_leaves_nothing_behind(base_folders: dict[str, Path], tmp_path: Path) -> None:
    data, scratch, board = write_corpus(tmp_path), tmp_path / "scratch", tmp_path / "board"
    recipe = tmp_path / "long.toml"
    recipe.write_text("epochs = 100000\n")
    scratch.mkdir()
    words = ["run", "--data", data, "--method", "lora", "--base", base_folders["bert"], "--recipe", recipe]
    words += ["--output", tmp_path / "made" / "topics", "--quiet", "--report-to", "tensorboard"]
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *map(str, words)],
        env=os.environ | {"TMPDIR": str(scratch), "TENSORBOARD_LOGGING_DIR": str(board)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + START_S
    while process.poll() is None and not list(board.rglob("events*")):
        assert time.monotonic() < deadline, "it began no training"
        time.sleep(0.05)
    assert list(scratch.glob("tmp*"))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=START_S)
    assert (process.returncode, "Traceback" in said) == (130, False), said
    assert said.endswith("adaptermux-train: stopped\n")
    assert not list(scratch.glob("tmp*"))
    assert not (tmp_path / "made").exists()
