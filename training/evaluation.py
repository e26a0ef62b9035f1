"""What a run measures, by problem type: the watched figure during training, and all of them at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.manifest import Metric, ProblemType
from training import metrics

WATCHED: Mapping[ProblemType, str] = {
    "single_label": "accuracy",
    "multi_label": "micro_f1",
    "regression": "pearson",
}
"""The figure that stands for a run; the floor has it too."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is chosen on validation rows after training, and served with the adapter."""

    temperature: float = 1.0
    threshold: float = 0.5


def calibrate(problem_type: ProblemType, truth: NDArray[Any], logits: NDArray[np.float64]) -> Calibration:
    """Fit the temperature, then the threshold; numbers need neither. truth as `training.data.targets` has it."""
    if problem_type == "regression":
        return Calibration()
    temperature = metrics.fit_temperature(logits, truth.astype(np.int64))
    if problem_type == "single_label":
        return Calibration(temperature)
    return Calibration(temperature, metrics.fit_threshold(_sigmoid(logits / temperature), truth.astype(np.int64)))


def measure(
    problem_type: ProblemType, truth: NDArray[Any], logits: NDArray[np.float64], calibration: Calibration
) -> Mapping[str, Metric]:
    """Every measure of a split. logits [rows, labels], regression [rows, 1] in the data's own unit."""
    if problem_type == "regression":
        numbers, guessed = truth.astype(np.float64), logits[:, 0]
        return {
            "pearson": metrics.pearson(numbers, guessed),
            "spearman": metrics.spearman(numbers, guessed),
            "rmse": metrics.rmse(numbers, guessed),
        }
    truth, predicted = truth.astype(np.int64), decide(problem_type, logits, calibration)
    both = {"macro_f1": metrics.macro_f1(truth, predicted, logits.shape[1])}
    if problem_type == "single_label":
        return {"accuracy": metrics.accuracy(truth, predicted), **both}
    return {
        "micro_f1": metrics.micro_f1(truth, predicted),
        **both,
        "subset_accuracy": metrics.accuracy(truth, predicted),
    }


def watch(problem_type: ProblemType, truth: NDArray[Any], logits: NDArray[np.float64]) -> dict[str, float]:
    """The watched figure, without calibration: what the Trainer logs after every pass."""
    if problem_type == "regression":
        value = metrics.correlation(truth.astype(np.float64), logits[:, 0])
    elif problem_type == "multi_label":
        value = metrics.pooled_f1(truth.astype(np.int64), decide(problem_type, logits, Calibration()))
    else:
        value = float((logits.argmax(1) == truth).mean())
    return {WATCHED[problem_type]: value}


def decide(problem_type: ProblemType, logits: NDArray[np.float64], calibration: Calibration) -> NDArray[np.int64]:
    """The label's index [rows], or 0 and 1 [rows, labels]; numbers are not decided."""
    if problem_type == "single_label":
        best: NDArray[np.int64] = logits.argmax(1)
        return best
    return metrics.at_least(_sigmoid(logits / calibration.temperature), calibration.threshold)


def softmax_or_sigmoid(problem_type: ProblemType, logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities [rows, labels] of logits that are divided by the temperature already, or not."""
    if problem_type == "multi_label":
        return _sigmoid(logits)
    from scipy.special import softmax

    found: NDArray[np.float64] = softmax(logits, axis=1)
    return found


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import expit

    found: NDArray[np.float64] = expit(logits)
    return found
