"""The folder of a run that can be interrupted: whose it is, and the last state of training that is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState

from server.errors import RecipeError

STATE_FILE = "trainer_state.json"
"""What transformers writes into a checkpoint last."""
CLAIM_FILE = "run.json"


def claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Tie a folder to one run, so that no other run goes on from its checkpoints. Raises RecipeError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CLAIM_FILE
    if not path.exists():
        hidden = path.with_name(f".{path.name}.part")
        hidden.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        hidden.replace(path)
        return
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"`{path}` is damaged: {error}; take another --work-dir, or delete this one") from error
    different = [name for name in identity if held.get(name) != identity[name]]
    if different:
        raise RecipeError(
            f"`{folder}` holds the checkpoints of a run with another {different[0]}; take another --work-dir"
        )


def last_checkpoint(folder: Path) -> str | None:
    """The latest one that is whole; those behind it, whose writing was cut off, are deleted."""
    for place in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        try:
            TrainerState.load_from_json(str(place / STATE_FILE))
        except (OSError, ValueError, TypeError):
            shutil.rmtree(place, ignore_errors=True)  # of several processes all come here
        else:
            return str(place)
    return None


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
