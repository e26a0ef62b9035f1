"""What a run measures arrives at the tracker that it reports to, without a network."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from server.errors import RecipeError
from tests.corpora import write_corpus
from training import trackers

ROOT = Path(__file__).parent.parent
LIMIT_S = 240


def report(tracker: str, base: Path, folder: Path, **variables: str) -> dict[str, object]:
    """Train as a user would, reporting to a tracker; returns what is printed, which is the result alone."""
    recipe = folder / "recipe.toml"
    recipe.write_text('epochs = 2\nmax_length = 32\nprecision = "float32"\n')
    corpus = write_corpus(folder, num_rows=60)
    flags = (
        "--data",
        corpus,
        "--base",
        base,
        "--recipe",
        recipe,
        "--output",
        "adapters/topics",
        "--report-to",
        tracker,
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "training",
            "run",
            "--method",
            "head",
            "--report-to",
            tracker,
            "--quiet",
            "--json",
            *map(str, flags),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_tensorboard_has_every_pass_after_the_run(base_folders: dict[str, Path], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report("tensorboard", base_folders["bert"], tmp_path)
    events = EventAccumulator(str(tmp_path / "runs" / "topics"))
    events.Reload()
    assert {"train/loss", "eval/loss", "eval/accuracy", "train/learning_rate"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("eval/accuracy")) == 2
    assert all(0 <= event.value <= 1 for event in events.Scalars("eval/accuracy"))


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not part of the development tools")
def test_trackio_has_every_pass_after_the_run(base_folders: dict[str, Path], tmp_path: Path) -> None:
    report("trackio", base_folders["bert"], tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    [path] = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        logged = [json.loads(row) for (row,) in database.execute("select metrics from metrics order by id")]
    assert sum("eval/accuracy" in row for row in logged) == 2
    assert any("train/loss" in row for row in logged)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_told_with_the_way_to_it(name: str, tmp_path: Path) -> None:
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(RecipeError, match=f"tracker `{name}` is not installed; `pip install {name}`"):
        trackers.prepare(name, tmp_path, None)


def test_an_unknown_tracker_is_told_with_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean `tensorboard`"):
        trackers.prepare("tensorbord", tmp_path, None)


def test_files_of_tensorboard_go_where_the_user_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "mine")
    trackers.prepare("tensorboard", tmp_path / "a", None)
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "mine"
