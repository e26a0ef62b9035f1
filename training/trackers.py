"""Trackers that a run can report to, through transformers' own integrations."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from server.errors import RecipeError

PACKAGES = {
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet-ml",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
"""Tracker, which is the module that it is imported as, and what pip calls it."""
NONE = "none"
FOLDER = "runs"


@contextmanager
def reporting(name: str, output: Path, work: Path | None) -> Iterator[None]:
    """Train within this: what trackers print goes to stderr, and they have ended when it is over.

    Raises RecipeError, as `prepare` does.
    """
    prepare(name, output, work)
    with contextlib.redirect_stdout(sys.stderr):
        yield
        if name == "trackio":  # begins once more for what is measured after the training
            import trackio

            trackio.finish()  # type: ignore[no-untyped-call,unused-ignore]


def prepare(name: str, output: Path, work: Path | None) -> None:
    """Check that a tracker is there, and let what TensorBoard writes outlive the run. Raises RecipeError.

    work: folder of checkpoints, beside which transformers puts TensorBoard's files; without one they would go with the
    Trainer's scratch folder, and are put into `runs/NAME` instead, NAME being that of the output.
    """
    if name == NONE:
        return
    if name not in PACKAGES:
        near = difflib.get_close_matches(name, PACKAGES, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise RecipeError(f"tracker `{name}` is unknown; there are {', '.join((NONE, *PACKAGES))}{hint}")
    if find_spec(name) is None:
        raise RecipeError(f"tracker `{name}` is not installed; `pip install {PACKAGES[name]}` brings it")
    if work is None:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(FOLDER) / output.name))
