"""The floor that an adapter has to beat to be worth its cost: a linear model on TF-IDF of words and word pairs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from server.manifest import Metric
from training import metrics
from training.data import Row, Splits, targets
from training.metrics import Values

USUAL_STRENGTH = 10.0

Predict = Callable[[str], Values]
"""Logits of a split, by its name [rows, labels]."""


def floor(splits: Splits) -> Mapping[str, Metric]:
    """Its main measures on test: `floor_test_accuracy`, `floor_test_micro_f1` or `floor_test_pearson`.

    Of several labels, the threshold comes from the validation rows, as an adapter's does. Empty where no such model
    can be fitted: the rows have no words, or one label only.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    try:
        if splits.problem_type == "single_label":
            guessed = fit_words(splits)("test").argmax(1)
            return {
                "floor_test_accuracy": metrics.accuracy(targets(splits.test, splits.labels, "single_label"), guessed)
            }
        words = _words()
        train = words.fit_transform(_texts(splits.train))
        truth = {name: targets(rows, splits.labels, splits.problem_type) for name, rows in splits.by_name().items()}
        test = words.transform(_texts(splits.test))
        if splits.problem_type == "regression":
            guessed = Ridge().fit(train, truth["train"]).predict(test)
            return {"floor_test_pearson": metrics.pearson(truth["test"].astype(np.float64), guessed)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a label that the training rows lack, or all have
            several = OneVsRestClassifier(LogisticRegression(C=USUAL_STRENGTH, max_iter=1000)).fit(
                train, truth["train"]
            )
        last = -len(splits.labels)  # of a single label, it gives the chance of its absence too
        validation = several.predict_proba(words.transform(_texts(splits.validation)))[:, last:]
        threshold = metrics.fit_threshold(validation, truth["validation"].astype(np.int64))
        guessed = metrics.at_least(several.predict_proba(test)[:, last:], threshold)
        return {"floor_test_micro_f1": metrics.micro_f1(truth["test"].astype(np.int64), guessed)}
    except ValueError:
        return {}


def fit_words(splits: Splits, strength: float = USUAL_STRENGTH) -> Predict:
    """The linear model on the words of the training texts, of one label a text.

    strength: C of scikit-learn, the inverse of the regularisation. Raises ValueError where there are no words.
    """
    words, rows = _words().fit(_texts(splits.train)), splits.by_name()
    truth = targets(splits.train, splits.labels, "single_label")
    return fit_logistic(lambda name: words.transform(_texts(rows[name])), truth, len(splits.labels), strength)


def fit_logistic(features: Callable[[str], Any], truth: Values, num_labels: int, strength: float) -> Predict:
    """A logistic regression; features: of a split's rows [rows, features]; truth: of the training rows [rows].

    A label that no training row has is as likely as half a row of them.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=1000).fit(features("train"), truth)

    def predict(name: str) -> Values:
        rows = features(name)
        logits = np.full((rows.shape[0], num_labels), math.log(0.5 / len(truth)))
        logits[:, model.classes_] = model.predict_log_proba(rows)
        return logits

    return predict


def _words() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)


def _texts(rows: Sequence[Row]) -> list[str]:
    return [row.text if row.text_pair is None else f"{row.text} {row.text_pair}" for row in rows]
