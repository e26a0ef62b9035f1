"""The floor that an adapter has to beat to be worth its cost: a linear model on TF-IDF of words and word pairs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from server.manifest import Metric
from training import metrics
from training.data import Row, Splits, targets
from training.metrics import Values

STRENGTH = 10.0
UNLIKELY = -1000.0
"""Log-probability of a label that no training row has: below whatever else there may be."""


def floor(splits: Splits) -> Mapping[str, Metric]:
    """Its main measures on test: `floor_test_accuracy`, `floor_test_micro_f1` or `floor_test_pearson`.

    Of several labels, the threshold comes from the validation rows, as an adapter's does. Empty where no such model
    can be fitted: the rows have no words, or one label only.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    try:
        if splits.problem_type == "single_label":
            guessed = word_logits(splits)["test"].argmax(1)
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
            several = OneVsRestClassifier(LogisticRegression(C=STRENGTH, max_iter=1000)).fit(train, truth["train"])
        last = -len(splits.labels)  # of a single label, it gives the chance of its absence too
        validation = several.predict_proba(words.transform(_texts(splits.validation)))[:, last:]
        threshold = metrics.fit_threshold(validation, truth["validation"].astype(np.int64))
        guessed = metrics.at_least(several.predict_proba(test)[:, last:], threshold)
        return {"floor_test_micro_f1": metrics.micro_f1(truth["test"].astype(np.int64), guessed)}
    except ValueError:
        return {}


def word_logits(splits: Splits, strength: float = STRENGTH) -> Mapping[str, Values]:
    """What the linear model answers for every split, of one label a text: [rows, labels].

    strength: C of scikit-learn, the inverse of the regularisation. Raises ValueError where there are no words.
    """
    words = _words().fit(_texts(splits.train))
    rows = {name: words.transform(_texts(part)) for name, part in splits.by_name().items()}
    return logistic_logits(rows, targets(splits.train, splits.labels, "single_label"), len(splits.labels), strength)


def logistic_logits(rows: Mapping[str, Any], truth: Values, num_labels: int, strength: float) -> Mapping[str, Values]:
    """A logistic regression on the training rows' features, and its logits for every split [rows, labels].

    rows: by split [rows, features]; truth: of the training rows [rows]. A label that none of them has is unlikely.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=1000).fit(rows["train"], truth)
    found = {}
    for name, features in rows.items():
        logits = np.full((features.shape[0], num_labels), UNLIKELY)
        logits[:, model.classes_] = model.predict_log_proba(features)
        found[name] = logits
    return found


def _words() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)


def _texts(rows: Sequence[Row]) -> list[str]:
    return [row.text if row.text_pair is None else f"{row.text} {row.text_pair}" for row in rows]
