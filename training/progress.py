"""What a run shows of itself while it trains."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from training.evaluation import WATCHED


class Bar(ProgressCallback):
    """The Trainer's progress bar, with the latest figures beside it instead of lines and bars of their own."""

    def on_prediction_step(self, *_: object, **__: object) -> None:
        """Measuring takes a moment: no bar for it."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        if self.training_bar is not None and logs:
            names = ("loss", *(f"eval_{name}" for name in WATCHED.values()))
            shown = {name: f"{logs[name]:.3f}" for name in names if name in logs}
            self.training_bar.set_postfix(shown)
